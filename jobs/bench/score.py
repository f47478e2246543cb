"""How right a contender was: word error rate against the transcripts, and how often it knew the language.

Texts are normalised as in the Whisper paper (appendix C) before they are compared. It knows texts only, not who heard
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.bench.recordings import Recording

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # scored by character, as in the paper


@dataclass(frozen=True)
class Score:
    """Word errors over all recordings, in words of the transcripts; `languages` is the share that was recognised."""

    errors: int
    words: int
    languages: float | None  # None where it was told, or nobody knows

    @property
    def word_error_rate(self) -> float:
        return self.errors / self.words if self.words else 0.0


def score(recordings: Sequence[Recording], texts: Sequence[str], languages: Sequence[str | None]) -> Score:
    """Compare what was heard with the transcripts of `recordings`, in the same order."""
    import jiwer

    pairs = [(_normal(r.text, r.spoken), _normal(t, r.spoken)) for r, t in zip(recordings, texts, strict=True)]
    pairs = [(said, heard) for said, heard in pairs if said]
    if not pairs:
        return Score(0, 0, None)
    compared: Any = jiwer.process_words([said for said, _ in pairs], [heard for _, heard in pairs])
    errors = compared.substitutions + compared.deletions + compared.insertions
    known = [r.spoken == found for r, found in zip(recordings, languages, strict=True) if r.spoken and not r.language]
    return Score(errors, errors - compared.insertions + compared.hits, sum(known) / len(known) if known else None)


def _normal(text: str, language: str | None) -> str:
    """Lower case, no punctuation; English numbers and spellings made one, accents dropped elsewhere."""
    normal: str = _normalizer(language)(text).strip()
    return normal


@cache
def _normalizer(language: str | None) -> Any:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if language == "en":
        return EnglishTextNormalizer()
    # Debian's Spanish transcripts are written without accents.
    return BasicTextNormalizer(remove_diacritics=True, split_letters=language in UNSPACED)
