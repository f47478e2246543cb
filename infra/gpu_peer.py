"""The batched Whisper of `transformers` beside ours: the same shape, random weights, and as many tokens."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from infra.gpu_scripted import TOKENS_PER_WINDOW
from infra.gpu_stages import Row
from model.dimensions import WINDOW_FRAMES, WINDOW_SECONDS, Dimensions

SOT = 50_258
BATCHES = (16, 64)  # windows together; the faster counts
WARM_UP_TOKENS = 4


def is_installed() -> bool:
    return importlib.util.find_spec("transformers") is not None


def rows(
    name: str, dims: Dimensions, dtype: torch.dtype, device: torch.device, batches: Sequence[int]
) -> Iterator[Row]:
    """Encoding and `TOKENS_PER_WINDOW` greedy tokens for each window of a batch, none of which may end earlier."""
    model = _model(dims, dtype, device)
    precision = str(dtype).removeprefix("torch.")
    for batch in batches:
        mel = torch.randn(batch, dims.n_mels, WINDOW_FRAMES, device=device, dtype=dtype)
        _generate(model, mel, WARM_UP_TOKENS)
        started = time.perf_counter()
        _generate(model, mel, TOKENS_PER_WINDOW)
        took = time.perf_counter() - started
        facts = {"batch": batch, "real_time": batch * WINDOW_SECONDS / took, "tokens_per_window": TOKENS_PER_WINDOW}
        yield {"model": name, "precision": precision, "stage": "transformers", "ms": took * 1e3, **facts}


def _model(dims: Dimensions, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig  # takes seconds, and may not be there

    config = WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        decoder_ffn_dim=4 * dims.n_text_state,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        decoder_start_token_id=SOT,
        begin_suppress_tokens=None,
    )
    with torch.device(device):
        model = AutoModelForSpeechSeq2Seq.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(device, dtype).eval()


@torch.inference_mode()
def _generate(model: Any, mel: torch.Tensor, tokens: int) -> None:
    """The plain greedy loop, without Whisper's own around it, which would judge and cut what it finds."""
    from transformers import GenerationMixin

    start = torch.full((len(mel), 1), SOT, device=mel.device)
    said = GenerationMixin.generate(
        model,
        input_features=mel,
        decoder_input_ids=start,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
    )
    assert said.cpu().shape == (len(mel), 1 + tokens), "it ended too early, and is not comparable"
