"""The three vocabularies: ids of symbols, text both ways, and equality with openai/whisper."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.dimensions import OFFICIAL
from model.errors import ModelError, UsageError
from model.languages import LANGUAGES
from model.tokenizer import NUM_TIMESTAMPS, Tokenizer

ENGLISH = Tokenizer.for_dimensions(OFFICIAL["tiny.en"])
MULTILINGUAL = Tokenizer.for_dimensions(OFFICIAL["base"])
V3 = Tokenizer.for_dimensions(OFFICIAL["large-v3-turbo"])
ALL = pytest.mark.parametrize("tokenizer", [ENGLISH, MULTILINGUAL, V3], ids=["en", "multilingual", "v3"])

SPEECH = "And so, my fellow Americans, ask not what your country can do for you."
TEXTS = [
    SPEECH,
    " 日本語のテキスト",
    "Straße, déjà vu — naïve! ♪",
    "12:30\n\n  tabs\tend ",
    "नमस्ते दुनिया, كيف حالك؟ שלום",
    "ภาษาไทย ພາສາລາວ မြန်မာ 粵語 👩‍👩‍👧 e\u0301",
    "it's they'll I'VE -hyphen 'quote' <not a symbol>",
    "",
]


# Ids published with the checkpoints: openai/whisper, tokenizer.py, v20250625.
@pytest.mark.parametrize(
    ("tokenizer", "ids"),
    [
        (ENGLISH, (50256, 50257, 50357, 50358, 50359, 50360, 50361, 50362, 50363)),
        (MULTILINGUAL, (50257, 50258, 50358, 50359, 50360, 50361, 50362, 50363, 50364)),
        (V3, (50257, 50258, 50359, 50360, 50361, 50362, 50363, 50364, 50365)),
    ],
    ids=["en", "multilingual", "v3"],
)
def test_symbols_have_the_published_ids(tokenizer: Tokenizer, ids: tuple[int, ...]) -> None:
    t = tokenizer
    assert ids == (
        *(t.eot, t.sot, t.translate, t.transcribe, t.sot_lm, t.sot_prev),
        *(t.no_speech, t.no_timestamps, t.timestamp_begin),
    )


def test_languages_stand_between_sot_and_translate() -> None:
    assert MULTILINGUAL.languages == tuple(LANGUAGES)[:99]
    assert V3.languages == tuple(LANGUAGES)
    assert V3.language_tokens == tuple(range(50259, 50359))
    for tokenizer in (ENGLISH, MULTILINGUAL, V3):
        assert tokenizer.language_tokens[0] == tokenizer.sot + 1
        assert tokenizer.language_tokens[-1] == tokenizer.translate - 1


@ALL
def test_the_last_timestamp_is_the_last_token(tokenizer: Tokenizer) -> None:
    assert NUM_TIMESTAMPS == 1501
    assert tokenizer.timestamp(30.0) == tokenizer.encoding.n_vocab - 1
    assert tokenizer.timestamp(0.0) == tokenizer.timestamp_begin
    assert tokenizer.seconds(tokenizer.timestamp(7.34)) == pytest.approx(7.34, abs=1e-9)
    for step in range(NUM_TIMESTAMPS):
        token = tokenizer.timestamp_begin + step
        assert tokenizer.timestamp(tokenizer.seconds(token)) == token


# Golden ids, made with openai/whisper's tokenizer, v20250625.
def test_english_text_is_cut_as_published() -> None:
    ids = [1870, 523, 11, 616, 5891, 3399, 11, 1265, 407, 644, 534, 1499, 460, 466, 329, 345, 13]
    assert ENGLISH.encode(SPEECH) == ids


def test_multilingual_text_is_cut_as_published() -> None:
    for tokenizer in (MULTILINGUAL, V3):
        assert tokenizer.encode(" 日本語のテキスト") == [220, 27311, 31348, 2972, 22985, 15535, 40498]
        assert tokenizer.encode("Straße, déjà vu — naïve! ♪") == [
            *(4520, 424, 11451, 11, 12027, 9732, 3466, 1667, 15487, 303, 0, 931),
        ]


@ALL
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@ALL
def test_decoding_drops_timestamps_and_shows_other_symbols(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.timestamp(0), *tokenizer.encode(" Hi."), tokenizer.timestamp(2.5), tokenizer.eot]
    assert tokenizer.decode(tokens) == " Hi.<|endoftext|>"


@ALL
def test_half_a_character_decodes_to_a_replacement(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("👩")
    assert len(tokens) > 1
    assert tokenizer.decode(tokens[:-1]) == "\ufffd"


@ALL
def test_the_name_of_a_symbol_in_a_text_is_not_the_symbol(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("<|endoftext|><|en|>")
    assert max(tokens) < tokenizer.eot
    assert tokenizer.decode(tokens) == "<|endoftext|><|en|>"


def test_a_transcript_starts_with_its_language_and_task() -> None:
    assert MULTILINGUAL.sot_sequence("en", "transcribe") == (50258, 50259, 50359)
    assert MULTILINGUAL.sot_sequence("ja", "translate") == (50258, 50266, 50358)
    assert V3.sot_sequence("yue", "transcribe") == (50258, 50358, 50360)


def test_an_english_only_transcript_starts_with_sot_alone() -> None:
    assert ENGLISH.sot_sequence(None, "transcribe") == (50257,)
    assert ENGLISH.sot_sequence("en", "transcribe") == (50257,)


def test_cantonese_is_refused_before_large_v3() -> None:
    with pytest.raises(UsageError, match="'yue': choose one of its 99"):
        MULTILINGUAL.sot_sequence("yue", "transcribe")


@pytest.mark.parametrize(
    ("language", "task", "named"),
    [("de", "transcribe", "the language 'de'"), ("en", "translate", "the task 'translate'")],
)
def test_english_only_models_refuse_other_languages_and_tasks(language: str, task: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ENGLISH.sot_sequence(language, task)


def test_a_multilingual_transcript_cannot_start_without_a_language() -> None:
    with pytest.raises(ValueError, match="needs a language"):
        MULTILINGUAL.sot_sequence(None, "transcribe")


@ALL
def test_a_transcript_may_not_start_with_a_space_or_its_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.blank_tokens == (220, tokenizer.eot)


def test_non_speech_symbols_are_those_published() -> None:
    assert len(ENGLISH.non_speech_tokens) == 84
    assert ENGLISH.non_speech_tokens[-4:] == (40493, 40549, 47282, 49146)
    assert len(MULTILINGUAL.non_speech_tokens) == 82
    assert MULTILINGUAL.non_speech_tokens[-4:] == (42863, 47425, 49870, 50254)
    assert MULTILINGUAL.non_speech_tokens == V3.non_speech_tokens


@ALL
def test_plain_punctuation_is_no_annotation(tokenizer: Tokenizer) -> None:
    allowed = {token for mark in ",.?!-'" for token in tokenizer.encode(mark)}
    assert not allowed & set(tokenizer.non_speech_tokens)


@ALL
def test_symbols_of_the_prompt_are_always_suppressed(tokenizer: Tokenizer) -> None:
    t = tokenizer
    prompt = {t.sot, t.sot_lm, t.sot_prev, t.transcribe, t.translate, t.no_speech}
    assert t.suppressed(()) == tuple(sorted(prompt))
    assert t.suppressed((-1,)) == tuple(sorted(prompt | set(t.non_speech_tokens)))
    assert t.suppressed((11, -1, 11)) == tuple(sorted(prompt | {11} | set(t.non_speech_tokens)))
    assert t.eot not in t.suppressed((-1,))
    assert t.no_timestamps not in t.suppressed((-1,))


@pytest.mark.parametrize("token", [-2, 51865])
def test_an_id_outside_the_vocabulary_cannot_be_suppressed(token: int) -> None:
    with pytest.raises(UsageError, match=f"holds {token}: allowed are ids from 0 to 51864"):
        MULTILINGUAL.suppressed((token,))


def test_tokenizers_are_shared_and_unpickle_to_the_shared_one() -> None:
    assert Tokenizer.for_dimensions(OFFICIAL["small"]) is MULTILINGUAL
    pickled = pickle.dumps(MULTILINGUAL)
    assert len(pickled) < 200
    assert pickle.loads(pickled) is MULTILINGUAL


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match="vocabulary of 51900 tokens"):
        Tokenizer.for_dimensions(replace(OFFICIAL["base"], n_vocab=51900))


def reference(tokenizer: Tokenizer) -> Any:
    module = pytest.importorskip("whisper.tokenizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its vocabulary file open
        return module.get_tokenizer(tokenizer.is_multilingual, num_languages=len(tokenizer.languages))


@pytest.mark.parity
@ALL
def test_symbols_equal_the_reference(tokenizer: Tokenizer) -> None:
    theirs = reference(tokenizer)
    names = "eot sot translate transcribe sot_lm sot_prev no_speech no_timestamps timestamp_begin"
    for name in (*names.split(), "non_speech_tokens"):
        assert getattr(tokenizer, name) == getattr(theirs, name), name
    by_code = {code: theirs.to_language_token(code) for code in tokenizer.languages}
    assert dict(zip(tokenizer.languages, tokenizer.language_tokens, strict=True)) == by_code
    # The names too: every id, symbols included, stands for the same bytes.
    every_id = range(tokenizer.encoding.n_vocab)
    ours = tokenizer.encoding.decode_tokens_bytes(every_id)
    assert ours == theirs.encoding.decode_tokens_bytes(every_id)


@pytest.mark.parity
@ALL
def test_start_sequences_equal_the_reference(tokenizer: Tokenizer) -> None:
    module = pytest.importorskip("whisper.tokenizer")
    theirs = reference(tokenizer)
    if not tokenizer.is_multilingual:
        assert tokenizer.sot_sequence("en", "transcribe") == theirs.sot_sequence
        return
    for language in tokenizer.languages:
        for task in ("transcribe", "translate"):
            count = len(tokenizer.languages)
            theirs = module.get_tokenizer(True, num_languages=count, language=language, task=task)
            assert tokenizer.sot_sequence(language, task) == theirs.sot_sequence


@pytest.mark.parity
@ALL
@pytest.mark.parametrize("text", TEXTS)
def test_known_texts_encode_as_the_reference_does(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference(tokenizer).encode(text)


@pytest.mark.parity
@ALL
@given(text=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_encodes_as_the_reference_does(tokenizer: Tokenizer, text: str) -> None:
    # By default the reference refuses text that spells one of its symbols.
    assert tokenizer.encode(text) == reference(tokenizer).encode(text, disallowed_special=())


@pytest.mark.parity
@ALL
@given(tokens=st.lists(st.integers(min_value=0, max_value=51863), max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_tokens_decode_as_the_reference_does(tokenizer: Tokenizer, tokens: list[int]) -> None:
    assert tokenizer.decode(tokens) == reference(tokenizer).decode(tokens)
