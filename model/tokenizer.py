"""Text ↔ token ids, and the ids of Whisper's own symbols, for its three vocabularies.

It refuses to know what was asked for: language and task come with each call, and one tokenizer serves a run.
The symbols follow the byte pairs in one fixed order, from which every id is derived (Radford et al. 2022,
section 2.3, and openai/whisper, tokenizer.py).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import tiktoken

from model.dimensions import HOP_LENGTH, SAMPLE_RATE, WINDOW_SECONDS, Dimensions
from model.errors import ModelError, UsageError
from model.languages import LANGUAGES

TIMESTAMP_STEP = 2 * HOP_LENGTH / SAMPLE_RATE  # seconds: one encoder position, 0.02
NUM_TIMESTAMPS = round(WINDOW_SECONDS / TIMESTAMP_STEP) + 1  # 0.00 to 30.00, both included

NON_SPEECH = -1  # in `suppress_tokens`, stands for all of `non_speech_tokens`

_ASSETS = Path(__file__).parent / "assets"
_VOCABULARIES = {51_864: "gpt2", 51_865: "multilingual", 51_866: "multilingual"}  # by Dimensions.n_vocab

# How GPT-2 splits text before merging bytes; both vocabularies were built on it.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# Symbols that annotate instead of speak ("[MUSIC]", "- Hi.", "♪♪"). Plain punctuation is not among them.
_ANNOTATIONS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("'),
    *("((", "))", "(((", ")))", "[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
)
# May take several tokens. Suppressing the first is safe: its bytes begin characters of U+2640–267F only.
_MUSIC = "♩♪♫♬♭♮♯"
_INSIDE_WORDS_ONLY = (" -", " '")  # fine within a word, an annotation in front of one


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary of one kind of checkpoint: immutable, shared, and rebuilt by size when unpickled."""

    encoding: tiktoken.Encoding = field(repr=False, compare=False)
    is_multilingual: bool
    languages: tuple[str, ...]  # codes, in the order of `language_tokens`
    eot: int
    sot: int
    translate: int
    transcribe: int
    sot_lm: int
    sot_prev: int
    no_speech: int
    no_timestamps: int
    timestamp_begin: int

    @classmethod
    def for_dimensions(cls, dims: Dimensions) -> Tokenizer:
        """The tokenizer of a checkpoint, the same object for each of its kind.

        Raises: `ModelError` when the size of the vocabulary is none of Whisper's three.
        """
        return _tokenizer(dims.n_vocab, dims.is_multilingual, dims.num_languages)

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[int, bool, int]]:
        # Two megabytes of ranks lie in the package of every process: the size of the vocabulary says which.
        return _tokenizer, (self.encoding.n_vocab, self.is_multilingual, len(self.languages))

    @cached_property
    def language_tokens(self) -> tuple[int, ...]:
        """Ids of the language symbols, in the order of `languages`."""
        return tuple(range(self.sot + 1, self.sot + 1 + len(self.languages)))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the name of a symbol in it, as <|endoftext|>, counts as plain characters."""
        return self.encoding.encode_ordinary(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of `tokens` without timestamps; bytes that form no character become U+FFFD."""
        return self.encoding.decode([token for token in tokens if token < self.timestamp_begin])

    def timestamp(self, seconds: float) -> int:
        """Id of the timestamp nearest to `seconds` from the start of the window, 0 to 30."""
        return self.timestamp_begin + round(seconds / TIMESTAMP_STEP)

    def seconds(self, token: int) -> float:
        """Seconds from the start of the window that the timestamp `token` stands for."""
        return (token - self.timestamp_begin) * TIMESTAMP_STEP

    def sot_sequence(self, language: str | None, task: str) -> tuple[int, ...]:
        """The symbols that start a transcript: sot, language, task; sot alone for an English-only model.

        Raises: `UsageError` when this vocabulary lacks the language or the task; `ValueError` when a
        multilingual model is not told the language, which is for the caller to find first.
        """
        if not self.is_multilingual:
            return self._english_only(language, task)
        if language is None:
            raise ValueError("A multilingual model needs a language before it can start a transcript.")
        if language not in self.languages:
            raise UsageError(
                f"This model does not know the language {language!r}: choose one of its "
                f"{len(self.languages)}, or a newer model (Cantonese, yue, needs large-v3 or large-v3-turbo)."
            )
        task_token = self.translate if task == "translate" else self.transcribe
        return (self.sot, self.language_tokens[self.languages.index(language)], task_token)

    def _english_only(self, language: str | None, task: str) -> tuple[int, ...]:
        if language not in (None, "en") or task != "transcribe":
            asked = f"the task {task!r}" if task != "transcribe" else f"the language {language!r}"
            raise UsageError(
                f"An English-only model cannot do {asked}: leave it out, or choose a model without .en in its name."
            )
        return (self.sot,)

    @cached_property
    def blank_tokens(self) -> tuple[int, ...]:
        """What a transcript may not start with: a lone space, and its own end."""
        return (*self.encode(" "), self.eot)

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Ids of symbols that annotate rather than speak, sorted: speaker tags, brackets, music notes."""
        suppressed = {self.encode(text)[0] for text in _INSIDE_WORDS_ONLY}
        for symbol in (*_ANNOTATIONS, *_MUSIC):
            for tokens in (self.encode(symbol), self.encode(" " + symbol)):
                if len(tokens) == 1 or symbol in _MUSIC:
                    suppressed.add(tokens[0])
        return tuple(sorted(suppressed))

    def suppressed(self, suppress_tokens: Iterable[int]) -> tuple[int, ...]:
        """Ids that must never be sampled, sorted: those asked for, and the symbols that no transcript holds.

        Raises: `UsageError` when an id is not in the vocabulary.
        """
        asked = set(suppress_tokens)
        outside = sorted(token for token in asked if not NON_SPEECH <= token < self.encoding.n_vocab)
        if outside:
            raise UsageError(
                f"suppress_tokens holds {outside[0]}: allowed are ids from 0 to {self.encoding.n_vocab - 1}, "
                f"and {NON_SPEECH} for all non-speech symbols."
            )
        if NON_SPEECH in asked:
            asked = asked - {NON_SPEECH} | set(self.non_speech_tokens)
        prompt_only = {self.sot, self.sot_lm, self.sot_prev, self.transcribe, self.translate, self.no_speech}
        return tuple(sorted(asked | prompt_only))


@cache
def _tokenizer(n_vocab: int, is_multilingual: bool, num_languages: int) -> Tokenizer:
    if n_vocab not in _VOCABULARIES:
        sizes = ", ".join(str(size) for size in _VOCABULARIES)
        raise ModelError(f"The model has a vocabulary of {n_vocab} tokens: Whisper's three have {sizes}.")
    languages = tuple(LANGUAGES)[:num_languages]
    ranks = _ranks(_VOCABULARIES[n_vocab])
    ids = {name: len(ranks) + index for index, name in enumerate(_symbols(languages))}
    return Tokenizer(
        encoding=tiktoken.Encoding(
            _VOCABULARIES[n_vocab],
            pat_str=_WORDS,
            mergeable_ranks=ranks,
            special_tokens=ids,
            explicit_n_vocab=n_vocab,
        ),
        is_multilingual=is_multilingual,
        languages=languages,
        eot=ids["<|endoftext|>"],
        sot=ids["<|startoftranscript|>"],
        translate=ids["<|translate|>"],
        transcribe=ids["<|transcribe|>"],
        sot_lm=ids["<|startoflm|>"],
        sot_prev=ids["<|startofprev|>"],
        no_speech=ids["<|nospeech|>"],
        no_timestamps=ids["<|notimestamps|>"],
        timestamp_begin=ids["<|0.00|>"],
    )


def _symbols(languages: tuple[str, ...]) -> list[str]:
    """Names of all symbols in the order of their ids, which follow the last byte pair."""
    before = ["endoftext", "startoftranscript"]
    after = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    times = [f"{index * TIMESTAMP_STEP:.2f}" for index in range(NUM_TIMESTAMPS)]
    return [f"<|{name}|>" for name in (*before, *languages, *after, *times)]


def _ranks(name: str) -> dict[bytes, int]:
    lines = (_ASSETS / f"{name}.tiktoken").read_text().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
