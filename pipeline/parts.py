"""From a manifest row to parts ready for the model: fetch, decode, cut in a pause, log-mel.

    MANIFEST row ──fetch──▶ private file ──ffmpeg──▶ samples ──cut──▶ parts ──log-mel──▶ AUDIO rows, one at a time

Rows leave while ffmpeg still reads, so a file of ten hours takes no more memory than one of ten minutes. It refuses to
know what a model is, and what becomes of the rows.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.dimensions import HOP_LENGTH, SAMPLE_RATE
from model.errors import MediaError
from model.features import log_mel, pcm_to_float
from pipeline import records
from pipeline.channels import LoudestChannel
from pipeline.config import ReadOptions
from pipeline.cuts import NO_PART, PcmPart, cut_parts
from pipeline.inventory import fetch
from pipeline.media import Decoding, MediaReport, name_for
from pipeline.ogg import close_holes
from pipeline.register import MAX_DEATHS, Answers, Claims
from pipeline.sandbox import private_file, sweep
from pipeline.voice import Voice

ROOM_BYTES = 1 << 30  # for nearly every recording; a disk with less is full, whatever is read
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Content:
    """Which bytes a file holds, and the media_id of another one that holds the same and stands for it."""

    sha256: str | None = None
    same_as: str | None = None


_ReadPart = tuple[PcmPart, MediaReport, Content]


def part_id(media_id: str, index: int, start: float, end: float, generation: str, channel: int | None = None) -> str:
    """Name of a part by its content, 32 hex digits; the times are seconds, to the microsecond."""
    named = f"{media_id} {index} {start:.6f} {end:.6f} {generation}" + ("" if channel is None else f" {channel}")
    return hashlib.sha256(named.encode()).hexdigest()[:32]


class ReadParts:
    """The Ray stage that reads media on CPUs: rows of `records.MANIFEST` in, rows of `records.AUDIO` out.

    Every row that comes in leads to exactly one row with `is_last`, which carries the verdict on the file, unless that
    verdict is in the ledger already, or the deadline of the run comes before the file is begun. An object that cannot
    be read becomes a row; any other exception is a bug, and raises.
    """

    def __init__(
        self,
        n_mels: int,
        generation: str,
        options: ReadOptions | None = None,
        on_file: Callable[[int, float, bool], None] = lambda size, seconds, failed: None,
        register: Answers | None = None,
    ) -> None:
        self._n_mels = n_mels
        self._generation = generation
        self._options = options or ReadOptions()
        self._voice = Voice() if self._options.voice_activity else None
        sweep()
        self._on_file = on_file  # told of each file that is read: its bytes, its seconds, whether it failed
        self._register = register or Claims()  # without one of the whole run, what this reader itself remembers

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One table of one row for each part, so that a part moves on while the next is read."""
        for media in batch.to_pylist():
            if not self._register.begins(media["media_id"]):
                continue
            furthest = self._register.opened(media["media_id"])
            try:
                rows = self._rows(media) if furthest is None else self._rows_of_the_given_up(media, furthest)
                for number, row in enumerate(rows, start=1):
                    if row["is_last"]:
                        self._on_file(media["bytes"], row["end"], row["status"] in records.FAILURES)
                    table = pa.Table.from_pylist([row], schema=records.AUDIO)
                    self._register.handed_on(media["media_id"], number)
                    yield table
            finally:
                self._register.closed(media["media_id"])

    def _rows(self, media: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        done = frozenset(media["done_parts"] or ())
        spent = {"fetch_seconds": 0.0, "decode_seconds": 0.0}
        with closing(self._read(media, spent)) as parts:  # a bug below must not leave ffmpeg behind
            for part, report, content in parts:
                failed = part.is_last and report.status in records.WORTH_ANOTHER_TRY
                index = _free_index(part.index, media) if failed else part.index
                if index is not None and index not in done:
                    part = replace(part, index=index)
                    yield {**self._row(media, part), **_evidence(part, report, content), **spent}
                    spent.update(fetch_seconds=0.0, decode_seconds=0.0)

    def _rows_of_the_given_up(self, media: dict[str, Any], furthest: int) -> Iterator[dict[str, Any]]:
        """As many rows as somebody may have of an object that ends its readers, and a failure behind them."""
        part = NO_PART
        with closing(self._rows(media)) as rows:
            for row in itertools.islice(rows, furthest):
                yield row
                if row["is_last"]:
                    return
                part = replace(NO_PART, index=row["index"] + 1, first_sample=round(row["end"] * SAMPLE_RATE))
        index = _free_index(part.index, media)
        if index is not None:
            report = MediaReport("failed", f"It ended its reader {MAX_DEATHS} times, and is left alone in this run.")
            yield {**self._row(media, replace(part, index=index)), **_evidence(part, report, Content())}

    def _read(self, media: dict[str, Any], spent: dict[str, float]) -> Generator[_ReadPart, None, None]:
        """Every part with what is known of its file by then; at least one. Adds the time that each took to `spent`."""
        with private_file(name_for(media["uri"])) as path:
            try:
                content = self._content(media, _timed_fetch(media, path, spent))
            except MediaError as error:
                yield NO_PART, MediaReport(error.status, str(error)), Content()
                return
            if content.same_as is not None:
                yield NO_PART, MediaReport(records.SAME, None), content
                return
            hole = close_holes(path)
            decoding = Decoding(path, self._options, damage=f"{hole} bytes are no pages of Ogg" if hole else None)
            waited = 0.0
            with closing(iter(decoding)) as chunks, closing(LoudestChannel(decoding)) as listen:
                for part in _or_no_part(cut_parts(chunks, media["part_seconds"], self._voice, listen)):
                    spent["decode_seconds"] += listen.waited_seconds - waited
                    waited = listen.waited_seconds
                    report = decoding.report
                    if report.status not in records.WITH_TEXT:
                        yield _lost_end(part), report, content
                        return
                    yield part, report, content

    def _content(self, media: dict[str, Any], sha256: str) -> Content:
        """What the bytes are, and who has them already.

        A file that has parts of its own goes on with these, and one that is read by its name has nobody's but its own.
        """
        if name_for(media["uri"]) != name_for(""):
            return Content(sha256)
        owner = self._register.claim(sha256, media["media_id"])
        begun = media["done_parts"] or media["parts_total"] is not None
        return Content(sha256, None if begun or owner == media["media_id"] else owner)

    def _row(self, media: dict[str, Any], part: PcmPart) -> dict[str, Any]:
        """Identity and log-mel of one part."""
        started = time.monotonic()
        mel = log_mel(pcm_to_float(part.pcm), self._n_mels) if len(part.pcm) else None
        return dict(
            part_id=part_id(media["media_id"], part.index, part.start, part.end, self._generation, part.channel),
            media_id=media["media_id"],
            uri=media["uri"],
            index=part.index,
            start=part.start,
            end=part.end,
            is_last=part.is_last,
            channel=part.channel,
            antiphase=part.antiphase,
            part_seconds=media["part_seconds"],
            attempts=media["attempt"],
            generation=self._generation,
            mel_seconds=time.monotonic() - started,
            mel=None if mel is None else mel.tobytes(),
            mel_frames=0 if mel is None else mel.shape[1],
            content_frames=len(part.pcm) // HOP_LENGTH,
            speech_seconds=None if part.speech is None else part.speech.seconds,
            speech=None if part.speech is None else part.speech.spans,
        )


def _timed_fetch(media: dict[str, Any], target: Path, spent: dict[str, float]) -> str:
    started = time.monotonic()
    _require_room(media["bytes"], target.parent)
    try:
        return fetch(media["uri"], media["version"], target)
    except OSError as error:
        if error.errno not in NO_ROOM or target.stat().st_size < ROOM_BYTES:
            raise
        raise _no_room(media["bytes"], target.stat().st_size) from error
    except MediaError:
        for other in media["others"] or ():
            with suppress(MediaError):
                return fetch(other["uri"], other["version"], target)
        raise
    finally:
        spent["fetch_seconds"] += time.monotonic() - started


def _require_room(size: int, folder: Path) -> None:
    """An object that does not fit is a failure of its own, and left to another machine, or night.

    On a disk that is all but full every other would fail as well: that raises as what it is, when it is written.
    """
    free = shutil.disk_usage(folder).free
    if size > free >= ROOM_BYTES:
        raise _no_room(size, free)


def _no_room(size: int, free: int) -> MediaError:
    return MediaError("failed", f"Its {size:,} bytes do not fit into {free:,} on this disk: set TMPDIR to another.")


def _evidence(part: PcmPart, report: MediaReport, content: Content) -> dict[str, Any]:
    """The columns on how the file was read; those that are only known at its end stand on its last part."""
    columns = asdict(report) | asdict(content)
    if not part.is_last:
        columns |= dict(status="ok", error=None, sha256=None, decoded_seconds=None, decode_errors=None)
    return columns


def _or_no_part(parts: Iterator[PcmPart]) -> Iterator[PcmPart]:
    """The parts, or NO_PART for a file without a single sample."""
    first = next(parts, NO_PART)
    yield first
    yield from parts


def _lost_end(part: PcmPart) -> PcmPart:
    """The last part of a file that could not be read to its end: without its samples, and for all of its channels.

    Another run may read them whole. No part before it can be of such a file: that is known when the stream has ended.
    """
    return replace(part, pcm=part.pcm[:0], is_last=True, speech=None, channel=None, antiphase=False)


def _free_index(index: int, media: dict[str, Any]) -> int | None:
    """Where the failure of a file stands: where this run got to, an earlier one may have been, so behind its parts.

    None where the ledger knows how many parts there are, and all from `index` on are done: nothing was lost.
    """
    total = media["parts_total"]
    indices = itertools.count(index) if total is None else range(index, total)
    done = frozenset(media["done_parts"] or ())
    return next((free for free in indices if free not in done), None)
