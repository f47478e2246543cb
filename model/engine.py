"""The engine: a pool of slots over one net, in which sequential Whisper runs for many parts at once.

A slot holds one attempt at one window of one part. Each turn samples one token in every occupied slot, judges the
windows that ended, and refills what became free:

    submit ─▶ waiting windows ─▶ encoded ─▶ slots ─▶ judged ─┬▶ accepted: segments, the seek advances, next window waits
    (longest remaining                        ▲              └▶ rejected: hotter, in the same slot, nothing recomputed
     part first)                              └─────────────────────┘

Every row has its own prompt, language, temperature and random stream, so what a part comes to does not depend on what
it is batched with. The pool knows nothing of clusters, files or tables; one thread drives it, any may submit.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model import fallback
from model.dimensions import WINDOW_FRAMES, Dimensions
from model.options import DecodeOptions
from model.progress import PartProgress
from model.sampling import Sampler, random_stream
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Transcript


class Net(Protocol):
    """What the engine asks of a net; `model.whisper.Whisper` documents the shapes."""

    dims: Dimensions

    @property
    def device(self) -> torch.device: ...
    def new_cache(self, slots: int) -> Any: ...
    def encode(self, mel: Tensor) -> Tensor: ...
    def admit(self, features: Tensor, cache: Any, rows: Tensor) -> None: ...
    def decode(self, tokens: Tensor, positions: Tensor, cache: Any, rows: Tensor) -> Tensor: ...
    def project(self, hidden: Tensor) -> Tensor: ...


@dataclass
class Counters:
    """What the engine did, for progress, metrics and tests."""

    turns: int = 0
    slot_turns: int = 0  # occupied slots, summed over turns
    encoded_windows: int = 0  # language windows included
    windows: int = 0
    attempts: int = 0
    tokens: int = 0
    audio_frames: int = 0  # log-mel frames left behind by the seek

    def occupancy(self, slots: int) -> float:
        """Share of slots that had a token to sample, over all turns so far."""
        return self.slot_turns / (self.turns * slots) if self.turns else 0.0


@dataclass
class _Work:
    """One part in the pool, with the future its submitter waits for."""

    progress: PartProgress
    future: Future[Transcript]
    order: int

    def __lt__(self, other: _Work) -> bool:
        """Longest remaining part first, so that the tail stays full; then first come."""
        mine, theirs = self.progress.remaining_frames, other.progress.remaining_frames
        return (-mine, self.order) < (-theirs, other.order)


@dataclass
class _Encoded:
    work: _Work
    features: Tensor  # (A, D)
    language_features: Tensor | None  # (A, D), where language identification needs another window


@dataclass
class _Slot:
    work: _Work
    prompt_length: int
    no_speech_prob: float
    attempt: int = 0
    tokens: list[int] = field(default_factory=list)
    sum_logprob: float = 0.0
    rules_fired: list[str] = field(default_factory=list)
    started: bool = False  # whether a token was sampled in this attempt and waits to be fed


class Engine:
    """`submit` parts from any thread; call `turn` from one until it returns False, or `drain`.

    slots: windows decoded together. encode_batch: windows encoded together. Neither changes a token.
    Raises: `UsageError` when the model lacks the language or the task that `options` ask for.
    """

    def __init__(
        self, net: Net, tokenizer: Tokenizer, options: DecodeOptions, slots: int = 16, encode_batch: int = 4
    ) -> None:
        tokenizer.sot_sequence(options.language or "en", options.task)  # a vocabulary that lacks them says so now
        self.slots = slots
        self.counters = Counters()
        self._net, self._tokenizer, self._options = net, tokenizer, options
        self._encode_batch = encode_batch
        self._cache = net.new_cache(slots)
        self._sampler = Sampler(tokenizer, options, net.dims, slots, net.device)
        self._inbox: SimpleQueue[_Work] = SimpleQueue()
        self._order = itertools.count()
        self._unresolved: dict[int, _Work] = {}  # by order: all that were taken in, wherever a failure finds them
        self._waiting: list[_Work] = []  # a heap
        self._encoded: deque[_Encoded] = deque()
        self._active: list[_Slot | None] = []  # None: freed in this turn

    def submit(self, part: Part) -> Future[Transcript]:
        """Queue a part; the future resolves to its transcript. Safe from any thread."""
        progress = PartProgress(part, self._options, self._tokenizer, self._net.dims)
        work = _Work(progress, Future(), next(self._order))
        self._inbox.put(work)
        return work.future

    def drain(self) -> None:
        """Run turns until nothing is left to do."""
        while self.turn():
            pass

    def turn(self) -> bool:
        """Advance every occupied slot by one token; False when there is nothing to do."""
        self._take_inbox()
        self._fill()
        if not self._active:
            return False
        self.counters.turns += 1
        self.counters.slot_turns += len(self._active)
        for row in self._sample():
            self._judge(row)
        self._fill()
        self._feed()
        return True

    def fail(self, error: BaseException) -> None:
        """Fail every part in the pool with `error`: nobody waits for a dead engine."""
        self._take_inbox()
        for work in self._unresolved.values():
            work.future.set_exception(error)
        self._unresolved.clear()
        self._waiting, self._active = [], []
        self._encoded.clear()

    # --- waiting windows to slots ---------------------------------------------------------------------------------

    def _take_inbox(self) -> None:
        while not self._inbox.empty():
            work = self._inbox.get()
            if work.future.set_running_or_notify_cancel():  # cancelled before it began, or never
                self._unresolved[work.order] = work
                self._wait(work)

    def _wait(self, work: _Work) -> None:
        """Queue the next window of a part, or hand over its transcript."""
        if work.progress.remaining_frames > 0:
            heapq.heappush(self._waiting, work)
        else:
            del self._unresolved[work.order]
            work.future.set_result(work.progress.transcript)

    def _fill(self) -> None:
        """Refill free slots at once; then close the gaps, so that occupied slots are a dense prefix."""
        free = [row for row, slot in enumerate(self._active) if slot is None]
        free += range(len(self._active), self.slots)
        batch: list[_Encoded] = []
        while len(batch) < len(free) and (self._encoded or self._waiting):
            if not self._encoded:
                self._encode()
            batch.append(self._encoded.popleft())
        if batch:
            self._active += [None] * (self.slots - len(self._active))
            self._admit(batch, free[: len(batch)])
        self._close_gaps()

    def _encode(self) -> None:
        """Encode the next waiting windows as one batch, more than there are free slots if more wait."""
        works = [heapq.heappop(self._waiting) for _ in range(min(self._encode_batch, len(self._waiting)))]
        alone = [work for work in works if self._needs_language_window(work.progress)]
        windows = [_decode_window(work.progress) for work in works]
        windows += [work.progress.part.mel[:, :WINDOW_FRAMES] for work in alone]
        features = self._net.encode(torch.from_numpy(np.stack(windows)))  # (windows, A, D)
        self.counters.encoded_windows += len(windows)
        language_features = dict(zip(map(id, alone), features[len(works) :], strict=True))
        for work, own in zip(works, features, strict=False):
            self._encoded.append(_Encoded(work, own, language_features.get(id(work))))

    def _needs_language_window(self, progress: PartProgress) -> bool:
        """A part shorter than a window is identified on other frames than it is decoded on; see `DecodeOptions`."""
        exact = self._options.language_window == "reference"
        short = progress.part.content_frames < WINDOW_FRAMES
        return exact and short and progress.transcript.language is None

    def _admit(self, batch: Sequence[_Encoded], rows: Sequence[int]) -> None:
        """Put encoded windows into slots: find the language where it is unknown, then read the prompts."""
        self._identify_languages([e for e in batch if e.work.progress.transcript.language is None])
        features = torch.stack([encoded.features for encoded in batch])  # (B, A, D)
        self._net.admit(features, self._cache, self._rows(rows))
        prompts = [encoded.work.progress.prompt() for encoded in batch]
        no_speech_probs = self._prefill(prompts, rows)
        for encoded, row, prompt, no_speech in zip(batch, rows, prompts, no_speech_probs, strict=True):
            self._active[row] = _Slot(encoded.work, len(prompt), no_speech)
            self._start(row)

    def _identify_languages(self, batch: Sequence[_Encoded]) -> None:
        """One decoder step after `sot`, over the encoder's output; only language tokens compete.

        Works in free slots, which the windows themselves take over afterwards.
        """
        if not batch:
            return
        free = [row for row, slot in enumerate(self._active) if slot is None][: len(batch)]
        heard = [e.features if e.language_features is None else e.language_features for e in batch]
        rows = self._rows(free)
        self._net.admit(torch.stack(heard), self._cache, rows)
        sot = torch.full((len(batch), 1), self._tokenizer.sot, device=rows.device)
        hidden = self._net.decode(sot, torch.zeros_like(sot), self._cache, rows)  # (B, 1, D)
        language_tokens = torch.tensor(self._tokenizer.language_tokens, device=rows.device)
        probabilities = self._net.project(hidden[:, 0])[:, language_tokens].softmax(-1)  # (B, languages)
        best = probabilities.max(-1)
        for encoded, index, probability in zip(batch, best.indices.tolist(), best.values.tolist(), strict=True):
            transcript = encoded.work.progress.transcript
            transcript.language = self._tokenizer.languages[index]
            transcript.language_probability = probability

    def _prefill(self, prompts: Sequence[list[int]], rows: Sequence[int]) -> list[float]:
        """Feed whole prompts, padded to the longest; returns the no-speech probability of each, read at `sot`."""
        longest = max(map(len, prompts))
        padded = [prompt + [self._tokenizer.eot] * (longest - len(prompt)) for prompt in prompts]
        tokens = torch.tensor(padded, device=self._net.device)  # (B, T)
        positions = torch.arange(longest, device=self._net.device).expand_as(tokens)
        hidden = self._net.decode(tokens, positions, self._cache, self._rows(rows))  # (B, T, D)
        index = torch.arange(len(prompts), device=self._net.device)
        at_end = hidden[index, self._rows([len(prompt) - 1 for prompt in prompts])]  # (B, D)
        at_sot = hidden[index, self._rows([prompt.index(self._tokenizer.sot) for prompt in prompts])]  # (B, D)
        for row, first_logits in zip(rows, self._net.project(at_end), strict=True):
            self._sampler.admit(row, first_logits)
        return self._net.project(at_sot).softmax(-1)[:, self._tokenizer.no_speech].tolist()

    def _start(self, row: int) -> None:
        """Begin the slot's next attempt. The prompt is in the cache already, and so are its logits."""
        slot = self._slot(row)
        progress, temperature = slot.work.progress, self._options.temperatures[slot.attempt]
        stream = random_stream(self._options.seed, progress.part.part_id, progress.seek, slot.attempt)
        slot.tokens, slot.sum_logprob, slot.started = [], 0.0, False
        self._sampler.start(row, temperature, stream)
        self.counters.attempts += 1

    def _close_gaps(self) -> None:
        while None in self._active:
            last = self._active.pop()
            if last is not None:
                gap = self._active.index(None)
                self._active[gap] = last
                self._cache.move(len(self._active), gap)
                self._sampler.move(len(self._active), gap)

    # --- slots to segments ----------------------------------------------------------------------------------------

    def _sample(self) -> list[int]:
        """Sample one token in every slot; returns the rows whose window ended."""
        ended = []
        for row, (token, logprob) in enumerate(zip(*self._sampler.choose(len(self._active)), strict=True)):
            slot = self._slot(row)
            slot.sum_logprob += logprob
            slot.started = True
            slot.work.progress.transcript.tokens += 1
            if token == self._tokenizer.eot:
                ended.append(row)
                continue
            slot.tokens.append(token)
            if len(slot.tokens) == self._token_limit(slot):
                ended.append(row)
        self.counters.tokens += len(self._active)
        return ended

    def _token_limit(self, slot: _Slot) -> int:
        """Half the text context, or what the prompt leaves of it."""
        n_text_ctx = self._net.dims.n_text_ctx
        return min(n_text_ctx // 2, n_text_ctx + 1 - slot.prompt_length)

    def _judge(self, row: int) -> None:
        """Accept the window that ended in slot `row`, or start it again at the next temperature."""
        slot = self._slot(row)
        attempt = self._attempt(slot)
        failed = fallback.failures(attempt, self._options)
        if failed and slot.attempt + 1 < len(self._options.temperatures):
            slot.rules_fired += failed
            slot.attempt += 1
            self._start(row)
            return
        progress = slot.work.progress
        seek = progress.seek
        progress.accept(attempt, slot.attempt + 1, tuple(slot.rules_fired))
        self.counters.windows += 1
        self.counters.audio_frames += progress.seek - seek
        self._active[row] = None
        self._wait(slot.work)

    def _attempt(self, slot: _Slot) -> Attempt:
        text = self._tokenizer.decode(slot.tokens).strip()
        return Attempt(
            tokens=tuple(slot.tokens),
            text=text,
            temperature=self._options.temperatures[slot.attempt],
            avg_logprob=slot.sum_logprob / (len(slot.tokens) + 1),
            no_speech_prob=slot.no_speech_prob,
            compression_ratio=fallback.compression_ratio(text),
            reached_limit=len(slot.tokens) == self._token_limit(slot),
        )

    def _feed(self) -> None:
        """One decoder step for all slots. Slots that only just began ride along; what they compute is dropped."""
        slots = [self._slot(row) for row in range(len(self._active))]
        fed = [row for row, slot in enumerate(slots) if slot.started]
        if not fed:
            return
        tokens = [[slot.tokens[-1] if slot.started else self._tokenizer.eot] for slot in slots]
        positions = [[slot.prompt_length + len(slot.tokens) - slot.started] for slot in slots]
        hidden = self._net.decode(
            self._rows(tokens), self._rows(positions), self._cache, self._rows(range(len(slots)))
        )  # (n, 1, D)
        rows = self._rows(fed)
        self._sampler.update(rows, self._net.project(hidden[rows, 0]))

    def _slot(self, row: int) -> _Slot:
        slot = self._active[row]
        assert slot is not None, f"slot {row} is empty"
        return slot

    def _rows(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=self._net.device)


def _decode_window(progress: PartProgress) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The next window (n_mels, 3000), zeros behind the end of the part, as the reference pads it."""
    frames = progress.window_frames
    window = np.zeros((len(progress.part.mel), WINDOW_FRAMES), np.float32)
    window[:, :frames] = progress.part.mel[:, progress.seek : progress.seek + frames]
    return window
