"""Whether an attempt has begun to repeat itself and will fail for it, seen while it is still being sampled.

Whisper sometimes falls into saying the same over and over, surer of it each time, until its 224 tokens are full; then
the compression ratio of the text rejects the attempt (`fallback.REPETITIVE`). Two observations together tell earlier:
the text ends in the same tokens several times over, and what there is of it compresses too well already. More of the
same only compresses better. It knows tokens and text; what becomes of the attempt is the engine's affair.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.fallback import compression_ratio
from model.tokenizer import Tokenizer

LOOP = "loop"  # an attempt was ended and rejected: its text had begun to repeat itself

CHECK_EVERY = 8  # tokens: a look takes some microseconds
LEAST_REPEATS = 3  # of the same tokens, up to the last one
# Tokens that the repeats span. Somebody may well say "Hello?" ten times before he is heard; what is said in the rest of
# the window must not be able to bring the ratio down again. 64 tokens of speech fill about 17 of its 30 seconds.
LEAST_TOKENS = 64
MARGIN = 0.3  # above the threshold of the ratio, which falls a little when a loop is left in the middle of a character


def is_looping(tokens: Sequence[int], tokenizer: Tokenizer, threshold: float | None) -> bool:
    """Whether an attempt that has sampled `tokens` so far, timestamps included, repeats itself.

    Looks at every eighth token only, and so may be asked after each. Timestamps are passed over, as they are no part of
    the text. threshold: `DecodeOptions.compression_ratio_threshold`; without one, no loop is ever rejected.
    """
    if threshold is None or len(tokens) % CHECK_EVERY or len(tokens) < LEAST_TOKENS:
        return False
    text = [token for token in tokens if token < tokenizer.timestamp_begin]
    return loop_period(text) is not None and compression_ratio(tokenizer.decode(text).strip()) > threshold + MARGIN


def loop_period(text: Sequence[int]) -> int | None:
    """Tokens after which the end of `text` repeats itself, for LEAST_TOKENS and LEAST_REPEATS times; None: it does not.

    Of several periods, the shortest.
    """
    for period in range(1, len(text) // LEAST_REPEATS + 1):
        span = max(LEAST_TOKENS, LEAST_REPEATS * period)
        if span > len(text):
            return None
        if text[-1] == text[-1 - period] and text[-span:-period] == text[-span + period :]:
            return period
    return None
