"""Every record that travels or is stored, as Arrow schemas. This file imports no other of the project.

A run moves four kinds of rows, stores three, and leaves one of its own in the table of RUNS:

    MANIFEST ──read──▶ AUDIO ──transcribe──▶ RESULT ──sink──▶ SHARD ──publish──▶ tables MEDIA, PARTS, SEGMENTS

Times are seconds; `start` and `end` count from the start of the file, so a row can be read without its part.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 3  # part of every generation: a change of meaning makes a new one

# What a part can come to, in order of severity. "same" says nothing of the bytes: the verdict is that of `same_as`.
SAME = "same"
WITH_TEXT = ("ok", "damaged", "truncated")
FAILURES = ("no_audio", "rejected", "timeout", "failed")
STATUSES = (SAME, *WITH_TEXT, *FAILURES)
WORTH_ANOTHER_TRY = ("failed", "timeout")  # every other verdict is final


def _schema(**fields: pa.DataType) -> pa.Schema:
    return pa.schema(list(fields.items()))


# One object of the archive that this run has to read.
MANIFEST = _schema(
    media_id=pa.string(),
    uri=pa.string(),
    version=pa.string(),  # etag, version id, or modification time: whatever the storage offers
    bytes=pa.int64(),
    part_seconds=pa.float64(),  # longest part; infinity keeps the file whole
    done_parts=pa.list_(pa.int32()),  # indices already in the ledger for this generation
    parts_total=pa.int32(),  # how many parts it has, where the ledger knows; else null
    attempt=pa.int32(),  # 1, or more where an earlier run failed at it
    others=pa.list_(pa.struct(dict(uri=pa.string(), version=pa.string()))),  # where the same bytes were seen; or null
)

# Content that the ledger knows, so that the same bytes under another name are not transcribed again.
DIGEST_BYTES = 32  # of a sha256
OWNERS = _schema(sha256=pa.binary(DIGEST_BYTES), media_id=pa.string())

# The evidence of reading, one row per part. What is only known at the end of the file (sha256, decoded_seconds,
# decode_errors, a status of truncated or damaged) stands on the part with is_last.
_READ = dict(
    part_id=pa.string(),
    media_id=pa.string(),
    uri=pa.string(),
    index=pa.int32(),
    start=pa.float64(),
    end=pa.float64(),
    is_last=pa.bool_(),
    channel=pa.int32(),  # counted from 0; null for the mix of all
    antiphase=pa.bool_(),  # the mix would have cancelled itself out, so one channel was taken instead
    part_seconds=pa.float64(),
    status=pa.string(),
    error=pa.string(),
    attempts=pa.int32(),
    sha256=pa.string(),
    same_as=pa.string(),  # media_id of the object with the same bytes whose parts stand for this one's; else null
    container=pa.string(),
    codec=pa.string(),
    channels=pa.int32(),
    sample_rate=pa.int32(),
    expected_seconds=pa.float64(),  # what the container's header promised
    decoded_seconds=pa.float64(),
    decode_errors=pa.int32(),
    speech_seconds=pa.float64(),  # in which somebody speaks; null where nobody has looked
    generation=pa.string(),
    fetch_seconds=pa.float64(),
    decode_seconds=pa.float64(),
    mel_seconds=pa.float64(),
)

# A part ready for the model: float32 log-mel, C order, (n_mels, frames). Null when the part carries no audio. `speech`
# are the spans to read, [start, end) in frames of content: none where nobody speaks, null where nobody has looked.
_SPANS = pa.list_(pa.list_(pa.int32()))
AUDIO = _schema(**_READ, mel=pa.large_binary(), mel_frames=pa.int32(), content_frames=pa.int32(), speech=_SPANS)

_SEGMENT = dict(
    segment_index=pa.int32(),
    start=pa.float64(),
    end=pa.float64(),
    text=pa.string(),
    language=pa.string(),
    language_probability=pa.float64(),
    temperature=pa.float64(),
    avg_logprob=pa.float64(),
    compression_ratio=pa.float64(),
    no_speech_prob=pa.float64(),
    tokens=pa.list_(pa.int32()),
    attempts=pa.int32(),  # temperatures tried for the window this segment comes from
    rules_fired=pa.list_(pa.string()),
    words=pa.list_(
        pa.struct([("word", pa.string()), *((name, pa.float64()) for name in ("start", "end", "probability"))])
    ),
)

_TRANSCRIBED = dict(
    model=pa.string(),
    language=pa.string(),
    language_probability=pa.float64(),
    windows=pa.int32(),
    windows_retried=pa.int32(),  # windows that needed a temperature above the first
    windows_skipped=pa.int32(),  # windows taken for silence, or with nothing but text made up in it
    tokens=pa.int32(),  # sampled tokens, rejected attempts included
    covered_seconds=pa.float64(),  # seconds inside segments
    segments=pa.int32(),
    transcribe_seconds=pa.float64(),  # from entering the engine to leaving it: parts overlap
    worker=pa.string(),
)

_SEGMENTS = {"segment_rows": pa.list_(pa.struct(list(_SEGMENT.items())))}
RESULT = _schema(**_READ, **_TRANSCRIBED, **_SEGMENTS)

# What the sink prepared and the committer publishes: one row per shard.
SHARD = _schema(
    shard_id=pa.string(),
    parts_path=pa.string(),  # relative to the root of its table
    parts_bytes=pa.int64(),
    parts_rows=pa.int64(),
    segments_path=pa.string(),  # null when the shard holds no segment
    segments_bytes=pa.int64(),
    segments_rows=pa.int64(),
    audio_seconds=pa.float64(),
    failed_rows=pa.int64(),
)

# The Delta tables.
MEDIA = _schema(
    media_id=pa.string(),
    uri=pa.string(),
    version=pa.string(),
    bytes=pa.int64(),
    modified_at=pa.timestamp("us", tz="UTC"),
    seen_at=pa.timestamp("us", tz="UTC"),
)
PARTS = _schema(**_READ, **_TRANSCRIBED, committed_at=pa.timestamp("us", tz="UTC"))
SEGMENTS = _schema(
    media_id=pa.string(),
    part_id=pa.string(),
    uri=pa.string(),
    channel=pa.int32(),
    **_SEGMENT,
    generation=pa.string(),
)

# One row for each run that came to its end, written by the holder of the lease. Counts are of files where nothing else
# is said.
RUNS = _schema(
    run_id=pa.string(),  # also the name of its configuration below runs/, where it had something to do
    command=pa.string(),
    started_at=pa.timestamp("us", tz="UTC"),
    ended_at=pa.timestamp("us", tz="UTC"),
    generation=pa.string(),
    host=pa.string(),
    listed=pa.int64(),
    new=pa.int64(),
    changed=pa.int64(),
    missing=pa.int64(),  # known, and not listed any more; null where nobody looked
    pending=pa.int64(),  # begun by this run, or meant to be
    remaining=pa.int64(),  # left to the next one by a deadline or by max_hours; null: it ended before its end
    parts=pa.int64(),
    segments=pa.int64(),
    failed_parts=pa.int64(),
    audio_hours=pa.float64(),
    elapsed_seconds=pa.float64(),  # of the work: without listing and planning
    speed=pa.float64(),  # times real time
    worker_seconds=pa.float64(),  # elapsed, times the model actors
    gpu_seconds=pa.float64(),  # elapsed, times the GPUs that these booked
    cost_estimate=pa.float64(),  # worker_seconds at the price that was given; else null
    ended=pa.string(),  # done, deadline, max_hours, interrupted or error
    error=pa.string(),
)
