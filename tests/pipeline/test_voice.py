"""The detector against the package's own net and on real speech; its rules on probabilities written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from jobs.samples import CLIPS, clips, read_clip
from model.dimensions import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE
from model.errors import ModelError
from pipeline import voice as module
from pipeline.voice import (
    FRAME_SAMPLES,
    MIN_PAUSE_FRAMES,
    PAD_SECONDS,
    Voice,
    _weights,
    longest_pause,
    speaking,
    speech_of,
)
from tests import nonspeech

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice()


@pytest.fixture(scope="module")
def spoken(samples: Path) -> dict[str, np.ndarray]:
    """The clips, `LANGUAGE/NAME` to samples."""
    return {f"{path.parent.name}/{path.stem}": read_clip(path) for path in clips(samples)}


def quieter(pcm: np.ndarray, decibels: float) -> np.ndarray:
    return np.rint(pcm * nonspeech.decibels(-decibels)).astype(np.int16)


# --- the net ------------------------------------------------------------------------------------------------------


JIT_NAMES = {
    "stft_conv.weight": "stft.forward_basis_buffer",
    **{f"conv{i}.{kind}": f"encoder.{i - 1}.reparam_conv.{kind}" for i in range(1, 5) for kind in ("weight", "bias")},
    **{f"lstm_cell.{kind}": f"decoder.rnn.{kind}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    **{f"final_conv.{kind}": f"decoder.decoder.2.{kind}" for kind in ("weight", "bias")},
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_it_is_the_net_of_the_package(spoken: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights of the package's own program, and without evening out, what that says frame by frame."""
    theirs = torch.jit.load(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")))
    state = {ours: theirs.state_dict()[f"_model.{name}"].numpy() for ours, name in JIT_NAMES.items()}
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in load(_weights()).items()}
    monkeypatch.setattr(module, "_weights", lambda: save(state))
    monkeypatch.setattr(module, "LOUD", 0.0)
    pcm = np.concatenate([spoken["en/hello_world"], spoken["zh/jishu"]])
    chunks = torch.from_numpy(np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)) / np.float32(32768)).split(FRAME_SAMPLES)
    with torch.no_grad():
        expected = [theirs(chunk, SAMPLE_RATE).item() for chunk in chunks]
    found = Voice().probabilities(pcm)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4
    assert found.max() > 0.9 and found.min() < 0.1


def test_blocks_change_nothing(voice: Voice, spoken: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = voice.probabilities(spoken["en/counting"])
    monkeypatch.setattr(module, "BLOCK_FRAMES", 7)
    assert np.allclose(voice.probabilities(spoken["en/counting"]), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (1, 1), (512, 1), (513, 2), (256 * 512, 256), (256 * 512 + 1, 257)]
)
def test_every_sample_lies_in_a_frame(voice: Voice, samples: int, frames: int) -> None:
    assert voice.probabilities(np.full(samples, 1000, np.int16)).shape == (frames,)


