"""The statements by which `plan.py` finds what a run has to do; each makes a table of a connection of `ledger.py`.

    listing ─┬─ whole ──▶ candidates ──┬─ files ──▶ due ──▶ pending ──▶ owners
             │   ▲                     │    ▲
             └─ several                └─ relevant
                 ▲                          ▲
               media, ledger of the store   ledger

A key is the media_id as 128 bits: in hash tables of millions of rows, half the size of its 32 digits. It refuses to
know where the views come from, and what becomes of the tables.
"""

from __future__ import annotations

from pipeline.inventory import TYPICAL_BYTES_PER_SECOND, UNKNOWN_BYTES_PER_SECOND
from pipeline.records import WITH_TEXT, WORTH_ANOTHER_TRY

_TEXT = ", ".join(f"'{status}'" for status in WITH_TEXT)
_AGAIN = ", ".join(f"'{status}'" for status in WORTH_ANOTHER_TRY)
_ABOVE_ATTEMPTS = 1_000_000_000  # so that text wins over any number of attempts

# As `inventory.media_id` and `inventory.estimate_seconds` have them.
MEDIA_ID = "left(sha256(concat_ws(chr(0), uri, version, bytes)), 32)"
_SUFFIX = r"lower(regexp_extract(uri, '[^/](\.[^./]+)$', 1))"
_RATES = " ".join(f"WHEN '{suffix}' THEN {rate}" for suffix, rate in TYPICAL_BYTES_PER_SECOND.items())
_SECONDS = f"bytes / CASE {_SUFFIX} {_RATES} ELSE {UNKNOWN_BYTES_PER_SECOND} END"


def _key(column: str) -> str:
    return f"try_cast({column} AS UUID)"


# Most files are whole at the first look, which takes a bit for each part, of those that a BIGINT has to spare.
_BITS = 62
WHOLE = f"""
CREATE TABLE whole AS
    SELECT key FROM (
        SELECT {_key("media_id")} AS key, max("index") FILTER (is_last) AS last,
            bool_and(status NOT IN ({_AGAIN}) AND same_as IS NULL AND "index" < {_BITS}) AS plain,
            bit_or(if("index" < {_BITS}, 1::BIGINT << "index", 0)) AS seen
        FROM ledger GROUP BY key)
    WHERE plain AND seen = (1::BIGINT << (last + 1)) - 1
"""
NONE_WHOLE = "CREATE TABLE whole (key UUID)"

# The uris that are known below the sources: how many, and which have had several versions. Of these one that is whole
# may be a version that has come back. Half an MD5 stands for a uri: `hash` was found to be the same for 12,000 pairs of
# ten million uris that differ in their digits only.
KNOWN = """
CREATE TABLE known AS
    SELECT count(*) AS uris, coalesce(list(place) FILTER (versions > 1), []) AS several
    FROM (SELECT md5_number_lower(uri) AS place, count(*) AS versions FROM media WHERE {below} GROUP BY place)
"""

# What of the listing may be something to do, or to note. The listing is read once, here.
CANDIDATES = f"""
CREATE TABLE candidates AS
    WITH several AS (SELECT unnest(several) AS place FROM known),
    named AS (SELECT *, {MEDIA_ID} AS media_id, {_key("media_id")} AS key FROM listing)
    SELECT named.*, whole.key IS NOT NULL AS is_whole
    FROM named LEFT JOIN whole USING (key)
    WHERE whole.key IS NULL OR md5_number_lower(uri) IN (FROM several)
"""

# Which version of the candidates' uris the table of media shows: none of what is new.
CURRENT = """
CREATE TABLE current AS
    SELECT uri, arg_max(media_id, seen_at) AS media_id
    FROM media SEMI JOIN (SELECT uri FROM candidates) AS wanted USING (uri) GROUP BY uri
"""
NEWS = """
SELECT candidates.media_id, candidates.uri, version, bytes, modified_at, current.media_id IS NOT NULL AS changed
FROM candidates LEFT JOIN current USING (uri)
WHERE current.media_id IS DISTINCT FROM candidates.media_id ORDER BY position
"""

# The files whose rows of the ledger decide: candidates, and what may hold the same bytes as one of them, which is to
# say as many. That is how the owner of a copy comes in, wherever it is now. Of what is whole, only the row that tells
# its content is needed.
WANTED = f"""
CREATE TABLE wanted AS
    WITH unfinished AS (SELECT key, bytes FROM candidates WHERE NOT is_whole),
    alike AS (SELECT {_key("media_id")} AS key, bytes FROM media SEMI JOIN unfinished USING (bytes)),
    needed AS (FROM alike UNION FROM unfinished)
    SELECT needed.key, bytes, whole.key IS NOT NULL AS is_whole FROM needed LEFT JOIN whole USING (key)
"""
RELEVANT = f"""
CREATE TABLE relevant AS
    SELECT known.*, bytes, is_whole FROM (SELECT *, {_key("media_id")} AS key FROM ledger) AS known
    JOIN wanted USING (key) WHERE NOT is_whole OR sha256 IS NOT NULL
"""

