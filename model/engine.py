"""The engine: a pool of slots over one net, in which sequential Whisper runs for many parts at once.

A slot holds one attempt at one window of one part. Each turn samples one token in every lane of every occupied slot,
judges the windows that ended, and refills what became free:

    submit ─▶ waiting windows ─▶ encoded ─▶ slots ─▶ judged ─┬▶ accepted: segments, the seek advances, next window waits
    (longest remaining                        ▲              └▶ rejected: hotter, in the same slot, nothing recomputed
     part first)                              └─────────────────────┘

Every row has its own prompt, language, temperature and random stream, so what a part comes to does not depend on what
it is batched with. The pool knows nothing of clusters, files or tables; one thread drives it, any may submit.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor

from model.alignment import Aligner, SpokenText
from model.beam import BeamSearch
from model.cache import Reach
from model.dimensions import Dimensions
from model.graphs import steps_for
from model.hearing import Encoded, Hearing
from model.options import DecodeOptions
from model.progress import PartProgress
from model.queue import LongestFirst
from model.reading import Slot
from model.sampling import Sampler, random_stream
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Transcript
from model.transfer import to_device
from model.vote import elect
from model.words import WordTiming

# Windows that are encoded together: on a CPU so few that none waits long, on a GPU enough to fill it.
ENCODE_BATCH = {"cpu": 4, "cuda": 16}


class Net(Protocol):
    """What the engine asks of a net; `model.whisper.Whisper` documents the shapes."""

    dims: Dimensions

    @property
    def device(self) -> torch.device: ...
    def new_cache(self, slots: int, lanes: int = 1) -> Any: ...
    def encode(self, mel: Tensor) -> Tensor: ...
    def admit(self, features: Tensor, cache: Any, slots: Tensor) -> None: ...
    def decode(self, tokens: Tensor, positions: Tensor, cache: Any, reach: Reach) -> Tensor: ...
    def project(self, hidden: Tensor) -> Tensor: ...


@dataclass
class Counters:
    """What the engine did, for progress, metrics and tests."""

    turns: int = 0
    slot_turns: int = 0  # occupied slots, summed over turns
    encoded_windows: int = 0  # language windows included
    encoded_frames: int = 0  # log-mel frames that the encoder read, padding included
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


class Engine:
    """`submit` parts from any thread; call `turn` from one until it returns False, or `drain`.

    slots: windows decoded together. encode_batch: windows encoded together, `ENCODE_BATCH` if None. Neither changes a
    token.
    aligner: finds the times of words, if `options` ask for them.
    Raises: `UsageError` when the model lacks the language or the task that `options` ask for.
    """

    def __init__(
        self,
        net: Net,
        tokenizer: Tokenizer,
        options: DecodeOptions,
        slots: int = 16,
        encode_batch: int | None = None,
        aligner: Aligner | None = None,
    ) -> None:
        tokenizer.sot_sequence(options.language or "en", options.task)  # a vocabulary that lacks them says so now
        self.slots = slots
        self.counters = Counters()
        self._net, self._tokenizer, self._options = net, tokenizer, options
        self._encode_batch = encode_batch or ENCODE_BATCH[net.device.type]
        self._aligner = aligner if options.word_timestamps else None
        self._lanes = max(options.beam_size, options.best_of)
        self._cache = net.new_cache(slots, self._lanes)
        self.steps = steps_for(net, self._cache, slots)
        self._sampler = Sampler(tokenizer, options, net.dims, slots, net.device, self._lanes)
        self._hearing = Hearing(net, tokenizer, options)
        self._inbox: SimpleQueue[_Work] = SimpleQueue()
        self._order = itertools.count()
        self._unresolved: dict[int, _Work] = {}  # by order: all that were taken in, wherever a failure finds them
        self._waiting: LongestFirst[_Work] = LongestFirst()
        self._encoded: deque[Encoded] = deque()
        self._active: list[Slot | None] = []  # None: freed in this turn
        self._audio: list[int] = [0] * slots  # positions of audio that each slot holds

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
        self._sample()
        self._judge([row for row, slot in enumerate(self._slots()) if slot.has_ended()])
        self._fill()
        self._feed()
        return True

    def fail(self, error: BaseException) -> None:
        """Fail every part in the pool with `error`: nobody waits for a dead engine."""
        self._take_inbox()
        for work in self._unresolved.values():
            work.future.set_exception(error)
        self._unresolved.clear()
        self._active = []
        self._waiting.clear()
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
            self._waiting.push(work, work.progress.remaining_frames, work.order)
        else:
            del self._unresolved[work.order]
            work.future.set_result(work.progress.transcript)

    def _fill(self) -> None:
        """Refill free slots at once; then close the gaps, so that occupied slots are a dense prefix."""
        free = [row for row, slot in enumerate(self._active) if slot is None]
        free += range(len(self._active), self.slots)
        batch: list[Encoded] = []
        while len(batch) < len(free) and (self._encoded or self._waiting):
            if not self._encoded:
                self._encode()
            batch.append(self._encoded.popleft())
        if batch:
            self._active += [None] * (self.slots - len(self._active))
            self._admit(batch, free[: len(batch)])
        self._close_gaps()
        if self._hearing.runs_ahead and not self._encoded and self._waiting:
            self._encode()  # while the slots decode

    def _encode(self) -> None:
        """Encode the next waiting windows as one batch, more than there are free slots if more wait."""
        works = [self._waiting.pop() for _ in range(min(self._encode_batch, len(self._waiting)))]
        self._encoded += self._hearing.encode([(work.progress, work.order) for work in works])
        self.counters.encoded_windows = self._hearing.encoded_windows
        self.counters.encoded_frames = self._hearing.encoded_frames

    def _admit(self, batch: Sequence[Encoded], slots: Sequence[int]) -> None:
        """Put encoded windows into slots: find the language where it is unknown, then read the prompts."""
        self._hearing.wait(batch)
        ballots = self._hear_ballots(batch)
        self._hold([encoded.features for encoded in batch], slots)
        voters = [index for index, encoded in enumerate(batch) if encoded.votes]
        votes = self._languages([slots[index] for index in voters])
        own = dict(zip(voters, votes, strict=True))
        for index, encoded in enumerate(batch):
            heard = [*ballots[index], *([own[index]] if index in own else [])]
            if heard:
                best, probability = elect(heard)
                encoded.progress.hear_language(self._tokenizer.languages[best], probability)
        prompts = [encoded.progress.prompt() for encoded in batch]
        no_speech_probs = self._prefill(prompts, slots)
        for encoded, slot, prompt, no_speech in zip(batch, slots, prompts, no_speech_probs, strict=True):
            self._active[slot] = Slot(
                encoded.progress,
                encoded.order,
                len(prompt),
                no_speech,
                self._options,
                self._tokenizer,
                self._net.dims,
            )
            self._start(slot)

    def _hold(self, features: Sequence[Tensor], slots: Sequence[int]) -> None:
        """Keep what `slots` hear, features (A, D) each."""
        for audio in sorted({len(own) for own in features}):
            same = [index for index, own in enumerate(features) if len(own) == audio]
            self._net.admit(
                torch.stack([features[index] for index in same]), self._cache, self._ids([slots[i] for i in same])
            )
            for index in same:
                self._audio[slots[index]] = audio

    def _hear_ballots(self, batch: Sequence[Encoded]) -> list[list[Any]]:
        """Language probabilities of the other windows that have a say, heard in free slots."""
        ballots = [(index, features) for index, encoded in enumerate(batch) for features in encoded.ballots]
        heard: list[list[Any]] = [[] for _ in batch]
        free = [slot for slot in range(self.slots) if slot >= len(self._active) or self._active[slot] is None]
        for begin in range(0, len(ballots), len(free)):
            some = ballots[begin : begin + len(free)]
            slots = free[: len(some)]
            self._hold([features for _, features in some], slots)
            for (index, _), probabilities in zip(some, self._languages(slots), strict=True):
                heard[index].append(probabilities)
        return heard

    def _languages(self, slots: Sequence[int]) -> list[Any]:
        """Language probabilities (languages,) of what each of `slots` holds."""
        return [*self._hearing.languages(self._cache, self._ids(slots))] if slots else []

    def _prefill(self, prompts: Sequence[list[int]], slots: Sequence[int]) -> list[float]:
        """Feed whole prompts, padded to the longest; returns the no-speech probability of each, read at `sot`."""
        longest = max(map(len, prompts))
        padded = [prompt + [self._tokenizer.eot] * (longest - len(prompt)) for prompt in prompts]
        tokens, rows = self._ids(padded), self._ids([slot * self._lanes for slot in slots])
        positions = torch.arange(longest, device=self._net.device).expand_as(tokens)  # (B, T)
        hidden = self._net.decode(tokens, positions, self._cache, self._reach(slots, longest, rows))  # (B, T, D)
        index = torch.arange(len(prompts), device=self._net.device)
        at_end = hidden[index, self._ids([len(prompt) - 1 for prompt in prompts])]  # (B, D)
        at_sot = hidden[index, self._ids([prompt.index(self._tokenizer.sot) for prompt in prompts])]  # (B, D)
        for slot, first_logits in zip(slots, self._net.project(at_end), strict=True):
            self._sampler.admit(slot, first_logits)
            lanes = range(slot * self._lanes, (slot + 1) * self._lanes)
            if len(lanes) > 1:
                self._cache.follow(lanes[1:], [lanes[0]] * len(lanes[1:]), longest)
        return self._net.project(at_sot).softmax(-1)[:, self._tokenizer.no_speech].tolist()

    def _start(self, row: int) -> None:
        """Begin the attempt of a slot. The prompt is in the cache already, and so are its logits."""
        slot = self._slot(row)
        window = (self._options.seed, slot.progress.part.part_id, slot.progress.seek, slot.attempt)
        streams = [random_stream(*window, lane) for lane in range(slot.samples)]
        self._sampler.start(row, slot.temperature, streams)
        self.counters.attempts += 1

    def _close_gaps(self) -> None:
        while None in self._active:
            last = self._active.pop()
            if last is not None:
                gap = self._active.index(None)
                self._active[gap] = last
                self._audio[gap] = self._audio[len(self._active)]
                self._cache.move(len(self._active), gap)
                self._sampler.move(len(self._active), gap)

    # --- slots to segments ----------------------------------------------------------------------------------------

    def _sample(self) -> None:
        """One token for every lane: taken greedily or drawn, or searched for among the likeliest of all lanes."""
        slots, width = self._slots(), self._lanes
        tokens, logprobs = self._sampler.choose(len(slots))
        searching = [row for row, slot in enumerate(slots) if isinstance(slot.reading, BeamSearch)]
        likeliest = dict(zip(searching, self._sampler.likeliest(searching), strict=True))
        parents = list(range(len(slots) * width))
        for row, slot in enumerate(slots):
            lanes = slice(row * width, (row + 1) * width)
            if row in likeliest:
                chosen = slot.search(*likeliest[row])
                parents[row * width : row * width + len(chosen)] = [row * width + lane for lane in chosen]
            else:
                slot.sample(tokens[lanes], logprobs[lanes])
            slot.fed += [self._tokenizer.eot] * (width - len(slot.fed))
            tokens[lanes] = slot.fed
        self._follow(parents)
        self._sampler.record(tokens)
        self.counters.tokens += len(slots)

    def _follow(self, parents: Sequence[int]) -> None:
        """Let each lane go on from the history of its parent."""
        moved = [(row, parent) for row, parent in enumerate(parents) if row != parent]
        if moved:
            text = max(slot.position for slot in self._slots()) + 1
            rows, origins = self._ids(moved).T
            self._cache.follow(rows, origins, text)
            self._sampler.follow(parents)

    def _judge(self, ended: Sequence[int]) -> None:
        """Accept each window that ended, or start it again at the next temperature."""
        accepted: list[tuple[int, Attempt]] = []
        for row in ended:
            slot = self._slot(row)
            attempt, failed = self._verdict(slot)
            if failed:
                slot.retry(failed)
                self._start(row)
            else:
                accepted.append((row, attempt))
        for (row, attempt), words in zip(accepted, self._find_words(accepted), strict=True):
            self._accept(row, attempt, words)

    def _verdict(self, slot: Slot) -> tuple[Attempt, tuple[str, ...]]:
        return slot.verdict()

    def _find_words(self, accepted: Sequence[tuple[int, Attempt]]) -> Sequence[Sequence[WordTiming] | None]:
        """The words of each window and their times, while its slot still holds what was heard."""
        if self._aligner is None or not accepted:
            return [None] * len(accepted)
        texts = []
        for row, attempt in accepted:
            progress = self._slot(row).progress
            tokens = progress.text_of(attempt)
            texts.append(SpokenText(progress.start_symbols(), tokens, progress.window_frames, progress.language))
        slots = [row for row, _ in accepted]
        reach = self._reach(slots, self._net.dims.n_text_ctx, self._ids([slot * self._lanes for slot in slots]))
        return self._aligner.align(self._cache, reach, texts)

    def _accept(self, row: int, attempt: Attempt, words: Sequence[WordTiming] | None) -> None:
        slot = self._slot(row)
        progress = slot.progress
        seek = progress.seek
        progress.transcript.tokens += slot.sampled
        progress.accept(attempt, slot.attempt + 1, tuple(slot.rules_fired), words)
        self.counters.windows += 1
        self.counters.audio_frames += progress.seek - seek
        self._active[row] = None
        self._wait(self._unresolved[slot.order])

    def _feed(self) -> None:
        """One decoder step for all slots. Slots that only just began ride along; what they compute is dropped."""
        slots, width, eot = self._slots(), self._lanes, self._tokenizer.eot
        fed = [row for row, slot in enumerate(slots) if slot.fed]
        if not fed:
            return
        tokens = [[token] for slot in slots for token in (slot.fed or [eot] * width)]
        positions = [[slot.position] for slot in slots for _ in range(width)]
        reach = self._reach(range(len(slots)), max(slot.position for slot in slots) + 1)
        some = len(fed) < len(slots)
        rows = self._ids([row * width + lane for row in fed for lane in range(width)]) if some else None
        fed_tokens, fed_positions = self._ids([tokens, positions])  # (n·W, 1) each, in one copy
        logits = self.steps(fed_tokens, fed_positions, reach, rows)  # (rows, V)
        self._sampler.update(slice(len(tokens)) if rows is None else rows, logits)

    def _reach(self, slots: Sequence[int], text: int, rows: Tensor | None = None) -> Reach:
        ragged = any(self._audio[slot] < self._net.dims.n_audio_ctx for slot in slots)
        side_by_side = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        return Reach(rows, text, ragged, slice(slots[0], slots[0] + len(slots)) if side_by_side else None)

    def _slots(self) -> list[Slot]:
        """The occupied slots, when there is no gap among them."""
        return [self._slot(row) for row in range(len(self._active))]

    def _slot(self, row: int) -> Slot:
        slot = self._active[row]
        assert slot is not None, f"slot {row} is empty"
        return slot

    def _ids(self, values: Sequence[Any]) -> Tensor:
        return to_device(values, self._net.device)
