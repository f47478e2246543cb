"""Where DuckDB puts what exceeds the memory: a name in the temporary folder of this machine."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

from model.errors import UsageError


def spill_folder() -> Path:
    """A name that nobody has; DuckDB makes the folder when it needs it, and removes it.

    Raises: `UsageError` when no temporary folder can be written.
    """
    try:
        return Path(tempfile.gettempdir(), f"earwitness-{uuid.uuid4().hex}")
    except FileNotFoundError as error:
        raise UsageError("No temporary folder can be written: set TMPDIR to one that can, with some room.") from error
