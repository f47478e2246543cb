"""Token ids as one argument."""

from __future__ import annotations

import pytest

from jobs.flags import token_ids
from model.errors import UsageError


@pytest.mark.parametrize(
    ("given", "ids"),
    [(None, None), ("", ()), ("5", (5,)), ("5,7,-1", (5, 7, -1)), (" 5, 7 ,", (5, 7)), ("-1", (-1,))],
)
def test_ids_stand_between_commas(given: str | None, ids: tuple[int, ...] | None) -> None:
    assert token_ids(given) == ids


@pytest.mark.parametrize("given", ["x", "1,x", "1.5", "1;2"])
def test_what_is_no_id_is_named(given: str) -> None:
    with pytest.raises(UsageError, match=f"^--suppress-tokens is '{given}': give ids with commas between them, and"):
        token_ids(given)
