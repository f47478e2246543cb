"""What the encoder hears of a part, in which batches, and on which windows a language is found.

First the hearing alone, asked for windows; then as the engine uses it, with slots that are few, busy or short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.dimensions import OFFICIAL
from model.engine import Engine
from model.hearing import Encoded, Hearing
from model.options import DecodeOptions
from model.progress import PartProgress
from model.tokenizer import Tokenizer
from model.transcript import Part
from model.whisper import from_state
from tests.model.plain import Plain, random_state
from tests.model.scripted import Heard, ScriptedNet, assert_same, babble, saying, scripted_part, transcribe

WORD = "<0.00> Word.<2.00>"
SHARED = DecodeOptions(context_margin=None)
REFERENCE = DecodeOptions.exact()
THREE = replace(SHARED, language_windows=3)
# As little is read as a margin of one second allows, however short the audio.
TRIMMED = DecodeOptions(language="en", context_margin=1.0, context_from=0.0)


def progress(net: ScriptedNet, part: Part, options: DecodeOptions) -> PartProgress:
    return PartProgress(part, options, net.tokenizer, net.dims)


def hear(net: ScriptedNet, parts: Sequence[Part], options: DecodeOptions = SHARED) -> list[Encoded]:
    hearing = Hearing(net, net.tokenizer, options)
    return hearing.encode([(progress(net, part, options), order) for order, part in enumerate(parts)])


def window(net: ScriptedNet, features: torch.Tensor) -> Heard:
    """What these features (A, 1) were encoded from."""
    assert len(features.unique()) == 1
    return net.heard[int(features[0, 0])]


def places(net: ScriptedNet, encoded: Encoded) -> list[tuple[int, int]]:
    """Part and first frame of the windows that have a say in the language besides the encoded one."""
    return [(heard.part, heard.seek) for heard in (window(net, ballot) for ballot in encoded.ballots)]


# --- frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "margin", "least", "read"),
    [
        (30, None, 0, 3000),
        (3, None, 0, 3000),
        (3, 2.0, 0, 500),
        (3.01, 2.0, 0, 600),  # whole seconds
        (3, 0.0, 0, 300),
        (0.01, 0.0, 0, 100),
        (2.5, 0.5, 0, 300),
        (28, 2.0, 0, 3000),
        (27.01, 2.0, 0, 3000),
        (29.5, 8.0, 0, 3000),  # never more than a window
        (75, 2.0, 0, 3000),
        (1, 30.0, 0, 3000),
        (9.99, 2.0, 10, 3000),  # too short to be trimmed
        (10, 2.0, 10, 1200),
        (12.5, 2.0, 12.5, 1500),
        (12.49, 2.0, 12.5, 3000),
    ],
)
def test_the_encoder_reads_the_audio_and_a_margin(
    seconds: float, margin: float | None, least: float, read: int
) -> None:
    net = saying({})
    options = replace(TRIMMED, context_margin=margin, context_from=least)
    (encoded,) = hear(net, [scripted_part(1, seconds)], options)
    heard = window(net, encoded.features)
    assert (heard.seek, heard.frames, heard.silence_behind, heard.read) == (
        0,
        min(round(seconds * 100), 3000),
        False,
        read,
    )
    assert encoded.features.shape == (read // 2, 1)


@pytest.mark.parametrize("options", [{"language_windows": 3}, {"language_per_window": True}, {}])
def test_a_language_is_found_on_whole_windows(options: dict[str, Any]) -> None:
    """On less audio it is found less well."""
    net = saying({})
    trimmed = replace(TRIMMED, language=None, **options)
    hear(net, [scripted_part(1, 12), scripted_part(2, 75)], trimmed)
    assert {heard.read for heard in net.heard} == {3000}


def test_a_window_that_does_not_vote_is_trimmed() -> None:
    """Once the language is known; and where it is found on the silence behind a short part, from the start."""
    net = saying({})
    part = progress(net, scripted_part(1, 12), replace(TRIMMED, language=None))
    part.hear_language("fr", 0.9)
    (encoded,) = Hearing(net, net.tokenizer, part.options).encode([(part, 0)])
    assert window(net, encoded.features).read == 1300
    reference = replace(TRIMMED, language=None, language_window="reference")
    (encoded,) = hear(net, [scripted_part(2, 12)], reference)
    assert [window(net, features).read for features in (encoded.features, *encoded.ballots)] == [1300, 3000]


def test_a_window_begins_at_the_seek() -> None:
    net = saying({})
    part = progress(net, scripted_part(1, 75), SHARED)
    part.seek = 4321
    (encoded,) = Hearing(net, net.tokenizer, SHARED).encode([(part, 7)])
    assert (encoded.progress, encoded.order) == (part, 7)
    heard = window(net, encoded.features)
    assert (heard.part, heard.seek, heard.frames) == (1, 4321, 3000)
    part.seek = 6000
    (encoded,) = Hearing(net, net.tokenizer, SHARED).encode([(part, 7)])
    assert (window(net, encoded.features).seek, window(net, encoded.features).frames) == (6000, 1500)


def test_only_speech_is_heard() -> None:
    """Spans of it side by side, and zeros behind the last as behind the end of a part; there a margin begins."""
    net = saying({})
    net.joined = True
    part = scripted_part(1, 60, speech=((500, 900), (1200, 2000)))
    hear(net, [part])
    hear(net, [part], TRIMMED)
    for heard, read in zip(net.heard, (3000, 1300), strict=True):
        assert (heard.seek, heard.frames, heard.cuts, heard.read) == (500, 1200, ((899, 1200),), read)


# --- batches ------------------------------------------------------------------------------------------------------


def test_windows_of_one_length_share_a_batch() -> None:
    net = saying({})
    seconds = (9.5, 2.4, 40.0, 3.0, 2.5, 29.4)  # read as 11, 4, 30, 4, 4 and 30 seconds
    hearing = Hearing(net, net.tokenizer, TRIMMED)
    works = [(progress(net, scripted_part(number, length), TRIMMED), number) for number, length in enumerate(seconds)]
    encoded = hearing.encode(works)
    assert sorted(net.encode_batches) == [1, 2, 3]
    assert [(window(net, one.features).part, one.order) for one in encoded] == [(n, n) for n in range(6)]
    assert [len(one.features) for one in encoded] == [550, 200, 1500, 200, 200, 1500]
    assert hearing.encoded_windows == 6
    assert hearing.encoded_frames == 1100 + 3 * 400 + 2 * 3000


def test_whole_windows_share_one_batch_however_much_audio_they_hold() -> None:
    net = saying({})
    hear(net, [scripted_part(number, seconds) for number, seconds in enumerate((40, 3, 30, 0.5))])
    assert net.encode_batches == [4]


def test_other_windows_that_vote_are_encoded_along() -> None:
    net = saying({})
    first, second = hear(net, [scripted_part(1, 300), scripted_part(2, 61)], THREE)
    assert net.encode_batches == [5]
    assert [window(net, one.features).part for one in (first, second)] == [1, 2]
    assert (places(net, first), places(net, second)) == ([(1, 10_000), (1, 20_000)], [(2, 3050)])


def test_the_counters_go_on() -> None:
    net = saying({})
    hearing = Hearing(net, net.tokenizer, REFERENCE)
    hearing.encode([(progress(net, scripted_part(1, 20), REFERENCE), 1)])  # and the silence behind
    hearing.encode([(progress(net, scripted_part(2, 60), REFERENCE), 2)])
    assert (hearing.encoded_windows, hearing.encoded_frames) == (3, 9000)


# --- whose say it is ----------------------------------------------------------------------------------------------

SPEECH = ((7000, 13_000), (20_000, 26_000))


@pytest.mark.parametrize(
    ("options", "seconds", "speech", "votes", "ballots"),
    [
        (SHARED, 300, None, True, []),
        (SHARED, 20, None, True, []),
        (REFERENCE, 300, None, True, []),
        (REFERENCE, 30, None, True, []),
        (REFERENCE, 29.99, None, False, [(1, 0)]),  # the silence behind it
        (replace(REFERENCE, language="de"), 20, None, False, []),
        (replace(SHARED, language="de"), 300, None, False, []),
        (THREE, 300, None, True, [(1, 10_000), (1, 20_000)]),
        (THREE, 59, None, True, []),  # no room for a second
        (THREE, 300, SPEECH, True, [(1, 11_000), (1, 22_000)]),  # a third of the speech each
        (THREE, 300, ((7000, 9000), (20_000, 21_000)), True, []),
        (replace(SHARED, language_per_window=True), 300, None, True, []),
        (replace(SHARED, language_per_window=True, language_window="reference"), 20, None, True, []),
    ],
)
def test_which_windows_have_a_say(
    options: DecodeOptions,
    seconds: float,
    speech: tuple[tuple[int, int], ...] | None,
    votes: bool,
    ballots: list[tuple[int, int]],
) -> None:
    net = saying({})
    net.joined = speech is not None
    (encoded,) = hear(net, [scripted_part(1, seconds, speech)], options)
    assert (encoded.votes, places(net, encoded)) == (votes, ballots)
    assert len(net.heard) == 1 + len(ballots)


def test_the_silence_behind_a_short_part_is_what_the_reference_hears() -> None:
    net = saying({})
    (encoded,) = hear(net, [scripted_part(1, 20)], REFERENCE)
    assert not window(net, encoded.features).silence_behind
    assert [window(net, ballot) for ballot in encoded.ballots] == [Heard(1, 0, 2000, silence_behind=True)]


def test_nobody_votes_on_what_is_known() -> None:
    net = saying({})
    for options in (THREE, REFERENCE):
        part = progress(net, scripted_part(1, 25), options)
        part.hear_language("fr", 0.8)
        (encoded,) = Hearing(net, net.tokenizer, options).encode([(part, 0)])
        assert (encoded.votes, encoded.ballots) == (False, ())


def test_each_window_votes_where_each_finds_its_own() -> None:
    net, options = saying({}), replace(SHARED, language_per_window=True)
    part = progress(net, scripted_part(1, 60), options)
    part.hear_language("fr", 0.8)
    part.seek = 3000
    (encoded,) = Hearing(net, net.tokenizer, options).encode([(part, 0)])
    assert (encoded.votes, encoded.ballots) == (True, ())


@pytest.mark.parametrize("options", [THREE, REFERENCE, replace(SHARED, language_per_window=True)])
def test_a_model_of_one_language_asks_nobody(options: DecodeOptions) -> None:
    net = saying({}, english_only=True)
    for encoded in hear(net, [scripted_part(1, 20), scripted_part(2, 300)], options):
        assert (encoded.votes, encoded.ballots) == (False, ())


# --- the probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 3])
def test_probabilities_are_those_of_the_language_symbols_behind_sot(lanes: int) -> None:
    """Of three slots that hold 30, 5 and 12 seconds, in any order; what lanes had said does not matter."""
    dims = replace(OFFICIAL["tiny"], n_mels=3, n_text_ctx=8, n_audio_state=16, n_text_state=16, n_audio_head=2)
    dims = replace(dims, n_text_head=2, n_audio_layer=1, n_text_layer=1)
    state, tokenizer = random_state(dims), Tokenizer.for_dimensions(dims)
    net, plain = from_state(dims, state), Plain(dims, state)
    memory = net.new_cache(3, lanes)
    memory.self_k.fill_(9.0)
    mels = [torch.randn(1, 3, frames, generator=torch.Generator().manual_seed(frames)) for frames in (3000, 500, 1200)]
    for slot, mel in enumerate(mels):
        net.admit(net.encode(mel), memory, torch.tensor([slot]))
    found = Hearing(net, tokenizer, SHARED).languages(memory, torch.tensor([2, 0, 1]))
    for row, slot in enumerate((2, 0, 1)):
        logits = plain.logits(plain.features(mels[slot]), torch.tensor([[tokenizer.sot]]))[0, 0]
        expected = logits[[*tokenizer.language_tokens]].softmax(-1)
        torch.testing.assert_close(torch.from_numpy(found[row]), expected, atol=1e-5, rtol=1e-3)
    assert found.shape == (3, 99)


# --- in the engine ------------------------------------------------------------------------------------------------


def test_a_part_is_in_the_language_that_its_windows_elect() -> None:
    """The first window is German with little doubt, but the mean is French."""
    net = saying({}, WORD)
    net.languages = {(1, 0): ("de", 0.7), (1, 10_000): ("fr", 0.8), (1, 20_000): ("fr", 0.6), 2: ("ja", 0.5)}
    first, second = transcribe(net, [scripted_part(1, 300), scripted_part(2, 20)], THREE)
    rest = (1 - 0.7) / 98  # what German leaves to each of the others
    assert first.language == "fr"
    assert first.language_probability == pytest.approx((0.8 + 0.6 + rest) / 3)
    assert (second.language, second.language_probability) == ("ja", pytest.approx(0.5))
    assert {prompt[-2] for window, prompt in net.prompts if window.part == 1} == {french(net)}
    assert sorted((heard.part, heard.seek) for heard in net.language_steps) == [
        (1, 0),
        (1, 10_000),
        (1, 20_000),
        (2, 0),
    ]


def french(net: ScriptedNet) -> int:
    return net.tokenizer.language_tokens[net.tokenizer.languages.index("fr")]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_more_windows_vote_than_there_are_free_slots(slots: int) -> None:
    """They are heard in turn, while other slots go on with what they were doing."""
    options = replace(THREE, language_windows=5, temperatures=(0.0,))
    parts = [scripted_part(number, 60 + 60 * number) for number in range(4)]
    votes = {(number, 0): (code, 0.4) for number, code in enumerate(("de", "fr", "ja", "ko"))}
    alone, crowded = babble(), babble()
    alone.languages = crowded.languages = votes  # every other window votes for English
    expected = [transcribe(alone, [part], options, slots=6)[0] for part in parts]
    assert_same(transcribe(crowded, parts, options, slots=slots, encode_batch=3), expected)
    assert [one.language for one in expected] == ["en"] * 4
    assert len(crowded.language_steps) == len(set(crowded.language_steps)) == 2 + 4 + 5 + 5


def test_a_language_that_is_elected_is_kept() -> None:
    net = saying({}, WORD)
    net.languages = {(1, 0): ("de", 0.9), (1, 3000): ("fr", 0.9)}
    (transcript,) = transcribe(net, [scripted_part(1, 90)], SHARED)
    assert [segment.language for segment in transcript.segments] == ["de"] * 3
    assert len(net.language_steps) == 1


def test_each_window_may_find_its_own_language() -> None:
    """German, French, German: each prompt and segment has its own, and the part the one that was heard most."""
    net = saying({}, WORD)
    net.languages = {(1, 0): ("fr", 0.7), (1, 3000): ("de", 0.6), (1, 6000): ("de", 0.8)}
    options = replace(SHARED, language_per_window=True)
    transcript, other = transcribe(net, [scripted_part(1, 80), scripted_part(2, 60)], options)
    assert [(one.language, round(one.language_probability or 0, 3)) for one in transcript.segments] == [
        ("fr", 0.7),
        ("de", 0.6),
        ("de", 0.8),
    ]
    assert transcript.language == "de"
    assert [one.language for one in other.segments] == ["en", "en"]
    codes = dict(zip(net.tokenizer.language_tokens, net.tokenizer.languages, strict=True))
    assert [codes[prompt[-2]] for window, prompt in net.prompts if window.part == 1] == ["fr", "de", "de"]
    assert len(net.language_steps) == 5
    assert len(net.heard) == 5  # no window was encoded for its language alone


def test_a_margin_changes_how_much_is_read_and_nothing_that_is_said() -> None:
    """In this net; and short windows share slots with whole ones, in one batch of the decoder."""
    parts = [scripted_part(number, seconds) for number, seconds in enumerate((4, 40, 33.5, 12, 61, 7.5))]
    whole, short = babble(), babble()
    options = replace(TRIMMED, temperatures=(0.0,))
    expected = transcribe(whole, parts, replace(options, context_margin=None), slots=3)
    assert_same(transcribe(short, parts, options, slots=3), expected)
    assert {heard.read for heard in whole.heard} == {3000}
    assert {500, 1300, 900, 3000} <= {heard.read for heard in short.heard}
    assert {(heard.part, heard.seek, heard.frames) for heard in short.heard} == {
        (heard.part, heard.seek, heard.frames) for heard in whole.heard
    }


def test_audio_is_masked_only_where_some_is_missing() -> None:
    """A mask costs the fast kernels, and hides nothing where all windows are whole."""

    def ragged(*seconds: float) -> list[bool]:
        net = saying({}, WORD)
        parts = [scripted_part(number, length) for number, length in enumerate(seconds)]
        transcribe(net, parts, TRIMMED, slots=2)
        return [reach.ragged for reach in net.reaches]

    assert not any(ragged(30, 29, 60))
    assert all(ragged(4, 5))
    mixed = ragged(4, 90)  # the short part is done when the long one has two windows left
    assert mixed[:2] == [True, True] and mixed[-2:] == [False, False]


def test_a_short_window_that_moves_to_another_slot_stays_short() -> None:
    """A whole window ends before it, and nothing comes after: it takes the first slot."""
    net = saying({(1, 0): WORD}, f"<0.00>{' la lo' * 12}<2.00>")
    transcribe(net, [scripted_part(1, 30), scripted_part(2, 4)], TRIMMED, slots=2)
    assert net.steps[0] == (1, 2) and net.steps[-1] == (2,)
    assert all(reach.ragged for reach in net.reaches)


def test_counters_tell_what_the_encoder_read() -> None:
    net = saying({}, WORD)
    pool = Engine(net, net.tokenizer, TRIMMED, slots=2)
    for number, seconds in enumerate((4, 33)):
        pool.submit(scripted_part(number, seconds))
    pool.drain()
    assert (pool.counters.encoded_windows, pool.counters.encoded_frames) == (3, 500 + 3000 + 400)