def test_what_was_heard_before_is_forgotten(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    first = voice.probabilities(spoken["en/counting"])
    voice.probabilities(spoken["en/hello_world"])
    assert np.array_equal(voice.probabilities(spoken["en/counting"]), first)


def test_it_is_hundreds_of_times_faster_than_speech(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    """By the time of all processors, which too many threads would burn."""
    pcm = np.resize(spoken["en/counting"], 60 * SAMPLE_RATE)
    spent = []
    for _ in range(3):
        started = time.process_time()
        voice.probabilities(pcm)
        spent.append(time.process_time() - started)
    assert 60 / min(spent) > 250


def test_the_package_is_not_imported_and_threads_are_left_as_they_were() -> None:
    """Importing it would leave torch with one thread."""
    code = """if True:
        import json, sys
        import numpy as np
        from threadpoolctl import threadpool_info
        from pipeline.voice import Voice
        before = [library["num_threads"] for library in threadpool_info()]
        Voice().probabilities(np.zeros(16000, np.int16))
        after = [library["num_threads"] for library in threadpool_info()]
        print(json.dumps([before == after, "silero_vad" in sys.modules, "torch" in sys.modules]))
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(said.stdout) == [True, False, False]


@pytest.mark.parametrize("weights", ["silero_vad/__init__.py", "silero_vad/data/gone.safetensors"])
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.setattr(module, "WEIGHTS", weights)
    with pytest.raises(
        ModelError, match=r"missing or of another version: install the silero-vad .* or set read\.voice"
    ):
        Voice()


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", "no-such-package")
    with pytest.raises(ModelError, match="install the no-such-package"):
        Voice()


# --- speech -------------------------------------------------------------------------------------------------------


def loud_frames(pcm: np.ndarray) -> np.ndarray:
    """Log-mel frames within 35 dB of the loudest: near enough all that is said in a studio recording."""
    frames = pcm[: len(pcm) // HOP_LENGTH * HOP_LENGTH].astype(np.float64).reshape(-1, HOP_LENGTH)
    power = np.convolve((frames**2).mean(axis=1), np.ones(3) / 3, "same")
    return np.flatnonzero(power > np.quantile(power, 0.98) * 10**-3.5)


def lost_share(voice: Voice, pcm: np.ndarray) -> float:
    """The share of what is said that lies in no span."""
    said = loud_frames(pcm)
    spans = speech_of(voice.probabilities(pcm), len(pcm)).spans
    read = np.zeros(len(pcm) // HOP_LENGTH, np.bool_)
    for start, end in spans:
        read[start:end] = True
    return 1 - float(read[said].mean())


def test_nothing_that_is_said_is_lost(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    lost = {name: lost_share(voice, pcm) for name, pcm in spoken.items()}
    assert len(lost) == CLIPS and max(lost.values()) == 0, lost


def test_nor_in_noise(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    random = np.random.default_rng(0)
    for name, pcm in list(spoken.items())[::3]:
        level = 20 * np.log10(np.std(pcm[pcm != 0] / 32768)) - 5  # 5 dB below the voice
        hiss = nonspeech.at_level(nonspeech.colored(random, len(pcm) / SAMPLE_RATE + 1, 1.0), level)[: len(pcm)]
        noisy = np.clip(pcm + hiss * 32768, -32768, 32767).astype(np.int16)
        found = speech_of(voice.probabilities(noisy), len(noisy)).spans
        assert found and found[0][0] <= loud_frames(pcm)[0] and found[-1][1] >= loud_frames(pcm)[-1], name


def test_quiet_speech_is_heard_as_loud_speech_is(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    for name, pcm in list(spoken.items())[::3]:
        aloud, whispered = (speech_of(voice.probabilities(x), len(pcm)) for x in (pcm, quieter(pcm, 30)))
        assert whispered.seconds == pytest.approx(aloud.seconds, rel=0.1), name
        assert lost_share(voice, quieter(pcm, 30)) == 0, name


def test_a_slammed_door_does_not_hide_a_quiet_voice(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    door = np.random.default_rng(0).normal(0, 8000, 3200).clip(-32768, 32767).astype(np.int16)
    pcm = np.concatenate([door, np.zeros(3 * SAMPLE_RATE, np.int16), quieter(spoken["en/counting"], 30)])
    (first, *_), *others = speech_of(voice.probabilities(pcm), len(pcm)).spans
    assert not others
    assert 2.5 < first / FRAMES_PER_SECOND < 3.5


def test_a_quarter_of_a_second_is_enough(voice: Voice, spoken: dict[str, np.ndarray]) -> None:
    """Pieces of speech with nothing around them, as short as the shortest words."""
    frames, pieces = FRAMES_PER_SECOND // 4, []
    for pcm in spoken.values():
        said = np.zeros(len(pcm) // HOP_LENGTH, np.bool_)
        said[loud_frames(pcm)] = True
        starts = [start for start in range(0, len(said) - frames, frames) if said[start : start + frames].all()]
        pieces += [pcm[start * HOP_LENGTH : (start + frames) * HOP_LENGTH] for start in starts]
    heard = [bool(speech_of(voice.probabilities(piece), len(piece)).spans) for piece in pieces]
    assert len(heard) > 100 and all(heard)


@pytest.fixture(scope="module")
def hundred() -> list[nonspeech.Clip]:
    return list(nonspeech.clips())


def test_of_a_hundred_clips_without_speech_few_are_taken_for_it(voice: Voice, hundred: list[nonspeech.Clip]) -> None:
    taken = [clip.name for clip in hundred if speech_of(voice.probabilities(clip.pcm), len(clip.pcm)).spans]
    assert len(taken) <= 8, taken
    assert not [name for name in taken if name.startswith(("silence", "dither", "room", "white", "pink", "brown"))]


def test_the_hundred_clips_are_a_hundred_and_always_the_same(hundred: list[nonspeech.Clip]) -> None:
    assert len(hundred) == len({clip.name for clip in hundred}) == 100
    assert all(nonspeech.SHORTEST <= (len(clip.pcm) + 1) / SAMPLE_RATE <= nonspeech.LONGEST for clip in hundred)
    for again, clip in zip(nonspeech.clips(), hundred[:20], strict=False):
        assert again.name == clip.name and np.array_equal(again.pcm, clip.pcm)
    others = {clip.name: clip.pcm for clip, _ in zip(nonspeech.clips(seed=1), range(20), strict=False)}
    assert not np.array_equal(others["room-tone-0"], hundred[4].pcm)


# --- rules --------------------------------------------------------------------------------------------------------


def frames(*stretches: tuple[float, int]) -> np.ndarray:
    """Probabilities: so much for so many frames, and so on."""
    return np.concatenate([np.empty(0), *(np.full(count, value) for value, count in stretches)]).astype(np.float32)


@pytest.mark.parametrize(
    ("probabilities", "heard"),
    [
        (frames((0.02, 5), (0.9, 10), (0.02, 5)), range(5, 15)),
        (frames((0.099, 20)), range(0)),  # never begins
        (frames((0.02, 5), (0.1, 1), (0.05, 9), (0.02, 5)), range(5, 15)),  # begins, and goes on at less
        (frames((0.07, 5), (0.9, 10)), range(5, 15)),  # less is not enough to begin with
        (frames((0.02, 5), (0.9, 3), (0.02, 5)), range(0)),  # a click: 96 ms
        (frames((0.02, 5), (0.9, 4), (0.02, 5)), range(5, 9)),  # 128 ms
        (frames((0.9, 4)), range(4)),
        (frames(), range(0)),
    ],
)
def test_speech_begins_goes_on_and_must_last(probabilities: np.ndarray, heard: range) -> None:
    assert np.flatnonzero(speaking(probabilities)).tolist() == list(heard)


PAD = round(PAD_SECONDS * FRAMES_PER_SECOND)


def test_a_span_has_a_margin_that_ends_with_the_part() -> None:
    silence = (0.0, 100)
    assert speech_of(frames(silence, (0.9, 50), silence), 250 * 512).spans == ((320 - PAD, 480 + PAD),)
    assert speech_of(frames((0.9, 50)), 50 * 512).spans == ((0, 160),)
    assert speech_of(frames((0.9, 50)), 50 * 512 - 500).spans == ((0, 156),)  # whole frames of content only


def test_margins_that_meet_make_one_span() -> None:
    def spans(pause: int) -> int:
        probabilities = frames((0.9, 20), (0.0, pause), (0.9, 20))
        return len(speech_of(probabilities, len(probabilities) * 512).spans)

    assert spans(int(2 * PAD_SECONDS / FRAME_SECONDS)) == 1
    assert spans(int(2 * PAD_SECONDS / FRAME_SECONDS) + 1) == 2


def test_only_speech_counts_as_seconds_of_speech() -> None:
    probabilities = frames((0.0, 10), (0.9, 25), (0.0, 10), (0.9, 25))
    assert speech_of(probabilities, 70 * 512).seconds == 50 * FRAME_SECONDS
    assert speech_of(frames((0.9, 10)), 10 * 512 - 112).seconds == (10 * 512 - 112) / SAMPLE_RATE


def test_what_lies_behind_the_end_of_the_part_is_not_its_speech() -> None:
    probabilities = frames((0.0, 50), (0.9, 50))
    assert speech_of(probabilities, 50 * 512) == module.Speech(0.0, ())
    assert speech_of(probabilities, 75 * 512).spans == ((160 - PAD, 240),)
    assert speech_of(probabilities, 0) == module.Speech(0.0, ())


@given(
    arrays.arrays(np.float32, st.integers(0, 400), elements=st.sampled_from([0.0, 0.0625, 0.5])), st.integers(0, 511)
)
def test_spans_are_in_order_apart_and_inside(probabilities: np.ndarray, missing: int) -> None:
    samples = max(0, len(probabilities) * 512 - missing)
    speech = speech_of(probabilities, samples)
    edges = [edge for span in speech.spans for edge in span]
    assert edges == sorted(set(edges)) and all(0 <= edge <= samples // HOP_LENGTH for edge in edges)
    assert speech.seconds <= samples / SAMPLE_RATE
    assert (speech.seconds > 0) == bool(speech.spans)


def test_the_longest_pause_is_found_between_two_samples() -> None:
    probabilities = frames((0.9, 10), (0.3, 20), (0.9, 10), (0.3, 30), (0.9, 10), (0.3, 30), (0.9, 10))
    assert longest_pause(probabilities, 0, 120 * 512) == (40 * 512, 70 * 512)  # the earlier of two
    assert longest_pause(probabilities, 0, 60 * 512) == (10 * 512, 30 * 512)  # the other counts up to there
    assert longest_pause(probabilities, 55 * 512 + 7, 120 * 512) == (80 * 512, 110 * 512)
    assert longest_pause(probabilities, 15 * 512 + 7, 35 * 512) == (15 * 512 + 7, 30 * 512)


def test_a_gap_in_a_word_is_no_pause() -> None:
    short = frames((0.9, 10), (0.0, MIN_PAUSE_FRAMES - 1), (0.9, 10))
    assert longest_pause(short, 0, len(short) * 512) is None
    assert longest_pause(frames((0.9, 10)), 0, 5120) is None
    assert longest_pause(frames((0.36, 50)), 0, 25600) is None
    assert longest_pause(frames(), 0, 0) is None
