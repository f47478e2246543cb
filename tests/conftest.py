"""Fixtures that several test files share: a real S3 server, a fresh destination, and result rows to store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from infra.s3_server import S3Server, s3_server
from pipeline.records import RESULT
from tests.writers import writer_at

__all__ = ["writer_at"]  # a fixture: importing it is what pytest asks for

BUCKET = "tests"


LONGEST = "test_readme.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several files run at a time, the longest must not be the last one to begin."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server with the bucket `tests`; the AWS_* environment points at it for the rest of the session."""
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
        yield server


@pytest.fixture(params=["local", "s3"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A url nothing was stored under yet, on local disk and on the S3 server."""
    if request.param == "local":
        return str(tmp_path / "archive")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def results() -> Callable[..., pa.Table]:
    """Makes `records.RESULT` rows of one file: `parts` parts of 60 seconds with `segments` segments each."""

    def make(media: str, parts: int = 2, segments: int = 3, **changes: Any) -> pa.Table:
        generation = changes.get("generation", "0123456789abcdef")
        return pa.Table.from_pylist(
            [_result(media, index, parts, segments, generation) | changes for index in range(parts)], schema=RESULT
        )

    return make


def _result(media: str, index: int, parts: int, segments: int, generation: str) -> dict[str, Any]:
    last = index == parts - 1
    return dict.fromkeys(RESULT.names) | {
        "part_id": f"{media}-{index}-{generation}",
        "media_id": media,
        "uri": f"s3://archive/{media}.mp3",
        "index": index,
        "start": index * 60.0,
        "end": index * 60.0 + 60.0,
        "is_last": last,
        "part_seconds": 60.0,
        "status": "ok",
        "attempts": 1,
        "expected_seconds": parts * 60.0 if last else None,
        "decoded_seconds": parts * 60.0 if last else None,
        "generation": generation,
        "language": "en",
        "covered_seconds": segments * 4.0,
        "segment_rows": [_segment(index, number) for number in range(segments)],
    }


def _segment(index: int, number: int) -> dict[str, Any]:
    start = index * 60.0 + number * 5.0
    return {
        "segment_index": number,
        "start": start,
        "end": start + 4.0,
        "text": f" part {index} segment {number}",
        "language": "en",
        "language_probability": 0.99,
        "temperature": 0.0,
        "avg_logprob": -0.2,
        "compression_ratio": 1.2,
        "no_speech_prob": 0.01,
        "tokens": [50364, number, 50564],
        "attempts": 1,
        "rules_fired": [],
    }
