"""Words and their times are openai-whisper's: the attention's path on real weights, then all the rules that follow."""

from __future__ import annotations

import gc
import importlib
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from jobs.samples import spoken
from model.alignment import Aligner, SpokenText, warp
from model.cache import Reach
from model.dimensions import HOP_LENGTH, OFFICIAL, WINDOW_FRAMES
from model.engine import Engine
from model.features import log_mel
from model.hallucination import HALLUCINATION_DROPPED
from model.options import DecodeOptions
from model.progress import PartProgress
from model.releases import RELEASES
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part, Segment, Transcript
from model.words import WordTiming, split_words

pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

STEP = 0.02  # seconds: an audio position
ROUNDING = 1e-6


@pytest.fixture
def timing() -> Any:
    """The reference's module of that name, its vocabulary read once: the file is left to the garbage collector."""
    module = pytest.importorskip("whisper.timing", reason="the extra `parity` is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        reference_tokenizer(MadeUpReference, "en")
        gc.collect()
    return module


def reference_tokenizer(dims: Any, language: str | None) -> Any:
    whisper = importlib.import_module("whisper.tokenizer")
    return whisper.get_tokenizer(dims.is_multilingual, num_languages=dims.num_languages, language=language)


def follow_heads(reference: Any, model: str) -> None:
    """Give the reference the alignment heads of a release, as its `load_model` does."""
    dims = reference.dims
    mask = torch.zeros(dims.n_text_layer, dims.n_text_head, dtype=torch.bool)
    for layer, head in RELEASES[model].alignment_heads:
        mask[layer, head] = True
    reference.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)


# --- the path of the attention ------------------------------------------------------------------------------------


def spoken_in(language: str, audio: Any, samples: Any, both: Any) -> tuple[SpokenText, torch.Tensor]:
    """All clips of a language in one window, and what is said in them."""
    net, tokenizer = both.ours.net, both.ours.tokenizer
    said = {name: text for name, text in spoken(samples).items() if name.startswith(language)}
    heard = np.concatenate([audio[name] for name in said])
    frames = len(heard) // HOP_LENGTH
    mel = torch.zeros(net.dims.n_mels, WINDOW_FRAMES)
    mel[:, :frames] = torch.from_numpy(log_mel(heard, net.dims.n_mels)[:, :frames])
    own = language if net.dims.is_multilingual else None
    tokens = tuple(tokenizer.encode(" " + " ".join(said.values())))
    return SpokenText(tokenizer.sot_sequence(own, "transcribe"), tokens, frames, own), mel


@pytest.mark.parametrize(("model", "languages"), [("base", ["en", "ja"]), ("tiny.en", ["en"])])
def test_words_lie_where_the_references_do(model, languages, sides, audio, samples, timing) -> None:
    """The same text and sound on both sides; ours all at once, the shorter ones padded."""
    both = sides(model)
    follow_heads(both.reference, model)
    net = both.ours.net
    texts, windows = zip(*(spoken_in(language, audio, samples, both) for language in languages), strict=True)
    rows, cache = torch.arange(len(texts)), net.new_cache(len(texts))
    net.admit(torch.cat([net.encode(window[None]) for window in windows]), cache, rows)
    ours = Aligner(net, both.ours.tokenizer, RELEASES[model].alignment_heads).align(cache, Reach(rows, 0), texts)
    differences: list[float] = []
    for text, window, words in zip(texts, windows, ours, strict=True):
        own = reference_tokenizer(net.dims, text.language)
        both.reference.encoder(window[None])  # remembered: `find_alignment` would encode by its slowest kernel
        theirs = timing.find_alignment(both.reference, own, list(text.tokens), window, text.frames)
        assert [(word.word, word.tokens) for word in words] == [(word.word, tuple(word.tokens)) for word in theirs]
        assert [word.probability for word in words] == pytest.approx([word.probability for word in theirs], abs=1e-4)
        for word, their in zip(words, theirs, strict=True):
            differences += [abs(word.start - their.start), abs(word.end - their.end)]
    assert len(differences) >= 40 * len(languages)
    assert np.median(differences) == 0
    assert np.percentile(differences, 95) <= STEP + ROUNDING


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 1500), (225, 600)])
def test_paths_through_random_costs_are_the_references(shape, timing) -> None:
    generator = np.random.default_rng(0)
    costs = [generator.normal(size=shape).astype(np.float32) for _ in range(3)]
    costs += [np.round(costs[0]), np.zeros(shape, np.float32)]  # ties
    for cost, first in zip(costs, warp(costs), strict=True):
        rows, columns = timing.dtw_cpu(cost.astype(np.float64))
        assert first.tolist() == columns[np.searchsorted(rows, np.arange(shape[0]))].tolist()


