"""Our side of a measurement: the bare engine, from files to texts, with a clock at every stage.

    files ─▶ read (ffmpeg), voice, cut ─▶ log-mel ─▶ engine: encode, admit, prefill, step, project; the rest is rules

The engine is not touched: something with a clock around every method stands in for its net. It refuses to know of
processes, rounds and other contenders.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from jobs.bench.contenders import Heard, Setup
from jobs.bench.recordings import Recording, total_seconds
from model.checkpoint import Checkpoint
from model.dimensions import HOP_LENGTH
from model.engine import Engine
from model.features import log_mel, pcm_to_float
from model.precision import load_net
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript
from model.whisper import Whisper
from pipeline.config import Config, RunOptions
from pipeline.cuts import PcmPart, cut_parts
from pipeline.inventory import choose_part_seconds
from pipeline.media import Decoding
from pipeline.placement import SLOTS_ON_CPU
from pipeline.precision import choose_precision
from pipeline.voice import Voice
from pipeline.weights import load_model

READ, VOICE, LOG_MEL, ENGINE, REST = "read", "voice", "log-mel", "engine", "rules and the rest"


class StageClock:
    """Seconds spent under each name, summed over threads. A name inside another is counted in both."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._adding = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._adding:
                self.seconds[stage] += time.perf_counter() - started


class Timed:
    """Something with a clock around each of its methods; all else is its own.

    stage: the name to count a call under, from the name of the method and its arguments.
    """

    def __init__(self, timed: Any, clock: StageClock, stage: Callable[[str, Sequence[Any]], str]) -> None:
        self._timed, self._clock, self._stage = timed, clock, stage

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._timed, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            with self._clock(self._stage(name, arguments)):
                return attribute(*arguments, **options)

        return call


def net_stage(method: str, arguments: Sequence[Any]) -> str:
    """Methods of a net by their names; `decode` is "prefill" where it starts a text, "step" where it goes on."""
    if method != "decode":
        return method
    positions = arguments[1]  # (B, T)
    return "prefill" if positions[0, 0] == 0 else "step"


class OurEngine:
    """One engine, kept over all runs as an actor of the pipeline keeps it; a call transcribes some recordings."""

    def __init__(self, setup: Setup, config: Config) -> None:
        self._setup, self._options = setup, config.decode
        self._slots = setup.slots or SLOTS_ON_CPU
        self._clock = StageClock()
        self._voice: Any = Timed(Voice(), self._clock, lambda *_: VOICE) if config.read.voice_activity else None
        self._engines: dict[str | None, Engine] = {}  # by language: it is an option of the whole engine
        checkpoint = load_model(setup.model)
        self._n_mels = checkpoint.dims.n_mels
        self._tokenizer = Tokenizer.for_dimensions(checkpoint.dims)
        self._net = Timed(_net(checkpoint, config.run.precision), self._clock, net_stage)

    def __call__(self, recordings: Sequence[Recording]) -> Heard:
        engine = self._engine(recordings[0].language)
        self._clock.seconds.clear()
        before = asdict(engine.counters)
        parts = self._read(recordings)
        with self._clock(ENGINE):
            futures = [[engine.submit(part) for part in own] for own in parts]
            engine.drain()
        heard = _heard([[future.result() for future in own] for own in futures])
        heard.stages = _stages(self._clock.seconds, readers=min(self._setup.threads, len(recordings)))
        heard.counters = {name: value - before[name] for name, value in asdict(engine.counters).items()}
        heard.counters["occupancy"] = heard.counters["slot_turns"] / (heard.counters["turns"] * engine.slots)
        return heard

    def _engine(self, language: str | None) -> Engine:
        if language not in self._engines:
            options = replace(self._options, language=language)
            self._engines[language] = Engine(self._net, self._tokenizer, options, slots=self._slots)
        return self._engines[language]

    def _read(self, recordings: Sequence[Recording]) -> list[list[Part]]:
        """The parts of every recording, read and turned into log-mel on as many threads as the engine may use."""
        part_seconds = self._setup.part_seconds or choose_part_seconds(total_seconds(recordings), self._slots)
        with ThreadPoolExecutor(self._setup.threads) as pool:
            # The detector sets BLAS to one thread and back; around all its calls, they do not undo each other's.
            with self._clock(READ), threadpool_limits(1):
                cut = list(pool.map(lambda r: list(cut_parts(Decoding(r.path), part_seconds, self._voice)), recordings))
            with self._clock(LOG_MEL):
                named = [(r.name, part) for r, own in zip(recordings, cut, strict=True) for part in own]
                parts = iter(list(pool.map(lambda pair: self._part(*pair), named)))
        return [[next(parts) for _ in own] for own in cut]

    def _part(self, name: str, part: PcmPart) -> Part:
        mel = log_mel(pcm_to_float(part.pcm), self._n_mels)
        speech = part.speech.spans if part.speech else None
        return Part(f"{name}/{part.index}", mel, len(part.pcm) // HOP_LENGTH, speech)


def load(setup: Setup, exact: bool = False, precision: str | None = None) -> OurEngine:
    """Our engine with the product's options, or with those of the reference; in another precision, if it is given.

    Raises: `ModelError` when the model cannot be loaded, `UsageError` when there is no such precision.
    """
    torch.set_num_threads(setup.threads)
    config = Config.exact() if exact else Config()
    return OurEngine(setup, replace(config, run=RunOptions(precision=precision or setup.precision)))


def _net(checkpoint: Checkpoint, asked: str) -> Whisper:
    precision = choose_precision(asked, on_gpu=False, cpu=torch.cpu.get_capabilities())
    return load_net(checkpoint.dims, checkpoint.state, precision, torch.device("cpu"))


def _stages(seconds: Mapping[str, float], readers: int) -> dict[str, float]:
    """Stages that add up to the whole: what lies inside another is taken out of it."""
    voice = {VOICE: seconds[VOICE] / readers} if VOICE in seconds else {}  # it was heard on all threads at once
    stages = {READ: seconds[READ] - sum(voice.values())} | voice | {LOG_MEL: seconds[LOG_MEL]}
    inside = {name: spent for name, spent in seconds.items() if name not in (READ, VOICE, LOG_MEL, ENGINE)}
    return stages | inside | {REST: seconds[ENGINE] - sum(inside.values())}


def _heard(done: Sequence[Sequence[Transcript]]) -> Heard:
    """Texts and languages of files from those of their parts."""
    texts = ["".join(segment.text for transcript in own for segment in transcript.segments) for own in done]
    languages = [own[0].language if own else None for own in done]
    return Heard(texts, languages, sum(transcript.tokens for own in done for transcript in own))
