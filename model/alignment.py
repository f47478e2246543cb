"""When the words of a window were said, read from where the decoder looked while it wrote them.

Some cross-attention heads follow the audio as the text goes on (`model.releases`). The finished text is fed once more,
all at once, and the attention of these heads, cleaned of what is the same for all tokens, is the terrain in which
dynamic time warping finds the path: for each token the first audio position. The method and its numbers are those of
openai/whisper (timing.py, v20250625). It knows tokens and tensors; what words become of is `model.words`, which also
says what is called when. In shapes, B is rows, T tokens, D width, H heads, A audio positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.attention import attend
from model.cache import DecoderCache, Reach
from model.dimensions import FRAMES_PER_SECOND
from model.releases import AlignmentHeads
from model.tokenizer import Tokenizer
from model.whisper import DecoderBlock, Whisper
from model.words import WordTiming, split_words

MEDIAN_WIDTH = 7  # audio positions: 0.14 s
# Exchanges after which the middle one of seven holds the median (Devillard, "Fast median search", 1998).
_MEDIAN_OF_SEVEN = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6)),
    *((2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)

MOST_PADDING = 16  # tokens: to read that many more costs about what it costs to read the weights once more
PROJECTED = 256  # tokens whose logits are held at once: 53 MB

_DOWN, _ALONG = 1, 2  # bits of a step: to the next row, to the next column

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class SpokenText:
    """The text of one window, to be aligned with what was heard in it."""

    start: tuple[int, ...]  # sot, language, task: `Tokenizer.sot_sequence`, without any prompt
    tokens: tuple[int, ...]  # of the text alone: no timestamps, no end
    frames: int  # log-mel frames of audio in the window, at most 3000
    language: str | None  # by which it is split into words


@dataclass(frozen=True)
class Aligner:
    """Finds the times of words by the alignment heads of a checkpoint."""

    net: Whisper
    tokenizer: Tokenizer
    heads: AlignmentHeads

    @torch.inference_mode()
    def align(self, cache: DecoderCache, reach: Reach, texts: Sequence[SpokenText]) -> list[list[WordTiming]]:
        """Words of each text with their times and probabilities; none for a text without tokens.

        cache, reach: where the keys and values of the windows lie, one of `reach.rows` for each text; how much text it
        looks back at does not matter. Nothing is written. What the heads look at is held for some texts at once:
        heads × T × A × 4 bytes for each, 11 MB for the longest on base.
        """
        assert reach.rows is not None, "texts are aligned in rows that are named"
        order: list[int] = []
        costs: list[NDArray[np.float32]] = []
        probabilities: list[list[float]] = []
        for batch in batches([len(text.tokens) for text in texts]):
            some = [texts[index] for index in batch]
            hidden, looks = self._read_again(cache, replace(reach, rows=reach.rows[batch]), some)
            order += batch
            costs += [self._costs(own, text) for own, text in zip(looks, some, strict=True)]
            probabilities += self._probabilities(hidden, some)
        timings: list[list[WordTiming]] = [[] for _ in texts]
        for index, path, own in zip(order, warp(costs), probabilities, strict=True):
            timings[index] = self._words(texts[index], path, own)
        return timings

    def _read_again(self, cache: DecoderCache, reach: Reach, texts: Sequence[SpokenText]) -> tuple[Tensor, Tensor]:
        """Feed the texts; returns hidden states (B, T, D) and the scores of the alignment heads (B, heads, T, A)."""
        tokens = self._fed(texts)  # (B, T)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        future = (places > places[:, None])[None, None]  # (1, 1, T, T)
        decoder = self.net.decoder
        x = decoder.token_embedding(tokens) + decoder.positional_embedding[: len(places)]  # (B, T, D)
        looks = []
        layers = zip(decoder.blocks, cache.layers(places.expand_as(tokens), reach), strict=True)
        for index, (module, layer) in enumerate(layers):
            block = cast(DecoderBlock, module)
            normed = block.attn_ln(x)
            x = x + block.attn(normed, *block.attn.keys_values(normed), future)
            k, v = layer.cross()  # (B, H, A, head_dim)
            q = block.cross_attn.split(block.cross_attn.query(block.cross_attn_ln(x)))  # (B, H, T, head_dim)
            x = x + block.cross_attn.out(attend(q, k, v, layer.unheard).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.mlp_ln(x))
            followed = [head for at, head in sorted(self.heads) if at == index]
            looks.append(_scores(q[:, followed], k[:, followed]))
        return decoder.ln(x), torch.cat(looks, 1)

    def _fed(self, texts: Sequence[SpokenText]) -> Tensor:
        """Tokens (B, T) of whole texts, padded behind their end, where none of their own tokens looks."""
        eot = self.tokenizer.eot
        rows = [[*text.start, self.tokenizer.no_timestamps, *text.tokens, eot] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [eot] * (longest - len(row)) for row in rows], device=self.net.device)

    def _costs(self, looks: Tensor, text: SpokenText) -> NDArray[np.float32]:
        """Of being at each position of the audio when a token, or the end, is due: (tokens + 1, positions)."""
        first, last = len(text.start), len(text.start) + 1 + len(text.tokens)
        heard = max(1, text.frames // self.net.dims.frames_per_position)
        looks = looks[:, : last + 1, :heard]
        at_once = 1 if looks.device.type == "cpu" else len(looks)  # one head fits into the cache of a CPU
        cleaned = [clean(looks[head : head + at_once]) for head in range(0, len(looks), at_once)]
        return (-torch.cat(cleaned).mean(0)[first:last]).cpu().numpy()

    def _probabilities(self, hidden: Tensor, texts: Sequence[SpokenText]) -> list[list[float]]:
        """Of each token of each text, among all that are text; hidden (B, T, D)."""
        firsts = [len(text.start) for text in texts]  # each looks for the token behind it
        counts = [len(text.tokens) for text in texts]
        states = torch.cat([own[i : i + n] for own, i, n in zip(hidden, firsts, counts, strict=True)])  # (tokens, D)
        tokens = torch.tensor([token for text in texts for token in text.tokens], device=hidden.device)
        found: list[float] = []
        for begin in range(0, len(tokens), PROJECTED):
            some = slice(begin, begin + PROJECTED)
            logits = self.net.project(states[some])[:, : self.tokenizer.eot]  # (PROJECTED, V)
            logprobs = logits.gather(1, tokens[some, None])[:, 0] - logits.logsumexp(-1)
            found += logprobs.exp().tolist()
        rest = iter(found)
        return [list(islice(rest, count)) for count in counts]

    def _words(self, text: SpokenText, path: Positions, probabilities: Sequence[float]) -> list[WordTiming]:
        positions_per_second = FRAMES_PER_SECOND // self.net.dims.frames_per_position
        seconds = (path / positions_per_second).tolist()
        timings, first = [], 0
        for word, tokens in split_words(text.tokens, self.tokenizer, text.language):
            last = first + len(tokens)
            probability = float(np.mean(probabilities[first:last]))
            timings.append(WordTiming(word, tokens, seconds[first], seconds[last], probability))
            first = last
        return timings


def batches(counts: Sequence[int]) -> list[list[int]]:
    """Indices of texts of so many tokens, those of similar length together; texts without any are left out."""
    found: list[list[int]] = []
    for index in sorted(range(len(counts)), key=counts.__getitem__):
        if found and counts[index] and counts[index] - counts[found[-1][0]] <= MOST_PADDING:
            found[-1].append(index)
        elif counts[index]:
            found.append([index])
    return found


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """How much queries (B, heads, T, head_dim) look at keys (B, heads, A, head_dim): (B, heads, T, A), in float32."""
    scores: Tensor = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    return scores


def clean(looks: Tensor) -> Tensor:
    """Attention scores (heads, T, A) to how much more than the other tokens each looks at a position, smoothed."""
    weights = looks.softmax(-1)
    centred = weights - weights.mean(-2, keepdim=True)
    deviation = centred.square().mean(-2, keepdim=True).sqrt()
    # Where all tokens look the same, as in a window of one position, there is nothing to divide by.
    return median_filter(centred / deviation.clamp_min(torch.finfo(deviation.dtype).tiny))


def median_filter(x: Tensor) -> Tensor:
    """Medians of `MEDIAN_WIDTH` neighbours in the last dimension of x (heads, T, A), mirrored at its ends.

    Fewer positions than can be mirrored stay as they are.
    """
    reach = MEDIAN_WIDTH // 2
    if x.shape[-1] <= reach:
        return x
    padded = F.pad(x, (reach, reach), mode="reflect")
    sorting = list(padded.unfold(-1, x.shape[-1], 1).unbind(-2))
    for low, high in _MEDIAN_OF_SEVEN:
        one, other = sorting[low], sorting[high]
        sorting[low], sorting[high] = torch.minimum(one, other), torch.maximum(one, other)
    return sorting[reach]


def warp(costs: Sequence[NDArray[np.float32]]) -> list[Positions]:
    """Dynamic time warping: for each row of each cost (N, M) the first column on the cheapest path through it.

    Paths lead from corner to corner by steps of one row, one column or both. All costs are warped together, in
    float32, one anti-diagonal after the other, since its cells depend only on the two before. Where the last step could
    as well have come from the row above as from above and before, it is taken along the row, as in the reference.
    """
    if not costs:
        return []
    totals = _totals(costs)
    steps = _steps(totals).transpose(2, 0, 1)  # (B, diagonals, rows)
    return [_first_columns(one.tobytes(), one.shape[1], *cost.shape) for one, cost in zip(steps, costs, strict=True)]


def _totals(costs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Cost of the path to every cell: (diagonals, 1 + rows, B), cell (i, j) on diagonal i + j, counted from 1."""
    rows, columns = max(len(cost) for cost in costs), max(cost.shape[1] for cost in costs)
    skewed = np.full((rows + columns - 1, rows, len(costs)), np.inf, np.float32)
    for index, cost in enumerate(costs):
        for row, values in enumerate(cost):
            skewed[row : row + len(values), row, index] = values
    totals = np.full((rows + columns + 1, rows + 1, len(costs)), np.inf, np.float32)
    totals[0, 0] = 0
    flat, width = totals.reshape(len(totals), -1), len(costs)
    for diagonal, here in enumerate(skewed.reshape(len(skewed), -1), start=2):
        both, before = flat[diagonal - 2, :-width], flat[diagonal - 1]
        down, along = before[:-width], before[width:]
        best = np.minimum(both, down)
        best[both == down] = np.inf
        np.minimum(best, along, out=best)
        np.add(best, here, out=flat[diagonal, width:])
    return totals


def _steps(totals: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The last step of the path to every cell, as bits: (diagonals - 2, rows, B), cells counted from 0."""
    both, down, along = totals[:-2, :-1], totals[1:-1, :-1], totals[1:-1, 1:]
    only_down = (down < both) & (down < along)
    goes_down = only_down | (both < down) & (both < along)
    return goes_down.view(np.uint8) * np.uint8(_DOWN) + (~only_down).view(np.uint8) * np.uint8(_ALONG)


def _first_columns(steps: bytes, width: int, rows: int, columns: int) -> Positions:
    """Walk back from the last corner, and keep the leftmost column of every row; a diagonal has `width` steps."""
    first = np.zeros(rows, np.int64)
    row, column = rows - 1, columns - 1
    while row >= 0:
        first[row] = column
        step = steps[(row + column) * width + row]
        if step & _DOWN:
            row -= 1
        if step & _ALONG:
            column -= 1
    return first
