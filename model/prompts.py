"""What a window is prompted with: likely words, the text before it, and the symbols that start a transcript.

    [prev] + hotwords + initial prompt and text before, the newest + [sot, language, task]

Half of the decoder's context, less the `prev` symbol, is for what stands before `sot`: 223 tokens (openai/whisper,
`decoding.py`). Hotwords stand before every window and are never cut; the text before gets the room that they leave, and
loses its oldest tokens first. The initial prompt is the oldest text of a part, so it fades as text comes, and is gone
with it when the text before is dropped; hotwords stay. Without hotwords this is the reference's prompt.

It knows tokens, and nothing of how they came about, or which of them may be shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.dimensions import Dimensions
from model.errors import UsageError
from model.tokenizer import Tokenizer


def prompt_room(dims: Dimensions) -> int:
    """Tokens that may stand between `prev` and `sot`: 223."""
    return dims.n_text_ctx // 2 - 1


def hotword_tokens(hotwords: str | None, tokenizer: Tokenizer, dims: Dimensions) -> tuple[int, ...]:
    """Token ids of `hotwords` as text in the middle of speech, with a space before it; none for None.

    Raises: `UsageError` when they do not fit into a prompt: cut, some would silently have no effect.
    """
    tokens = tuple(tokenizer.encode(" " + hotwords.strip())) if hotwords is not None else ()
    room = prompt_room(dims)
    if len(tokens) > room:
        raise UsageError(f"hotwords takes {len(tokens)} tokens: give fewer words, so that they take at most {room}.")
    return tokens


def prompt_tokens(
    hotwords: Sequence[int], text_before: Sequence[int], start: Sequence[int], tokenizer: Tokenizer, dims: Dimensions
) -> list[int]:
    """Tokens the decoder starts from: `start` alone where nothing stands before it.

    hotwords: of `hotword_tokens`. text_before: the initial prompt and all text that may be shown, timestamps included.
    start: of `Tokenizer.sot_sequence`.
    """
    room = prompt_room(dims) - len(hotwords)
    shown = [*hotwords, *text_before[max(0, len(text_before) - room) :]]
    return [tokenizer.sot_prev, *shown, *start] if shown else [*start]
