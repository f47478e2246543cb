"""The net in a cheaper arithmetic: which number formats there are, and what a CPU gains from weights laid out for it.

The net itself knows nothing of this: its linear layers are replaced one for one, after loading. What each precision
costs in words stands in `docs/decisions.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.dimensions import Dimensions
from model.whisper import Whisper, from_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_net(dims: Dimensions, state: dict[str, Tensor], precision: str, device: torch.device) -> Whisper:
    """The net with the weights of a checkpoint (`model.checkpoint.load`), on `device`, in one of `DTYPES`."""
    if device.type == "cuda":
        _keep_float32()
    net = from_state(dims, state, DTYPES[precision]).to(device)
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_kernels = has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # they refuse to run on an older CPU
    if device.type == "cpu" and net.dtype == torch.bfloat16 and has_kernels:
        _pack(net)
    return net


def _keep_float32() -> None:
    """Let float32 mean float32 on a GPU: else torch rounds what convolutions multiply to 10 bits (TF32)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class PackedLinear(nn.Module):
    """A linear layer whose weights are laid out once for oneDNN's bfloat16 kernels, not anew at every call.

    One row (of 16) costs 0.6 of what `nn.Linear` does, a thousand rows 0.9.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


def _pack(net: Whisper) -> None:
    unembedding = nn.Linear(net.dims.n_text_state, net.dims.n_vocab, bias=False, device="meta")
    unembedding.weight = net.decoder.token_embedding.weight
    net.unembedding = PackedLinear(unembedding)
    _replace(net, PackedLinear)


def _replace(module: nn.Module, kind: type[PackedLinear]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):  # what is replaced already is none
            setattr(module, name, kind(child))
        else:
            _replace(child, kind)
