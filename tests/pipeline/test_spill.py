"""Where DuckDB spills to, and what is said where there is no such place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from model.errors import UsageError
from pipeline.spill import spill_folder


def test_every_folder_is_another_and_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = {spill_folder() for _ in range(3)}
    assert len(folders) == 3 and {folder.parent for folder in folders} == {tmp_path}
    assert list(tmp_path.iterdir()) == []


def test_without_a_temporary_folder_it_is_said_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = str(tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [nowhere])
    with pytest.raises(UsageError, match=r"^No temporary folder can be written: set TMPDIR to one that can, with "):
        spill_folder()