# One row per file that is not whole. `done` holds the indices with a verdict that stays; `last` the index of the last
# part, once that has one; `attempts` is of what has to be tried again, and `settled` says that nothing will be. A file
# `speaks` for its copies once it is settled by what its bytes are: not if they could not be had in the end.
FILES = f"""
CREATE TABLE files AS
    WITH parts AS (
        SELECT key, "index", max(attempts) AS attempts, any_value(part_seconds) AS part_seconds,
            arg_max(status NOT IN ({_AGAIN}), rank) AS done, arg_max(is_last, rank) AS is_last, bool_or(text) AS text
        FROM (SELECT *, status IN ({_TEXT}) AS text, attempts + if(text, {_ABOVE_ATTEMPTS}, 0) AS rank
            FROM relevant WHERE same_as IS NULL AND NOT is_whole)
        GROUP BY key, "index"),
    own AS (
        SELECT key, any_value(part_seconds) AS part_seconds, max("index") FILTER (done AND is_last) AS last,
            coalesce(list_sort(list("index") FILTER (done)), []) AS done, bool_or(text) AS has_text,
            coalesce(max(attempts) FILTER (NOT done), 0) AS attempts
        FROM parts GROUP BY key),
    failed AS (
        SELECT key, count(DISTINCT attempts) AS times, arg_max(sha256 IS NULL, attempts) AS unread
        FROM relevant WHERE same_as IS NULL AND NOT is_whole AND status IN ({_AGAIN}) GROUP BY key),
    copies AS (
        SELECT key, {_key("arg_max(same_as, attempts)")} AS owner, max(attempts) AS attempts
        FROM relevant WHERE same_as IS NOT NULL GROUP BY key),
    alone AS (
        SELECT *, coalesce(len(list_filter(done, lambda i: i <= last)) = last + 1, false) AS complete,
            complete OR coalesce(times > {{retries}}, false) AS settled, settled AND (complete OR NOT unread) AS speaks
        FROM own LEFT JOIN failed USING (key))
    SELECT key, alone.part_seconds, alone.last, coalesce(alone.done, []) AS done,
        greatest(coalesce(alone.attempts, 0), coalesce(copies.attempts, 0)) AS attempts,
        coalesce(alone.speaks, false) AS speaks, coalesce(alone.settled, false)
            OR (NOT coalesce(alone.has_text, false) AND coalesce(owners.speaks, false)) AS settled
    FROM alone FULL JOIN copies USING (key) LEFT JOIN (
        SELECT key, speaks FROM alone UNION ALL SELECT key, true FROM wanted WHERE is_whole
    ) AS owners ON owners.key = copies.owner
"""

DUE = f"""
CREATE TABLE due AS
    SELECT candidates.*, {_SECONDS} AS seconds, files.part_seconds, coalesce(files.done, []) AS done_parts,
        files.last + 1 AS parts_total, coalesce(files.attempts, 0) + 1 AS attempt,
        NULL::STRUCT(uri VARCHAR, version VARCHAR)[] AS others
    FROM candidates LEFT JOIN files USING (key) WHERE NOT is_whole AND NOT coalesce(files.settled, false)
"""
PENDING = "CREATE VIEW pending AS FROM due"
# What comes first is done however long it is, or a file longer than the limit would never be.
OLDEST_FIRST = "modified_at NULLS LAST, position"
OLDEST_PENDING = f"""
CREATE TABLE pending AS
    SELECT * EXCLUDE (before) FROM (
        SELECT *, coalesce(sum(seconds) OVER (
            ORDER BY {OLDEST_FIRST} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM due)
    WHERE before < {{most_seconds}}
"""

# Whose content is known: of what is settled, and of what this run goes on with. A file that is half done and gone from
# the archive is left out, else its copies would wait for it for ever.
OWNERS = """
SELECT unhex(sha256) AS sha256, min({'later': later, 'media_id': owner}).media_id AS media_id
FROM (
    SELECT sha256, media_id AS owner, false AS later
        FROM relevant WHERE same_as IS NULL AND sha256 IS NOT NULL AND bytes IN (SELECT bytes FROM pending)
        AND (is_whole OR key IN (SELECT key FROM files WHERE speaks))
    UNION ALL
    SELECT sha256, coalesce(same_as, media_id) AS owner, true AS later
        FROM relevant WHERE sha256 IS NOT NULL AND owner IN (SELECT media_id FROM pending))
GROUP BY sha256
"""

# For parts that are picked to be done again, in the place of `candidates`, `wanted` and `due`. Their file may have left
# the archive, or have moved within it: `others` are its copies, the one that was seen last first.
PICKED = f"""
CREATE TABLE wanted AS
    SELECT DISTINCT {_key("media_id")} AS key, NULL::BIGINT AS bytes, false AS is_whole FROM picked;
CREATE TABLE candidates AS
    SELECT DISTINCT ON (media_id) *, {_key("media_id")} AS key FROM media SEMI JOIN picked USING (media_id)
"""
PICKED_PENDING = f"""
CREATE TABLE pending AS
    SELECT candidates.*, {_SECONDS} AS seconds, files.part_seconds, files.last + 1 AS parts_total,
        latest.attempts + 1 AS attempt,
        list_filter(files.done, lambda i: NOT list_contains(chosen.indices, i)) AS done_parts, others.others
    FROM candidates JOIN files USING (key)
        JOIN (SELECT media_id, list("index") AS indices FROM picked GROUP BY media_id) AS chosen USING (media_id)
        JOIN (SELECT key, max(attempts) AS attempts FROM relevant GROUP BY key) AS latest USING (key)
        LEFT JOIN (
            SELECT same_as AS media_id, list({{'uri': uri, 'version': version}} ORDER BY seen_at DESC, uri) AS others
            FROM (SELECT DISTINCT ON (media_id) media_id AS copy, * EXCLUDE (media_id) FROM media)
            JOIN (SELECT DISTINCT media_id AS copy, same_as FROM ledger WHERE same_as IN (SELECT media_id FROM picked))
            USING (copy) GROUP BY same_as) AS others USING (media_id)
"""
