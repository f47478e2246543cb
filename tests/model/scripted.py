"""A net that says what a test tells it to: `engine.Net` without weights, but with a real vocabulary and a real cache.

The log-mel of a scripted part carries, in every frame, the number of the part and of the frame, so the net knows which
window it hears; its cache remembers which tokens stand at which positions of a lane, so it knows what was said there.
What comes next is asked of a `Script`, a function of exactly these facts: a mistake in seek, prompt, lane or position
changes the words. It does not know temperatures, attempts or batches. Everything it is asked is kept, to be looked at.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.cache import Reach
from model.dimensions import OFFICIAL, WINDOW_FRAMES
from model.engine import Engine
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript

MULTILINGUAL = replace(OFFICIAL["tiny"], n_mels=3)  # three rows of facts: part, frame, audio or silence
ENGLISH = replace(OFFICIAL["tiny.en"], n_mels=3)
AUDIO, SILENCE = 1.0, 0.5
IMPOSSIBLE = -1e4  # log-probability of all that a script does not mention
FORK_WIDTH = 500  # tokens that, together, all but surely win over the likeliest one at any temperature above 0


def scripted_part(number: int, seconds: float, speech: tuple[tuple[int, int], ...] | None = None) -> Part:
    """Part `number` of so many seconds, its log-mel (3, frames) full of facts instead of sound."""
    content = round(seconds * 100)
    mel = np.empty((3, max(content, WINDOW_FRAMES)), np.float32)
    mel[0] = number
    mel[1] = np.arange(mel.shape[1])
    mel[2, :content], mel[2, content:] = AUDIO, SILENCE
    return Part(f"part-{number}", mel, content, speech)


@dataclass(frozen=True)
class Heard:
    """One window as the net heard it: `frames` of audio from `seek` on, then silence or nothing but zeros.

    read: frames of log-mel in all. How many zeros there are decides nothing that is said.
    cuts: pairs of frames that lie side by side in it, but not in the part.
    """

    part: int
    seek: int
    frames: int
    silence_behind: bool
    read: int = field(default=WINDOW_FRAMES, repr=False)
    cuts: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    @classmethod
    def recognise(cls, mel: Tensor) -> Heard:
        frames = int((mel[2] == AUDIO).sum())
        places = mel[1, :frames].int().tolist()
        cuts = tuple((before, after) for before, after in pairwise(places) if after != before + 1)
        assert all(before < after for before, after in cuts), "frames out of order"
        behind = mel[2, frames:]
        assert (behind == 0).all() or (behind == SILENCE).all(), "audio, silence and zeros in disorder"
        return cls(int(mel[0, 0]), places[0], frames, bool((behind == SILENCE).any()), mel.shape[1], cuts)


Script = Callable[[Heard, tuple[int, ...], tuple[int, ...]], Mapping[int, float]]
"""(window, prompt, sampled so far) to log-probabilities of the next token."""


@dataclass
class ScriptedCache:
    """Which window each slot holds, and which tokens each of its lanes; it moves and follows as the engine expects."""

    windows: Tensor  # (S,) numbers of `ScriptedNet.heard`
    tokens: Tensor  # (S·W, n_text_ctx), lane by lane

    @property
    def lanes(self) -> int:
        return len(self.tokens) // len(self.windows)

    def move(self, source: int, target: int) -> None:
        self.windows[target] = self.windows[source]
        lanes = self.tokens.view(len(self.windows), self.lanes, -1)
        lanes[target] = lanes[source]

    def follow(self, rows: Iterable[int], parents: Iterable[int], text: int) -> None:
        self.tokens[[*rows], :text] = self.tokens[[*parents], :text]


@dataclass
class ScriptedNet:
    """`script` says what is sampled, `no_speech` and `languages` what is read at `sot`, per (part, seek) or part."""

    script: Script
    no_speech: Mapping[tuple[int, int], float] = field(default_factory=dict)
    # Code and probability; else English.
    languages: Mapping[int | tuple[int, int], tuple[str, float]] = field(default_factory=dict)
    english_only: bool = False
    joined: bool = False  # whether parts may have silence cut out of them
    heard: list[Heard] = field(default_factory=list)  # every window encoded, in order
    encode_batches: list[int] = field(default_factory=list)
    prompts: list[tuple[Heard, tuple[int, ...]]] = field(default_factory=list)  # every prompt prefilled
    prefill_batches: list[int] = field(default_factory=list)
    language_steps: list[Heard] = field(default_factory=list)
    steps: list[tuple[int, ...]] = field(default_factory=list)  # parts in the slots of each single-token step
    reaches: list[Reach] = field(default_factory=list)  # of each prefill and step
    breaks: set[str] = field(default_factory=set)  # names of methods that raise from now on

    def __post_init__(self) -> None:
        self.dims = ENGLISH if self.english_only else MULTILINGUAL
        self.tokenizer = Tokenizer.for_dimensions(self.dims)
        self._states: list[tuple[Heard, Tensor]] = []  # what the hidden states stand for

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def new_cache(self, slots: int, lanes: int = 1) -> ScriptedCache:
        nothing = torch.full((slots * lanes, self.dims.n_text_ctx), -1)
        return ScriptedCache(torch.full((slots,), -1), nothing)

    def encode(self, mel: Tensor) -> Tensor:
        """(B, 3, frames) to the numbers of the windows in `heard`, at every position: (B, A, 1)."""
        self._may_break("encode")
        batch, facts, frames = mel.shape
        assert facts == 3 and frames <= WINDOW_FRAMES
        first = len(self.heard)
        self.heard += [Heard.recognise(window) for window in mel]
        assert self.joined or not any(window.cuts for window in self.heard[first:]), "frames left out"
        self.encode_batches.append(batch)
        positions = frames // self.dims.frames_per_position
        return torch.arange(first, len(self.heard)).view(-1, 1, 1).expand(-1, positions, -1)

    def admit(self, features: Tensor, cache: ScriptedCache, slots: Tensor) -> None:
        self._may_break("admit")
        cache.windows[slots] = features[:, 0, 0]

    def decode(self, tokens: Tensor, positions: Tensor, cache: ScriptedCache, reach: Reach) -> Tensor:
        """(B, T) tokens to hidden states (B, T, 1): numbers of `_states`."""
        self._may_break("decode")
        rows = torch.arange(len(tokens)) if reach.rows is None else reach.rows
        cache.tokens[rows[:, None], positions] = tokens
        windows = [self.heard[cache.windows[row // cache.lanes]] for row in rows.tolist()]
        self._check(reach, rows, positions, windows, cache.lanes)
        hidden = []
        for row, window, row_positions in zip(rows.tolist(), windows, positions.tolist(), strict=True):
            said = cache.tokens[row].clone()
            self._states += [(window, said[: position + 1]) for position in row_positions]
            hidden += range(len(self._states) - len(row_positions), len(self._states))
        self._record(tokens, positions, windows[:: cache.lanes] if reach.rows is None else windows, reach)
        return torch.tensor(hidden).view(*tokens.shape, 1)

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., 1) to logits (..., n_vocab)."""
        states = [self._states[number] for number in hidden.flatten().tolist()]
        logits = torch.full((len(states), self.dims.n_vocab), IMPOSSIBLE)
        for row, (window, said) in zip(logits, states, strict=True):
            logprobs = self._logprobs(window, tuple(said.tolist()))
            row[torch.tensor([*logprobs])] = torch.tensor([*logprobs.values()], dtype=row.dtype)
        return logits.view(*hidden.shape[:-1], -1)

    def _logprobs(self, window: Heard, said: tuple[int, ...]) -> Mapping[int, float]:
        sot = said.index(self.tokenizer.sot)
        prompt_length = sot + (1 if self.english_only else 3)
        prompt, sampled = said[:prompt_length], said[prompt_length:]
        begun = len(said) >= prompt_length
        logprobs = dict(self.script(window, prompt, sampled)) if begun else {}
        if len(said) == sot + 1:
            no_speech = self.no_speech.get((window.part, window.seek), 0.01)
            for token in logprobs:
                logprobs[token] += math.log(1 - no_speech)
            logprobs[self.tokenizer.no_speech] = math.log(no_speech)
            if not self.english_only:
                logprobs |= self._language_logprobs(window, 1 - no_speech)
        return logprobs

    def _language_logprobs(self, window: Heard, share: float) -> Mapping[int, float]:
        """Log-probabilities of the language symbols, which share what no-speech leaves."""
        of_part = self.languages.get(window.part, ("en", 0.9))
        code, probability = self.languages.get((window.part, window.seek), of_part)
        ids = dict(zip(self.tokenizer.languages, self.tokenizer.language_tokens, strict=True))
        rest = (1 - probability) / (len(ids) - 1)
        return {id: math.log(share * (probability if name == code else rest)) for name, id in ids.items()}

    def _record(self, tokens: Tensor, positions: Tensor, windows: list[Heard], reach: Reach) -> None:
        if not self.english_only and tokens.shape[1] == 1 and int(positions.max()) == 0:
            self.language_steps += windows
            return
        self.reaches.append(reach)
        if int(positions.min()) == 0:
            self.prefill_batches.append(len(tokens))
            trimmed = (tuple(row[: self._length(row)]) for row in tokens.tolist())
            self.prompts += zip(windows, trimmed, strict=True)
        else:
            self.steps.append(tuple(window.part for window in windows))

    def _check(self, reach: Reach, rows: Tensor, positions: Tensor, windows: list[Heard], lanes: int) -> None:
        """What the net is told of a pass is true of it."""
        assert reach.text > int(positions.max()), "it does not look back at all that was said"
        assert reach.ragged or all(window.read == WINDOW_FRAMES for window in windows), "it hears what is not there"
        slots = rows[::lanes] // lanes if reach.rows is None else rows // lanes
        assert reach.rows is not None or len(rows) == lanes * len(slots), "half a slot"
        if reach.slots is not None:
            assert torch.arange(len(rows) + int(rows.max()))[reach.slots].equal(slots), "it hears others than it feeds"

    def _length(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt before its padding."""
        return prompt.index(self.tokenizer.sot) + (1 if self.english_only else 3)

    def _may_break(self, method: str) -> None:
        if method in self.breaks:
            raise RuntimeError(f"{method} broke")


def transcribe(
    net: ScriptedNet, parts: Iterable[Part], options: DecodeOptions | None = None, slots: int = 4, encode_batch: int = 4
) -> list[Transcript]:
    """Transcripts of `parts`, in order, from an engine of their own; without options, those of the reference."""
    engine = Engine(net, net.tokenizer, options or DecodeOptions.exact(), slots, encode_batch)
    futures = [engine.submit(part) for part in parts]
    engine.drain()
    return [future.result(timeout=0) for future in futures]


def assert_same(ones: Iterable[Transcript], others: Iterable[Transcript]) -> None:
    """Equal in everything but the last digits of what is summed from logits."""
    for one, other in zip(ones, others, strict=True):
        assert _rounded(one) == _rounded(other)
        _assert_close(one.language_probability, other.language_probability)
        for segment, twin in zip(one.segments, other.segments, strict=True):
            _assert_close(segment.avg_logprob, twin.avg_logprob)
            _assert_close(segment.no_speech_prob, twin.no_speech_prob)
            _assert_close(segment.language_probability, twin.language_probability)


def _rounded(transcript: Transcript) -> Transcript:
    inexact: dict[str, Any] = {"avg_logprob": 0.0, "no_speech_prob": 0.0, "language_probability": None}
    segments = [replace(segment, **inexact) for segment in transcript.segments]
    return replace(transcript, segments=segments, language_probability=None)


def _assert_close(one: float | None, other: float | None) -> None:
    assert one == other if one is None or other is None else math.isclose(one, other, abs_tol=1e-5)


def tokens_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of text with timestamps in it: `<0.00> Hello<1.20>`."""
    pieces = re.split(r"<(\d+\.\d\d)>", text)
    ids: list[int] = []
    for index, piece in enumerate(pieces):
        ids += [tokenizer.timestamp(float(piece))] if index % 2 else tokenizer.encode(piece)
    return tuple(ids)


@dataclass(frozen=True)
class Line:
    """What is said in one window: text with timestamps, each text token as likely as `logprob` says.

    Timestamps and the end are certain. `hotter` is what is said instead at any temperature above 0: at the first
    text token, so many others are nearly as likely that a sampler leaves the greedy path, and the line forks.
    """

    text: str
    logprob: float = -0.1
    hotter: Line | None = None


def lines(said: Mapping[tuple[int, int], Line], tokenizer: Tokenizer, default: Line | None = None) -> Script:
    """A script that says a line for each (part, seek)."""

    def script(heard: Heard, prompt: tuple[int, ...], sampled: tuple[int, ...]) -> Mapping[int, float]:
        line = said.get((heard.part, heard.seek), default)
        assert line is not None, f"the script has no line for {heard}"
        if line.hotter is not None:
            fork = _first_text(tokens_of(tokenizer, line.text), tokenizer)
            if len(sampled) == fork:
                return _fork(tokens_of(tokenizer, line.text)[fork])
            if len(sampled) > fork and sampled[fork] != tokens_of(tokenizer, line.text)[fork]:
                line = line.hotter
        ids = (*tokens_of(tokenizer, line.text), tokenizer.eot)
        return _spread(ids[min(len(sampled), len(ids) - 1)], line.logprob, tokenizer)

    return script


def saying(
    said: Mapping[tuple[int, int], Line | str], default: Line | str | None = None, english_only: bool = False
) -> ScriptedNet:
    """A net that says a line (or plain text) for each (part, seek), and `default` elsewhere."""
    tokenizer = Tokenizer.for_dimensions(ENGLISH if english_only else MULTILINGUAL)
    full = {window: _line(line) for window, line in said.items()}
    script = lines(full, tokenizer, None if default is None else _line(default))
    return ScriptedNet(script, english_only=english_only)


def _line(line: Line | str) -> Line:
    return Line(line) if isinstance(line, str) else line


def _first_text(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    return next(index for index, token in enumerate(ids) if token < tokenizer.eot)


_WORDS = range(2000, 40_000)  # ids of plain words: no symbol, no byte of one


def _fork(token: int) -> Mapping[int, float]:
    """`token` is the likeliest by a hair, among very many."""
    others = [other for other in _WORDS[:FORK_WIDTH] if other != token]
    return dict.fromkeys(others, 0.0) | {token: 1e-3}


def _spread(token: int, logprob: float, tokenizer: Tokenizer) -> Mapping[int, float]:
    """`token` at `logprob` if it is text, the rest shared by other words, none of which is likelier."""
    if token >= tokenizer.eot or logprob == 0:
        return {token: 0.0}
    rest = -math.expm1(logprob)
    count = int(rest / math.exp(logprob)) + 2
    others = [other for other in _WORDS[: count + 1] if other != token][:count]
    return dict.fromkeys(others, math.log(rest / count)) | {token: logprob}


def babble(salt: int = 0, english_only: bool = False) -> ScriptedNet:
    """A net that says random things, decided by the window and every token before: a change in any changes the rest.

    Windows are short, some end in pairs of timestamps and some do not, some are improbable enough to be tried again.
    """
    dims = ENGLISH if english_only else MULTILINGUAL
    begin, eot = (Tokenizer.for_dimensions(dims).timestamp_begin, Tokenizer.for_dimensions(dims).eot)

    def script(heard: Heard, prompt: tuple[int, ...], sampled: tuple[int, ...]) -> Mapping[int, float]:
        generator = np.random.default_rng(zlib.crc32(repr((salt, heard, prompt, sampled)).encode()))
        latest = max((token - begin for token in sampled if token >= begin), default=0)
        times = begin + (generator.integers(0, 50, 3) if not sampled else latest + generator.integers(0, 700, 3))
        words = _WORDS.start + generator.integers(0, 500, 6)
        ids = [*words.tolist(), *np.minimum(times, dims.n_vocab - 1).tolist(), eot]
        contrast = 0.5 if zlib.crc32(repr((salt, heard)).encode()) % 3 == 0 else 2.5  # one window in three is unsure
        logits = generator.normal(0.0, contrast, len(ids))
        logits[6:9] += 0.6 * (len(sampled) % 4)
        logits[9] += 0.5 * len(sampled) - 3
        return dict(zip(ids, logits.tolist(), strict=True))

    return ScriptedNet(script, english_only=english_only)
