"""The engine on a thread of its own, and the model stage in this process: real weights, real speech, no Ray."""

from __future__ import annotations

import asyncio
import shutil
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.samples import assemble, clips, read_clip
from model.dimensions import SAMPLE_RATE
from model.engine import Engine
from model.errors import ModelError
from model.options import DecodeOptions
from model.transcript import Segment, Transcript, Word
from pipeline.config import Config, ReadOptions, RunOptions
from pipeline.job import Job, Model
from pipeline.parts import ReadParts
from pipeline.placement import Placement
from pipeline.records import AUDIO, RESULT
from pipeline.run import Run
from pipeline.transcriber import EngineThread, Transcriber, _segment_row
from tests.model.scripted import ScriptedNet, assert_same, saying, scripted_part, transcribe
from tests.pipeline.runs import THREADS, TINY, Alone

PATIENCE_SECONDS = 30.0
PLACE = Placement(model_actors=1, model_cpus=1.0, model_gpus=0.0, threads=THREADS, slots=4, decode_actors=1)
WORD = "<0.00> Word.<2.00>"

# An engine that dies shows its traceback in the log of its process, which pytest takes for an accident, perhaps only in
# the test after.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


# --- the engine on its thread -------------------------------------------------------------------------------------


def driven(net: ScriptedNet, slots: int = 2) -> EngineThread:
    return EngineThread(Engine(net, net.tokenizer, DecodeOptions(), slots))


def results(futures: list[Future[Transcript]]) -> list[Transcript]:
    return [future.result(PATIENCE_SECONDS) for future in futures]


def test_parts_are_transcribed_on_another_thread() -> None:
    net, threads = saying({}, WORD), set()
    spoken = net.script
    net.script = lambda *asked: threads.add(threading.current_thread().name) or spoken(*asked)
    parts = [scripted_part(number, 40) for number in range(5)]
    engine = driven(net)
    assert_same(results([engine.submit(part) for part in parts]), transcribe(saying({}, WORD), parts))
    assert threads == {"engine"}


def test_an_engine_that_has_run_dry_wakes_up_again() -> None:
    engine = driven(saying({}, WORD))
    for number in range(3):
        (transcript,) = results([engine.submit(scripted_part(number, 30))])
        assert transcript.part_id == f"part-{number}" and len(transcript.segments) == 1


def test_parts_of_many_threads_share_one_engine() -> None:
    engine = driven(saying({}, WORD))
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(lambda number: engine.submit(scripted_part(number, 30)), range(24)))
        assert [transcript.part_id for transcript in results(futures)] == [f"part-{number}" for number in range(24)]


class Death(Exception):
    """What a net may die of."""


def dying(net: ScriptedNet) -> threading.Event:
    """Let `net` stop at its first word until the event is set, and die then."""
    gate = threading.Event()

    def die(*asked: Any) -> Any:
        assert gate.wait(PATIENCE_SECONDS)
        raise Death("out of memory")

    net.script = die
    return gate


def test_when_the_engine_dies_every_waiting_part_fails_with_its_error() -> None:
    net = saying({}, WORD)
    gate = dying(net)
    engine = driven(net, slots=2)
    waiting = [engine.submit(scripted_part(number, 30)) for number in range(7)]  # in slots, encoded, in the inbox
    gate.set()
    errors = [future.exception(PATIENCE_SECONDS) for future in waiting]
    assert all(isinstance(error, Death) for error in errors)
    assert len({id(error) for error in errors}) == 1


def test_a_dead_engine_refuses_every_later_part_at_once() -> None:
    net = saying({}, WORD)
    dying(net).set()
    engine = driven(net)
    assert isinstance(engine.submit(scripted_part(0, 30)).exception(PATIENCE_SECONDS), Death)
    for number in (1, 2):
        future = engine.submit(scripted_part(number, 30))
        assert future.done() and isinstance(future.exception(), Death)


def test_no_part_is_lost_between_the_last_breath_and_the_death() -> None:
    """Threads that go on submitting while the engine dies: whatever they get in return says so."""
    for _ in range(20):
        net = saying({}, WORD)
        gate = dying(net)
        engine = driven(net)
        part = scripted_part(0, 30)
        engine.submit(part)
        with ThreadPoolExecutor(4) as threads:
            submitted = [threads.submit(engine.submit, part) for _ in range(100)]
            gate.set()
            futures = [future.result(PATIENCE_SECONDS) for future in submitted]
        assert all(isinstance(future.exception(PATIENCE_SECONDS), Death) for future in futures)


def test_a_part_that_nobody_waits_for_any_more_kills_nobody() -> None:
    net, gate = saying({}, WORD), threading.Event()
    spoken = net.script

    def waiting(*asked: Any) -> Any:
        gate.wait(PATIENCE_SECONDS)
        return spoken(*asked)

    net.script = waiting
    engine = driven(net, slots=1)
    first, given_up, last = (engine.submit(scripted_part(number, 30)) for number in range(3))
    given_up.cancel()
    gate.set()
    assert [transcript.part_id for transcript in results([first, last])] == ["part-0", "part-2"]


