"""The model stage: one actor holds one engine, and every part that is sent to it shares the engine's slots.

It turns rows of `records.AUDIO` into rows of `records.RESULT`. It knows no files and no tables; a part without audio
passes through untouched.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.alignment import Aligner
from model.cache import DecoderCache
from model.engine import Counters, Engine
from model.errors import ModelError
from model.precision import load_net
from model.tokenizer import Tokenizer
from model.transcript import Part, Segment, Transcript, Word
from model.whisper import Whisper
from pipeline.job import Job
from pipeline.metrics import IDLE_REPORT_SECONDS, EngineMeter
from pipeline.records import RESULT
from pipeline.tally import Tally
from pipeline.weights import load_model

# Parts in the engine beyond its slots, as a share of them. The engine serves the longest remaining part first, so the
# more parts are open, the later the first is done, is stored, and leaves the memory.
PARTS_IN_WAITING = 0.25
_INPUTS = ("mel", "mel_frames", "content_frames", "speech")  # what only the engine needs; the rest goes on to the sink
CACHE_SHARE = 0.6  # of free GPU memory for the slots; the rest is for encoding and prompts
CPU_CACHE_SHARE = 0.4  # of a machine's memory, where Ray's object store and the readers live as well


class EngineThread:
    """Drives an engine on a thread of its own, so that an actor's event loop never waits for the net.

    If the engine dies, every waiting part fails with its error, and so does every later `submit`.
    on_idle: told, now and then and when a part comes, for how many seconds there was nothing to do.
    """

    def __init__(self, engine: Engine, on_idle: Callable[[float], None] = lambda seconds: None) -> None:
        self._engine = engine
        self._on_idle = on_idle
        self._wake = threading.Event()
        self._dying = threading.Lock()  # so that a part is either in the pool when it fails, or sees that it has
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    @property
    def counters(self) -> Counters:
        """What the engine has done so far."""
        return self._engine.counters

    def submit(self, part: Part) -> Future[Transcript]:
        with self._dying:
            if self._error is None:
                future = self._engine.submit(part)
            else:
                future = Future()
                future.set_exception(self._error)
        self._wake.set()
        return future

    def _run(self) -> None:
        try:
            while True:
                self._await_parts()
                self._wake.clear()
                self._engine.drain()
        except BaseException as error:  # whatever killed the engine is what every waiting part must raise
            with self._dying:
                self._error = error
                self._engine.fail(error)
            raise

    def _await_parts(self) -> None:
        is_awake = False
        while not is_awake:
            started = time.monotonic()
            is_awake = self._wake.wait(IDLE_REPORT_SECONDS)
            self._on_idle(time.monotonic() - started)


class Transcriber:
    """Ray actor: `__init__` loads the model once, each call awaits the transcripts of one batch of parts.

    Raises: `ModelError` when the model cannot be loaded, or its weights are not those the job was planned for.
    """

    def __init__(self, job: Job, tally: Tally) -> None:
        torch.set_num_threads(job.place.threads)  # else Ray derives them from the CPUs it has booked
        checkpoint = load_model(job.model.name)
        if checkpoint.sha256 != job.model.sha256:
            raise ModelError(
                f"The model {job.model.name} on {platform.node()} has sha256 {checkpoint.sha256[:12]}, but the run was "
                f"planned with {job.model.sha256[:12]}: install the same weights on every machine."
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net = load_net(checkpoint.dims, checkpoint.state, job.config.run.precision, device)
        tokenizer = Tokenizer.for_dimensions(checkpoint.dims)
        slots = min(job.place.slots, _room_for_slots(net, max(job.config.decode.beam_size, job.config.decode.best_of)))
        aligner = Aligner(net, tokenizer, checkpoint.alignment_heads)
        self._meter = EngineMeter(job.model.name, slots)
        engine = Engine(net, tokenizer, job.config.decode, slots, aligner=aligner)
        self._engine = EngineThread(engine, self._meter.idled)
        self._open = asyncio.Semaphore(slots + max(1, int(slots * PARTS_IN_WAITING)))
        self._model = job.model
        self._worker = f"{platform.node()}/{os.getpid()}"
        self._tally = tally

    async def __call__(self, batch: pa.Table) -> pa.Table:
        rows = await asyncio.gather(*(self._transcribe(row) for row in _rows(batch)))
        return pa.Table.from_pylist(rows, schema=RESULT)

    async def _transcribe(self, row: dict[str, Any]) -> dict[str, Any]:
        mel, frames, content_frames, speech = (row.pop(name) for name in _INPUTS)
        async with self._open:
            started = time.perf_counter()
            transcript = Transcript(row["part_id"])
            if mel is not None:
                spans = None if speech is None else tuple((start, end) for start, end in speech)
                part = Part(row["part_id"], mel.reshape(self._model.n_mels, frames), content_frames, spans)
                transcript = await asyncio.wrap_future(self._engine.submit(part))
                self._meter.worked(self._engine.counters)
            elapsed = time.perf_counter() - started
        self._tally.transcribed(row["end"] - row["start"])
        return row | self._evidence(transcript, row["start"]) | {"transcribe_seconds": elapsed}

    def _evidence(self, transcript: Transcript, part_start: float) -> dict[str, Any]:
        segments = [_segment_row(i, s, transcript, part_start) for i, s in enumerate(transcript.segments)]
        return {
            "model": self._model.name,
            "language": transcript.language,
            "language_probability": transcript.language_probability,
            "windows": transcript.windows,
            "windows_retried": transcript.windows_retried,
            "windows_skipped": transcript.windows_skipped,
            "tokens": transcript.tokens,
            "covered_seconds": sum(segment["end"] - segment["start"] for segment in segments),
            "segments": len(segments),
            "worker": self._worker,
            "segment_rows": segments,
        }


def _room_for_slots(net: Whisper, lanes: int) -> int:
    """Slots whose caches fit into what the GPU has free, or into a share of the machine's memory; at least one."""
    if net.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(net.device)
        room = free * CACHE_SHARE
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_CACHE_SHARE
    return max(1, int(room) // DecoderCache.slot_bytes(net.dims, net.dtype, net.device, lanes))


def _rows(batch: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts; the log-mel stays a float32 view of Arrow's memory instead of becoming a bytes object."""
    rows: list[dict[str, Any]] = batch.drop_columns(["mel"]).to_pylist()
    for row, mel in zip(rows, batch["mel"], strict=True):
        row["mel"] = np.frombuffer(mel.as_buffer(), np.float32) if mel.is_valid else None
    return rows


def _segment_row(index: int, segment: Segment, transcript: Transcript, part_start: float) -> dict[str, Any]:
    """One segment as `records.RESULT` holds it, its times counted from the start of the file.

    A segment that has no language of its own is in the part's.
    """
    language, probability = segment.language, segment.language_probability
    if language is None:
        language, probability = transcript.language, transcript.language_probability
    return {
        "segment_index": index,
        "start": part_start + segment.start,
        "end": part_start + segment.end,
        "text": segment.text,
        "language": language,
        "language_probability": probability,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        "tokens": segment.tokens,
        "attempts": segment.attempts,
        "rules_fired": segment.rules_fired,
        "words": None if segment.words is None else [_word_row(word, part_start) for word in segment.words],
    }


def _word_row(word: Word, part_start: float) -> dict[str, Any]:
    return {
        "word": word.word,
        "start": part_start + word.start,
        "end": part_start + word.end,
        "probability": word.probability,
    }