# --- whole transcripts --------------------------------------------------------------------------------------------


def assert_same(ours: Sequence[Segment], theirs: Sequence[dict[str, Any]]) -> None:
    """Text, times, and words with their times, to the last digit that is not rounding."""
    kept = [segment for segment in theirs if segment["text"].strip() and segment["start"] != segment["end"]]
    assert [segment.text for segment in ours] == [segment["text"] for segment in kept]
    for segment, their in zip(ours, kept, strict=True):
        assert (segment.start, segment.end) == pytest.approx((their["start"], their["end"]), abs=ROUNDING)
        words = [(word.word, word.start, word.end) for word in segment.words or ()]
        expected = [(word["word"], word["start"], word["end"]) for word in their["words"]]
        assert [word[0] for word in words] == [word[0] for word in expected]
        times, expected_times = [word[1:] for word in words], [word[1:] for word in expected]
        assert np.array(times) == pytest.approx(np.array(expected_times), abs=ROUNDING)


@pytest.mark.parametrize("silence", [None, 2.0])
def test_a_transcript_with_words_is_the_references(silence, sides, audio, timing) -> None:
    """Pauses between the clips, so that every rule about them has something to decide."""
    both = sides("tiny.en")
    follow_heads(both.reference, "tiny.en")
    net, tokenizer = both.ours.net, both.ours.tokenizer
    clips = [clip for name, clip in audio.items() if name.startswith("en/")]
    gaps = [np.zeros(seconds * 16_000, np.float32) for seconds in (1, 6, 3)]
    samples = np.concatenate([part for clip, gap in zip(clips * 2, gaps * 2, strict=True) for part in (clip, gap)])
    options = DecodeOptions.exact(temperatures=(0.0,), word_timestamps=True, hallucination_silence=silence)
    aligner = Aligner(net, tokenizer, RELEASES["tiny.en"].alignment_heads)
    engine = Engine(net, tokenizer, options, slots=2, aligner=aligner)
    future = engine.submit(Part("part", log_mel(samples, net.dims.n_mels), len(samples) // HOP_LENGTH))
    engine.drain()
    transcribe = importlib.import_module("whisper.transcribe").transcribe
    theirs = transcribe(
        both.reference,
        samples,
        fp16=False,
        temperature=0.0,
        word_timestamps=True,
        hallucination_silence_threshold=silence,
    )
    ours: Transcript = future.result(timeout=0)
    assert len(ours.segments) > 3
    assert_same(ours.segments, theirs["segments"])


# --- every rule that moves words, segments and the seek, on windows made up by the hundred ----------------------------

WORDS = ("", "one", "two", "three", "o'clock", "well-known", "(maybe", "(", "“", '"', "-", "'", "¿")
MARKS = (*".,?!:;)", "...", "?!", "。", "、", "”")
THRESHOLDS = (None, 0.1, 0.5, 2.0)


@dataclass
class MadeUp:
    """What is said in the windows of one part, and when: decided by a seed, the seek and the tokens alone."""

    seed: int
    tokenizer: Tokenizer
    prompts: list[list[int]] = field(default_factory=list)

    def generator(self, *facts: Any) -> random.Random:
        return random.Random(repr((self.seed, *facts)))

    def text(self, chance: random.Random) -> list[int]:
        words = [
            chance.choice(MARKS) if chance.random() < 0.3 else " " + chance.choice(WORDS)
            for _ in range(chance.choice((0, 1, 2, 3, 9)))
        ]
        return self.tokenizer.encode("".join(words))

    def attempt(self, seek: int) -> Attempt:
        """A window with any number of segments and any ending."""
        chance, begin = self.generator(seek), self.tokenizer.timestamp_begin
        ticks = sorted(chance.sample(range(chance.choice((200, 1501))), 2 * chance.randint(1, 4)))
        tokens: list[int] = []
        for start, end in zip(ticks[::2], ticks[1::2], strict=True):
            tokens += [begin + start, *self.text(chance), begin + end]
        ending = chance.choice(("single", "pair", "tail", "unended"))
        tokens = tokens[:-1] if ending == "unended" else tokens
        tokens += {"pair": [tokens[-1]], "tail": [tokens[-1], *self.text(chance)]}.get(ending, [])
        temperature = chance.choice((0.0, 0.2, 1.0))
        no_speech = 0.9 if chance.random() < 0.1 else 0.1
        return Attempt(tuple(tokens), self.tokenizer.decode(tokens), temperature, -1.5, no_speech, 1.0)

    def timings(self, tokens: Sequence[int], split: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[float, ...]]:
        """(start, end, probability) of each word: positions that rise, some far apart."""
        chance, at, timed = self.generator(tuple(tokens)), 0, []
        suspicious = chance.random() < 0.5
        for _ in split:
            start = at
            at = min(1500, at + chance.choice((0, 1, 2, 5, 9, 15, 15, 20, 30, 120, 400)[: 8 if suspicious else None]))
            timed.append((start / 50, at / 50, chance.choice((0.05, 0.9)) if suspicious else 0.8))
        return timed


class MadeUpReference:
    """As much of the reference's net as its `transcribe` asks for."""

    device, is_multilingual, num_languages = torch.device("cpu"), True, 99
    dims = OFFICIAL["tiny"]

    def __init__(self, said: MadeUp) -> None:
        self.said = said

    def decode(self, mel: torch.Tensor, options: Any) -> Any:
        result = importlib.import_module("whisper.decoding").DecodingResult
        self.said.prompts.append(list(options.prompt))
        own = self.said.attempt(int(mel[0, 0]))
        return result(
            audio_features=mel,
            language="en",
            tokens=list(own.tokens),
            text=own.text,
            avg_logprob=own.avg_logprob,
            no_speech_prob=own.no_speech_prob,
            temperature=own.temperature,
            compression_ratio=own.compression_ratio,
        )

    def find_alignment(self, timing: Any, _: Any, tokenizer: Any, tokens: list[int], *rest: Any) -> list[Any]:
        words, groups = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
        split = list(zip(words[:-1], groups[:-1], strict=True))
        times = self.said.timings(tokens, split)
        return [timing.WordTiming(*word, *time) for word, time in zip(split, times, strict=True)]


def by_the_reference(said: MadeUp, frames: int, silence: float | None, patch: pytest.MonkeyPatch) -> list[Any]:
    """Segments of a part whose log-mel is the number of each frame."""
    transcribe, timing = (importlib.import_module(f"whisper.{name}") for name in ("transcribe", "timing"))
    mel = torch.arange(frames + WINDOW_FRAMES, dtype=torch.float32).expand(80, -1)
    net = MadeUpReference(said)
    patch.setattr(transcribe, "log_mel_spectrogram", lambda *_, **__: mel)
    patch.setattr(timing, "find_alignment", partial(net.find_alignment, timing))
    options = {"temperature": 0.0, "language": "en", "fp16": False, "word_timestamps": True}
    result = transcribe.transcribe(net, mel, hallucination_silence_threshold=silence, logprob_threshold=None, **options)
    return list(result["segments"])


def by_us(said: MadeUp, frames: int, silence: float | None) -> PartProgress:
    options = DecodeOptions.exact(
        language="en", word_timestamps=True, hallucination_silence=silence, avg_logprob_threshold=None
    )
    part = Part("part", np.zeros((80, frames), np.float32), frames)
    progress = PartProgress(part, options, said.tokenizer, MadeUpReference.dims)
    while progress.remaining_frames > 0:
        said.prompts.append(progress.context[progress.context_start :])
        attempt = said.attempt(progress.seek)
        tokens = progress.text_of(attempt)
        split = split_words(tokens, said.tokenizer, "en")
        times = said.timings(tokens, split)
        words = [WordTiming(*word, *time) for word, time in zip(split, times, strict=True)]
        progress.accept(attempt, 1, (), words)
    return progress


@pytest.mark.parametrize("silence", THRESHOLDS)
def test_every_rule_does_what_the_references_does(silence, monkeypatch, timing) -> None:
    tokenizer = Tokenizer.for_dimensions(MadeUpReference.dims)
    fired: set[str] = set()
    for seed in range(150):
        said, expected = MadeUp(seed, tokenizer), MadeUp(seed, tokenizer)
        frames = random.Random(seed).choice((1, 150, 3000, 7001, 12345))
        theirs = by_the_reference(expected, frames, silence, monkeypatch)
        ours = by_us(said, frames, silence)
        assert said.prompts == expected.prompts, seed
        assert_same(ours.transcript.segments, theirs)
        fired |= {rule for segment in ours.transcript.segments for rule in segment.rules_fired}
    assert (HALLUCINATION_DROPPED in fired) == (silence is not None)
