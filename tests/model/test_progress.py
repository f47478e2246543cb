"""The sequential algorithm over one part, with hand-written tokens: seek, prompt, context and evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.dimensions import OFFICIAL
from model.fallback import CONFIDENT_DESPITE_NO_SPEECH, IMPROBABLE, REPETITIVE, TEMPERATURES_EXHAUSTED
from model.options import DecodeOptions
from model.progress import PROMPT_RESET, SHORT_TAIL_SKIPPED, TAIL_FRAMES, TOKEN_LIMIT, PartProgress
from model.segments import NO_TIMESTAMP_PAIR, UNFINISHED_TAIL_DROPPED
from model.tokenizer import Tokenizer
from model.transcript import Attempt, Part
from model.words import WordTiming
from tests.model.scripted import tokens_of

DIMS = OFFICIAL["base"]
TOKENIZER = Tokenizer.for_dimensions(DIMS)
START = TOKENIZER.sot_sequence("en", "transcribe")


Spans = tuple[tuple[int, int], ...]


def progress(seconds: float = 90.0, model: str = "base", speech: Spans | None = None, **options: Any) -> PartProgress:
    """A part of so many seconds at its beginning, its language known."""
    part = Part("part", np.zeros((1, 3000), np.float32), round(seconds * 100), speech)
    dims = OFFICIAL[model]
    return PartProgress(part, DecodeOptions(**{"language": "en"} | options), Tokenizer.for_dimensions(dims), dims)


def attempt(text: str, **changes: Any) -> Attempt:
    """An attempt that sampled text with timestamps in it, `<0.00> Hello<1.20>`."""
    evidence: dict[str, Any] = {"temperature": 0.0, "avg_logprob": -0.3, "no_speech_prob": 0.1}
    return Attempt(ids(text), text, compression_ratio=1.5, **evidence | changes)


def ids(text: str) -> tuple[int, ...]:
    return tokens_of(TOKENIZER, text)


def accept(part: PartProgress, text: str, attempts: int = 1, fired: tuple[str, ...] = (), **changes: Any) -> None:
    part.accept(attempt(text, **changes), attempts, fired)


# --- seek ---------------------------------------------------------------------------------------------------------


def test_windows_follow_each_other_to_the_end_of_the_part() -> None:
    part = progress(seconds=65)
    seen = []
    for text in ("<0.00> One.<20.00><20.00> Tw", "<0.00> Two.<30.00>", "<0.00> Three.<15.00>"):
        seen.append((part.seek, part.window_frames, part.remaining_frames))
        accept(part, text)
    assert seen == [(0, 3000, 6500), (2000, 3000, 4500), (5000, 1500, 1500)]
    assert part.remaining_frames == 0


def test_times_count_from_the_start_of_the_part() -> None:
    part = progress()
    accept(part, "<0.00> One.<12.34><12.34> Two.<20.00><20.00> Th")
    accept(part, "<0.50> Three.<2.00><2.00> Four.<3.02>")
    times = [(segment.start, segment.end) for segment in part.transcript.segments]
    assert times == [(0.0, 12.34), (12.34, 20.0), (20.5, 22.0), (22.0, pytest.approx(23.02))]
    assert [segment.text for segment in part.transcript.segments] == [" One.", " Two.", " Three.", " Four."]


def test_a_window_without_timestamps_ends_with_the_audio() -> None:
    part = progress(seconds=36)
    accept(part, "<0.00> One.<30.00>")
    accept(part, "<0.00> Two.")
    assert (part.transcript.segments[-1].start, part.transcript.segments[-1].end) == (30.0, 36.0)


# --- speech -------------------------------------------------------------------------------------------------------


def test_a_part_in_which_nobody_speaks_has_no_window() -> None:
    part = progress(speech=())
    assert part.remaining_frames == 0
    assert (part.transcript.segments, part.transcript.windows, part.transcript.language) == ([], 0, "en")


def test_a_part_in_which_somebody_speaks_throughout_is_read_as_if_nobody_had_looked() -> None:
    heard, unheard = progress(seconds=65, speech=((0, 6500),)), progress(seconds=65)
    for text in ("<0.00> One.<20.00><20.00> Tw", "<0.00> Two.<30.00>", "<0.00> Three.<15.00>"):
        assert (heard.seek, heard.window_frames, heard.prompt()) == (
            unheard.seek,
            unheard.window_frames,
            unheard.prompt(),
        )
        accept(heard, text)
        accept(unheard, text)
    assert heard.transcript == unheard.transcript
    assert heard.remaining_frames == unheard.remaining_frames == 0


def test_only_speech_is_read_and_times_are_those_of_the_part() -> None:
    part = progress(speech=((1000, 2000),))
    assert (part.seek, part.window_frames, part.remaining_frames) == (0, 1000, 1000)
    accept(part, "<0.00> One.<10.00>")
    assert part.remaining_frames == 0
    assert [(segment.start, segment.end) for segment in part.transcript.segments] == [(10.0, 20.0)]


def test_speech_on_both_sides_of_a_silence_shares_a_window() -> None:
    part = progress(speech=((0, 1000), (5000, 6000)))
    assert part.window_frames == part.remaining_frames == 2000
    accept(part, "<0.00> One.<10.00><10.00> Two.<20.00>")
    assert [(segment.start, segment.end) for segment in part.transcript.segments] == [(0.0, 10.0), (50.0, 60.0)]
    assert part.remaining_frames == 0


def test_a_segment_across_a_silence_begins_and_ends_where_its_speech_does() -> None:
    part = progress(speech=((0, 1000), (5000, 6000)))
    accept(part, "<8.00> One two.<12.00><12.00> Three.<20.00>")
    assert [(segment.start, segment.end) for segment in part.transcript.segments] == [(8.0, 52.0), (52.0, 60.0)]


def test_windows_follow_each_other_through_what_is_left() -> None:
    part = progress(seconds=200, speech=((500, 2500), (5000, 7000), (15000, 16000)))
    assert (part.window_frames, part.remaining_frames) == (3000, 5000)
    accept(part, "<0.00> One.<20.00><20.00> Two.<25.00><25.00> Th")
    assert (part.seek, part.window_frames) == (2500, 2500)
    accept(part, "<0.00> Three.<15.00><15.00> Four.<25.00>")
    times = [(segment.start, segment.end) for segment in part.transcript.segments]
    assert times == [(5.0, 25.0), (50.0, 55.0), (55.0, 70.0), (150.0, 160.0)]


def test_the_log_mel_is_that_of_the_speech() -> None:
    mel = np.arange(8000, dtype=np.float32).reshape(2, 4000)
    spans = ((10, 20), (3000, 3500))
    part = PartProgress(Part("part", mel, 4000, spans), DecodeOptions(language="en"), TOKENIZER, DIMS)
    assert np.array_equal(part.mel, np.concatenate([mel[:, 10:20], mel[:, 3000:3500]], axis=1))
    whole = PartProgress(Part("part", mel, 4000), DecodeOptions(language="en"), TOKENIZER, DIMS)
    assert whole.mel is mel and whole.content_frames == 4000


@pytest.mark.parametrize(("left", "seek"), [(TAIL_FRAMES + 2, 1000 - TAIL_FRAMES - 2), (TAIL_FRAMES, 1000)])
def test_the_margin_behind_the_last_word_is_not_worth_a_window(left: int, seek: int) -> None:
    text = f"<0.00> One.<{(1000 - left) / 100:.2f}><{(1000 - left) / 100:.2f}>"
    heard, unheard = progress(speech=((2000, 3000),)), progress(seconds=10)
    accept(heard, text)
    accept(unheard, text)
    assert (heard.seek, unheard.seek) == (seek, 1000 - left), "only a detector knows that this is a margin"
    fired = (SHORT_TAIL_SKIPPED,) if left <= TAIL_FRAMES else ()
    assert heard.transcript.segments[0].rules_fired == fired
    assert unheard.transcript.segments[0].rules_fired == ()


def test_text_behind_the_last_timestamp_is_heard_again_however_short() -> None:
    part = progress(speech=((2000, 3000),))
    accept(part, "<0.00> One.<9.80><9.80> T")
    assert (part.seek, part.remaining_frames) == (980, 20)
    assert part.transcript.segments[0].rules_fired == (UNFINISHED_TAIL_DROPPED,)


def test_what_a_full_window_leaves_is_heard_however_short() -> None:
    """The window ends where it ends, in the middle of a word perhaps."""
    part = progress(speech=((0, 3020),))
    accept(part, "<0.00> One.<30.00>")
    assert part.remaining_frames == 20


def test_the_shortest_speech_is_read() -> None:
    part = progress(speech=((2000, 2013),))
    assert (part.window_frames, part.remaining_frames) == (13, 13)
    accept(part, "<0.00> One.<0.12>")
    assert [(segment.start, segment.text) for segment in part.transcript.segments] == [(20.0, " One.")]


def test_a_window_taken_for_silence_is_skipped_with_all_its_speech() -> None:
    part = progress(seconds=120, speech=((0, 2000), (5000, 8000)))
    accept(part, "<0.00> Thank you.<2.00>", avg_logprob=-1.5, no_speech_prob=0.9)
    assert (part.seek, part.remaining_frames, part.transcript.windows_skipped) == (3000, 2000, 1)


def test_a_window_without_timestamps_ends_with_its_speech() -> None:
    part = progress(speech=((500, 1500),))
    accept(part, "<0.00> One.")
    assert [(segment.start, segment.end) for segment in part.transcript.segments] == [(5.0, 15.0)]


def test_words_lie_in_the_part_as_their_segment_does() -> None:
    part = progress(speech=((1000, 2000), (5000, 6000)), word_timestamps=True)
    one = attempt("<0.00> One two.<20.00>")
    first, second, mark = part.text_of(one)
    words = [WordTiming(" One", (first,), 9.0, 10.0, 0.9), WordTiming(" two.", (second, mark), 10.0, 11.0, 0.8)]
    part.accept(one, 1, (), words)
    (segment,) = part.transcript.segments
    assert segment.words is not None
    assert [(word.word, word.start, word.end) for word in segment.words] == [
        (" One", 19.0, 20.0),
        (" two.", 50.0, 51.0),
    ]
    assert (segment.start, segment.end) == (19.0, 51.0)


# --- language -----------------------------------------------------------------------------------------------------


def test_a_part_is_in_the_language_that_most_of_it_was_heard_in() -> None:
    part = progress(seconds=80, language=None, language_per_window=True)
    for language, text in (("fr", "<0.00> Un.<30.00>"), ("en", "<0.00> Two.<30.00>"), ("fr", "<0.00> Trois.<20.00>")):
        part.hear_language(language, 0.9)
        assert part.prompt()[-2] == TOKENIZER.sot_sequence(language, "transcribe")[1]
        accept(part, text)
    assert [segment.language for segment in part.transcript.segments] == ["fr", "en", "fr"]
    assert (part.transcript.language, part.transcript.language_probability) == ("fr", 0.9)


# --- prompt -------------------------------------------------------------------------------------------------------


def test_the_first_window_has_no_text_before_it() -> None:
    assert progress().prompt() == list(START)


def test_the_prompt_is_the_text_before_with_its_timestamps() -> None:
    part = progress()
    accept(part, "<0.00> One.<2.00><2.00> Two.<4.00><4.00> Thr")
    assert part.prompt() == [TOKENIZER.sot_prev, *ids("<0.00> One.<2.00><2.00> Two.<4.00>"), *START]


def test_the_prompt_shows_the_last_223_tokens() -> None:
    part = progress(seconds=900)
    for index in range(4):
        accept(part, f"<0.00>{f' {index}' * 90}<30.00>")
    everything = [token for segment in part.transcript.segments for token in segment.tokens]
    assert len(everything) > 300
    assert part.prompt() == [TOKENIZER.sot_prev, *everything[-223:], *START]


def test_language_and_task_stand_behind_the_text() -> None:
    part = progress(language="de", task="translate")
    language = TOKENIZER.language_tokens[TOKENIZER.languages.index("de")]
    assert part.prompt() == [TOKENIZER.sot, language, TOKENIZER.translate]


def test_an_english_only_model_is_told_no_language() -> None:
    part = progress(model="base.en", language=None)
    assert part.prompt() == [50257]
    assert part.transcript.language == "en"


def test_an_unknown_language_stays_unknown() -> None:
    assert progress(language=None).transcript.language is None
    assert progress(language="French").transcript.language == "fr"


def test_the_initial_prompt_is_text_before_the_first_window() -> None:
    part = progress(initial_prompt="  Glossary: Whisper. ")
    glossary = TOKENIZER.encode(" Glossary: Whisper.")
    assert part.prompt() == [TOKENIZER.sot_prev, *glossary, *START]
    accept(part, "<0.00> One.<30.00>")
    assert part.prompt() == [TOKENIZER.sot_prev, *glossary, *ids("<0.00> One.<30.00>"), *START]


def test_without_previous_text_only_the_first_window_sees_the_initial_prompt() -> None:
    part = progress(previous_text=False, initial_prompt="Glossary")
    assert part.prompt() == [TOKENIZER.sot_prev, *TOKENIZER.encode(" Glossary"), *START]
    accept(part, "<0.00> One.<30.00>")
    assert part.prompt() == list(START)
    accept(part, "<0.00> Two.<30.00>")
    assert part.prompt() == list(START)


def test_hot_text_and_all_before_it_is_not_shown_again() -> None:
    part = progress(seconds=200)
    accept(part, "<0.00> One.<30.00>", temperature=0.4)
    assert len(part.prompt()) > len(START)
    accept(part, "<0.00> Wild.<30.00>", temperature=0.6)
    assert part.prompt() == list(START)
    accept(part, "<0.00> Three.<30.00>")
    assert part.prompt() == [TOKENIZER.sot_prev, *ids("<0.00> Three.<30.00>"), *START]


# --- silence ------------------------------------------------------------------------------------------------------


def test_a_silent_window_is_skipped_as_a_whole() -> None:
    part = progress(seconds=50)
    accept(part, "<0.00> Thank you.<2.00><2.00> Bye", avg_logprob=-1.5, no_speech_prob=0.9)
    assert (part.seek, part.transcript.segments, part.transcript.windows_skipped) == (3000, [], 1)
    accept(part, "<0.00> Thank you.<2.00>", avg_logprob=-1.5, no_speech_prob=0.9)
    assert (part.remaining_frames, part.transcript.windows_skipped) == (0, 2)


@pytest.mark.parametrize("options", [{}, {"previous_text": False, "initial_prompt": "Glossary"}])
def test_a_silent_window_leaves_the_prompt_as_it_was(options: dict[str, Any]) -> None:
    part = progress(**options)
    if not options:
        accept(part, "<0.00> One.<30.00>")
    before = part.prompt()
    accept(part, "<0.00> Hot.<30.00>", avg_logprob=-1.5, no_speech_prob=0.9, temperature=1.0)
    assert part.prompt() == before
    assert len(before) > len(START)


# --- segments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<0.00> <1.00><1.00> One.<2.00>",  # no text but a blank
        "<1.00> Zero.<1.00><1.00> One.<2.00>",  # no duration
    ],
)
def test_a_segment_without_text_or_duration_leaves_no_trace(text: str) -> None:
    part = progress()
    accept(part, text)
    assert [segment.text for segment in part.transcript.segments] == [" One."]
    assert part.prompt() == [TOKENIZER.sot_prev, *ids("<1.00> One.<2.00>"), *START]


def test_a_window_without_any_text_moves_on() -> None:
    part = progress()
    accept(part, "<0.00>")
    assert (part.seek, part.transcript.segments, part.transcript.windows_skipped) == (3000, [], 0)
    assert part.prompt() == list(START)


def test_symbols_are_kept_as_tokens_but_not_read_as_text() -> None:
    """A language symbol may be sampled in the middle of text: the rules do not forbid it."""
    part = progress()
    german = TOKENIZER.language_tokens[2]
    tokens = (*ids("<0.00> One"), german, *ids(" two.<2.00>"))
    part.accept(Attempt(tokens, "", 0.0, -0.3, 0.1, 1.5), 1, ())
    (segment,) = part.transcript.segments
    assert (segment.text, segment.tokens) == (" One two.", tokens)
    assert german in part.prompt()


def test_each_segment_carries_the_evidence_of_its_window() -> None:
    part = progress()
    part.accept(Attempt(ids("<0.00> One.<1.00><1.00> Two.<2.00>"), "", 0.4, -0.7, 0.2, 1.9), 3, (REPETITIVE,))
    for segment in part.transcript.segments:
        assert (segment.temperature, segment.avg_logprob, segment.no_speech_prob) == (0.4, -0.7, 0.2)
        assert (segment.compression_ratio, segment.attempts, segment.rules_fired) == (1.9, 3, (REPETITIVE,))


@pytest.mark.parametrize(
    ("text", "changes", "fired"),
    [
        ("<0.00> One.<1.00><1.00> Two.<2.00>", {}, ()),
        ("<0.00> One.<1.00><1.00> Two.", {}, (UNFINISHED_TAIL_DROPPED,)),
        ("<0.00> One.", {}, (NO_TIMESTAMP_PAIR,)),
        ("<0.00> One.<1.00>", {"reached_limit": True}, (NO_TIMESTAMP_PAIR, TOKEN_LIMIT)),
        ("<0.00> One.<1.00>", {"temperature": 0.6}, (NO_TIMESTAMP_PAIR, PROMPT_RESET)),
        ("<0.00> One.<1.00>", {"no_speech_prob": 0.9}, (CONFIDENT_DESPITE_NO_SPEECH, NO_TIMESTAMP_PAIR)),
        ("<0.00> One.<1.00>", {"avg_logprob": -2.0}, (TEMPERATURES_EXHAUSTED, NO_TIMESTAMP_PAIR)),
    ],
)
def test_the_rules_that_fired_are_named(text: str, changes: dict[str, Any], fired: tuple[str, ...]) -> None:
    part = progress()
    accept(part, text, **changes)
    assert [segment.rules_fired for segment in part.transcript.segments] == [fired] * len(part.transcript.segments)
    assert part.transcript.segments


def test_a_rule_that_fired_in_several_attempts_is_named_once() -> None:
    part = progress()
    fired = (IMPROBABLE, REPETITIVE, IMPROBABLE)
    accept(part, "<0.00> One.", attempts=4, fired=fired)
    assert part.transcript.segments[0].rules_fired == (IMPROBABLE, REPETITIVE, NO_TIMESTAMP_PAIR)


def test_windows_are_counted_by_what_became_of_them() -> None:
    part = progress(seconds=120)
    accept(part, "<0.00> One.<30.00>")
    accept(part, "<0.00> Two.<30.00>", attempts=2)
    accept(part, "<0.00> Hm.<30.00>", attempts=6, avg_logprob=-1.5, no_speech_prob=0.9)
    transcript = part.transcript
    assert (transcript.windows, transcript.windows_retried, transcript.windows_skipped) == (3, 2, 1)