# --- the stage ----------------------------------------------------------------------------------------------------


class Told:
    """A tally that only remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def transcribed(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture(scope="module")
def job(tiny: Model) -> Job:
    config = Config(model=TINY, read=ReadOptions(part_seconds=5.0), run=RunOptions(precision="float32"))
    return Job(config, tiny, PLACE, "nowhere")


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def stage(job: Job, told: Told) -> Iterator[Transcriber]:
    before = torch.get_num_threads()
    yield Transcriber(job, told)  # type: ignore[arg-type]
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def long_file(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English clips after each other, 8.5 seconds."""
    folder = tmp_path_factory.mktemp("english")
    shutil.copytree(samples / "en", folder / "en")
    return assemble(folder, folder / "long.wav")


@pytest.fixture(scope="module")
def read(job: Job) -> Callable[..., pa.Table]:
    """`records.AUDIO` rows of files, as the stage before makes them."""

    def read(*files: Path) -> pa.Table:
        manifest = Run.look([str(file) for file in files], None, job).plan.manifest
        reader = ReadParts(job.model.n_mels, job.generation, job.config.read)
        return pa.concat_tables(reader(manifest))

    return read


Read = Callable[..., pa.Table]


@dataclass(frozen=True)
class Heard:
    """The parts of the long file before and after the stage, and what the tally was told of them."""

    audio: pa.Table
    found: pa.Table
    told: list[float]


@pytest.fixture(scope="module")
def heard(stage: Transcriber, told: Told, read: Read, long_file: Path) -> Heard:
    audio = read(long_file).combine_chunks()
    assert audio.num_rows >= 2
    told.seconds.clear()
    return Heard(audio, asyncio.run(stage(audio)), [*told.seconds])


def test_rows_are_those_of_the_record_and_keep_what_was_read(heard: Heard) -> None:
    assert heard.found.schema == RESULT
    kept = [name for name in AUDIO.names if name in RESULT.names]
    assert heard.found.select(kept).equals(heard.audio.select(kept))
    for row in heard.found.to_pylist():
        assert row["model"] == TINY and row["language"] == "en" and row["language_probability"] is None
        assert row["segments"] == len(row["segment_rows"]) > 0
        assert row["windows"] == 1 and row["tokens"] > 0
        assert 0 < row["covered_seconds"] == pytest.approx(sum(s["end"] - s["start"] for s in row["segment_rows"]))
        assert 0 < row["transcribe_seconds"] < PATIENCE_SECONDS
        assert "/" in row["worker"]


def test_segments_are_those_of_the_engine_counted_from_the_start_of_the_file(
    heard: Heard, long_file: Path, alone: Alone
) -> None:
    pcm = np.concatenate([_with_gap(read_clip(path)) for path in clips(long_file.parent)])
    for row in heard.found.to_pylist():
        expected = alone(row["part_id"], pcm[round(row["start"] * SAMPLE_RATE) : round(row["end"] * SAMPLE_RATE)])
        assert [s["segment_index"] for s in row["segment_rows"]] == list(range(len(expected.segments)))
        for stored, segment in zip(row["segment_rows"], expected.segments, strict=True):
            assert (stored["text"], stored["tokens"]) == (segment.text, list(segment.tokens))
            assert stored["start"] == row["start"] + segment.start
            assert stored["end"] == row["start"] + segment.end
            assert stored["avg_logprob"] == pytest.approx(segment.avg_logprob, abs=1e-4)
            assert (stored["temperature"], stored["attempts"]) == (segment.temperature, segment.attempts)
    assert row["start"] > 0, "no part was checked that begins later than its file"


HEARD = Segment(1.0, 2.0, " Hi.", (1,), 0.0, -0.1, 1.0, 0.0, 1, ())
IN_WELSH = Transcript("part", language="cy", language_probability=0.4)


def test_a_segment_is_in_the_language_of_its_part_unless_it_has_one() -> None:
    def language(segment: Segment) -> tuple[str, float | None]:
        row = _segment_row(0, segment, IN_WELSH, 60.0)
        return row["language"], row["language_probability"]

    assert language(HEARD) == ("cy", 0.4)
    assert language(replace(HEARD, language="de", language_probability=0.9)) == ("de", 0.9)
    assert language(replace(HEARD, language="de")) == ("de", None), "the doubt about another language is not its own"


def test_words_are_counted_from_the_start_of_the_file_as_segments_are() -> None:
    words = (Word(" Hi", 1.0, 1.5, 0.9), Word(".", 1.5, 2.0, 0.8))
    row = _segment_row(3, replace(HEARD, words=words), IN_WELSH, 60.0)
    assert (row["segment_index"], row["start"], row["end"]) == (3, 61.0, 62.0)
    assert row["words"] == [
        {"word": " Hi", "start": 61.0, "end": 61.5, "probability": 0.9},
        {"word": ".", "start": 61.5, "end": 62.0, "probability": 0.8},
    ]
    assert _segment_row(0, HEARD, IN_WELSH, 60.0)["words"] is None
    assert _segment_row(0, replace(HEARD, words=()), IN_WELSH, 60.0)["words"] == []
    stored = pa.Table.from_pylist([{"segment_rows": [row]}], schema=pa.schema([RESULT.field("segment_rows")]))
    assert stored.to_pylist()[0]["segment_rows"][0] == row | {"tokens": [1], "rules_fired": []}


