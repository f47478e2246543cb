"""Tokens that openai-whisper finds in three clips, so that a build without it still guards them.

The numbers are those of `whisper.transcribe(..., fp16=False)`, openai-whisper 20250625, on the CPU, with OpenAI's
weights as the extra `demo` packages them; the clips are those of pytest-audioeval 0.1.3 (MIT). `tests/parity` compares
everything, and needs the extra `parity`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from jobs.samples import fetch_samples, read_clip
from model.dimensions import HOP_LENGTH
from model.engine import Engine
from model.errors import ModelError, SourceError
from model.features import log_mel, pcm_to_float
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Part, Transcript
from model.whisper import from_state
from pipeline.weights import load_model


@dataclass(frozen=True)
class Golden:
    """What the reference returned for one clip; every one is a single segment from 0.0 at temperature 0."""

    model: str
    clip: str
    language: str
    language_probability: float | None
    tokens: tuple[int, ...]
    end: float
    avg_logprob: float
    no_speech_prob: float
    text: str


GOLDEN = (
    Golden(
        model="tiny.en",
        clip="en/quick_brown_fox",
        language="en",
        language_probability=None,
        tokens=(50363, 383, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13, 50493),
        end=2.6,
        avg_logprob=-0.31949,
        no_speech_prob=0.01195,
        text=" The quick brown fox jumps over the lazy dog.",
    ),
    Golden(
        model="base",
        clip="fr/comptage",
        language="fr",
        language_probability=0.99800,
        # fmt: off
        tokens=(
            50364,
            502,
            11,
            568,
            11,
            805,
            11,
            1017,
            11,
            1025,
            11,
            1386,
            11,
            1614,
            11,
            1649,
            11,
            1722,
            11,
            1266,
            13,
            50489,
        ),
        # fmt: on
        end=2.5,
        avg_logprob=-0.25034,
        no_speech_prob=0.01339,
        text=" 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    ),
    Golden(
        model="base",
        clip="ja/kazoeru",
        language="ja",
        language_probability=0.99023,
        tokens=(50364, 4762, 12249, 19004, 23, 7771, 50490),
        end=2.52,
        avg_logprob=-0.75469,
        no_speech_prob=0.03630,
        text="123457890",
    ),
)


@pytest.fixture(scope="module")
def transcripts() -> dict[str, Transcript]:
    """Each clip of `GOLDEN` transcribed; the clips of one model share its engine."""
    try:
        folder = fetch_samples()
        checkpoints = {model: load_model(model) for model in {golden.model for golden in GOLDEN}}
    except (ModelError, SourceError) as error:
        pytest.skip(str(error))
    futures = {}
    for model, checkpoint in checkpoints.items():
        tokenizer = Tokenizer.for_dimensions(checkpoint.dims)
        net = from_state(checkpoint.dims, checkpoint.state)
        engine = Engine(net, tokenizer, DecodeOptions.exact(), slots=2)
        for golden in GOLDEN:
            if golden.model == model:
                samples = pcm_to_float(read_clip(folder / f"{golden.clip}.wav"))
                mel = log_mel(samples, checkpoint.dims.n_mels)
                futures[golden.clip] = engine.submit(Part(golden.clip, mel, len(samples) // HOP_LENGTH))
        engine.drain()
    return {clip: future.result() for clip, future in futures.items()}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.model}-{golden.clip}")
def test_segment_is_the_references(golden: Golden, transcripts: dict[str, Transcript]) -> None:
    transcript = transcripts[golden.clip]
    (segment,) = transcript.segments
    assert segment.tokens == golden.tokens
    assert segment.text == golden.text
    assert (segment.start, segment.end, segment.temperature) == (0.0, golden.end, 0.0)
    assert segment.avg_logprob == pytest.approx(golden.avg_logprob, abs=1e-3)
    assert segment.no_speech_prob == pytest.approx(golden.no_speech_prob, abs=1e-3)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.model}-{golden.clip}")
def test_language_is_the_references(golden: Golden, transcripts: dict[str, Transcript]) -> None:
    transcript = transcripts[golden.clip]
    assert transcript.language == golden.language
    if golden.language_probability is None:
        assert transcript.language_probability is None
    else:
        assert transcript.language_probability == pytest.approx(golden.language_probability, abs=1e-3)