def _with_gap(pcm: np.ndarray) -> np.ndarray:
    return np.concatenate([pcm, np.zeros(SAMPLE_RATE // 2, np.int16)])


def test_a_row_without_audio_passes_through(stage: Transcriber, read: Read, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "list.mp3").write_text("bread, milk\n")
    (tmp_path / "empty.wav").touch()
    batch = read(tmp_path / "list.mp3", samples / "en" / "hello_world.wav", tmp_path / "empty.wav")
    listed, spoken, empty = asyncio.run(stage(batch)).to_pylist()
    assert spoken["status"] == "ok" and "hello world" in spoken["segment_rows"][0]["text"].lower()
    for row, before in ((listed, batch.to_pylist()[0]), (empty, batch.to_pylist()[2])):
        assert row["status"] == before["status"] not in ("ok", "failed")
        assert row["error"] == before["error"] and row["error"]
        assert (row["segment_rows"], row["segments"], row["windows"], row["tokens"]) == ([], 0, 0, 0)
        assert row["language"] is None and row["covered_seconds"] == 0.0


def test_silence_is_not_read_and_costs_nothing(stage: Transcriber, read: Read, samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(bytes(2 * 4 * SAMPLE_RATE))
    batch = read(path, samples / "en" / "hello_world.wav")
    silent, spoken = asyncio.run(stage(batch)).to_pylist()
    assert (silent["status"], silent["speech_seconds"], silent["windows"], silent["segment_rows"]) == ("ok", 0.0, 0, [])
    assert spoken["windows"] == 1 and 0 < spoken["speech_seconds"] < spoken["end"]


def test_only_the_spans_that_were_heard_are_read(stage: Transcriber, read: Read, samples: Path) -> None:
    """The same samples, heard for the first second only, and heard by nobody."""
    batch = read(samples / "en" / "quick_brown_fox.wav")
    where = batch.schema.get_field_index("speech")

    def text(spans: list[list[int]] | None) -> str:
        row = asyncio.run(
            stage(batch.set_column(where, AUDIO.field("speech"), pa.array([spans], AUDIO.field("speech").type)))
        )
        return "".join(segment["text"] for segment in row.to_pylist()[0]["segment_rows"])

    assert "lazy dog" in text(None) and "lazy dog" in text(batch["speech"].to_pylist()[0])
    assert "lazy dog" not in text([[0, 100]])


def test_a_slice_of_a_larger_block_is_read_at_its_own_place(stage: Transcriber, heard: Heard) -> None:
    """Ray cuts batches out of blocks without copying."""
    last = heard.audio.num_rows - 1
    piece = asyncio.run(stage(heard.audio.slice(last)))
    assert piece["part_id"].to_pylist() == heard.found["part_id"].to_pylist()[last:]
    assert _texts(piece) == _texts(heard.found)[last:]


def _texts(found: pa.Table) -> list[list[str]]:
    return [[segment["text"] for segment in rows] for rows in found["segment_rows"].to_pylist()]


def test_calls_share_the_engine_and_each_gets_its_own(stage: Transcriber, read: Read, samples: Path) -> None:
    batches = [read(path) for path in clips(samples) if path.parent.name == "en"]

    async def together() -> list[pa.Table]:
        return await asyncio.gather(*(stage(batch) for batch in batches))

    found = asyncio.run(together())
    assert [t["part_id"].to_pylist() for t in found] == [b["part_id"].to_pylist() for b in batches]
    assert ["hello world" in _texts(table)[0][0].lower() for table in found] == [False, True, False]


def test_an_empty_batch_is_an_empty_table(stage: Transcriber) -> None:
    found = asyncio.run(stage(AUDIO.empty_table()))
    assert found.schema == RESULT and found.num_rows == 0


def test_the_tally_hears_of_every_part(heard: Heard) -> None:
    lengths = [row["end"] - row["start"] for row in heard.audio.select(["start", "end"]).to_pylist()]
    assert sorted(heard.told) == sorted(lengths)


def test_torch_takes_the_threads_that_were_placed(stage: Transcriber) -> None:
    assert torch.get_num_threads() == THREADS


def test_other_weights_than_those_of_the_plan_are_refused(job: Job) -> None:
    other = replace(job, model=replace(job.model, sha256="0" * 64))
    with pytest.raises(ModelError) as caught:
        Transcriber(other, Told())  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert f"has sha256 {job.model.sha256[:12]}, but the run was planned with 000000000000: " in sentence
    assert sentence.endswith("install the same weights on every machine.")
