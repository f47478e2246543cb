"""Create-once objects, on local disk and on a real S3 server."""

from __future__ import annotations

import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from model.errors import DestinationError
from pipeline.objects import ObjectStore
from pipeline.storage import ObjectExists


def test_what_is_created_can_be_read_listed_and_deleted(destination: str) -> None:
    objects = ObjectStore(destination)
    objects.create("a/b/one", b"1")
    objects.create("a/two", b"22")
    assert objects.read("a/b/one") == b"1"
    assert objects.list() == {"a/b/one": 1, "a/two": 2}
    assert objects.list("a/b") == {"a/b/one": 1}
    assert objects.list("nowhere") == {}
    assert objects.exists("a/two") and not objects.exists("a/three")
    objects.delete("a/two")
    objects.delete("a/two")
    assert objects.list() == {"a/b/one": 1}
    with pytest.raises(FileNotFoundError):
        objects.read("a/two")


def test_the_same_bytes_twice_are_success_and_other_bytes_never_replace(destination: str) -> None:
    objects = ObjectStore(destination)
    objects.create("key", b"first")
    objects.create("key", b"first")
    with pytest.raises(ObjectExists):
        objects.create("key", b"second")
    assert objects.read("key") == b"first"
    assert objects.list() == {"key": 5}, "nothing unfinished is left behind"


def test_of_racing_creates_exactly_one_wins(destination: str) -> None:
    def create(number: int) -> bool:
        try:
            ObjectStore(destination).create("race/key", str(number).encode())
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert ObjectStore(destination).read("race/key") == str(won.index(True)).encode()


def test_an_object_is_never_seen_half_written(destination: str) -> None:
    data = os.urandom(6 << 20)
    objects = ObjectStore(destination)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(objects.create, "large", data)
        while not writing.done():
            assert objects.list().get("large", len(data)) == len(data)
    assert objects.read("large") == data
    with objects.open("large") as file:
        file.seek(1000)
        assert file.read(10) == data[1000:1010]


def test_many_are_read_at_once(destination: str) -> None:
    objects = ObjectStore(destination)
    for number in range(5):
        objects.create(f"many/{number}", str(number).encode())
    wanted = ["many/1", "many/4"]
    assert objects.read_many(wanted) == {"many/1": b"1", "many/4": b"4"}
    assert objects.read_many(["many/3"]) == {"many/3": b"3"}


def test_the_probe_accepts_an_honest_storage_and_leaves_nothing(destination: str) -> None:
    objects = ObjectStore(destination)
    assert objects.is_empty()
    objects.probe()
    assert objects.is_empty()
    objects.create("x", b"")
    assert not objects.is_empty()


def test_a_lost_answer_is_settled_by_reading_back(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = ObjectStore("s3://tests/lost-answer")
    put = objects._fs.pipe_file

    def put_and_lose_the_answer(*args: Any, **options: Any) -> None:
        put(*args, **options)
        raise OSError("connection reset")

    monkeypatch.setattr(objects._fs, "pipe_file", put_and_lose_the_answer)
    objects.create("key", b"mine")
    assert objects.read("key") == b"mine"


def test_a_write_that_did_not_happen_is_tried_again_and_then_explained(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = ObjectStore("s3://tests/conflicts")
    put = objects._fs.pipe_file
    answers = [OSError("409 conflict"), OSError("503 slow down")]

    def busy(*args: Any, **options: Any) -> None:
        if answers:
            raise answers.pop()
        put(*args, **options)

    monkeypatch.setattr(objects._fs, "pipe_file", busy)
    monkeypatch.setattr("pipeline.storage.BACKOFF_SECONDS", 0.001)
    objects.create("key", b"mine")
    assert objects.read("key") == b"mine"
    answers.extend(OSError("503 slow down") for _ in range(9))
    with pytest.raises(DestinationError, match="503 slow down"):
        objects.create("other", b"mine")


@pytest.mark.parametrize(("patience", "survives"), [(0.0, False), (20.0, True)])
def test_a_bucket_that_is_away_for_a_moment_is_waited_for_in_the_middle_of_a_run(
    s3: Any, monkeypatch: pytest.MonkeyPatch, patience: float, survives: bool
) -> None:
    objects = pickle.loads(pickle.dumps(ObjectStore("s3://tests/away", patience)))
    objects.create("key", b"mine")
    monkeypatch.setattr("pipeline.objects.PAUSE_SECONDS", (0.001, 0.002))
    cat_file, failures = objects._fs.cat_file, iter(range(9))

    def restarting(key: str) -> Any:
        if next(failures, None) is not None:
            raise OSError("connection refused")
        return cat_file(key)

    monkeypatch.setattr(objects._fs, "cat_file", restarting)
    with nullcontext() if survives else pytest.raises(DestinationError, match="cannot be used to read key"):
        assert objects.read("key") == b"mine"


def test_a_disk_that_fails_is_not_waited_for(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path), patience=1e6)
    (tmp_path / "folder").write_text("a file where a folder should be")
    with pytest.raises(DestinationError, match="cannot be used to write folder/key"):
        objects.create("folder/key", b"mine")


def test_the_probe_refuses_a_server_that_ignores_the_condition(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = ObjectStore("s3://tests/careless")
    put = objects._fs.pipe_file
    # As rclone's and JuiceFS's gateways do: If-None-Match is dropped on the way.
    monkeypatch.setattr(objects._fs, "pipe_file", lambda key, data, mode: put(key, data, mode="overwrite"))
    with pytest.raises(DestinationError, match="one key be created twice"):
        objects.probe()
    assert objects.is_empty()


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_bad_credentials_are_one_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(DestinationError, match="check AWS_ACCESS_KEY_ID") as caught:
        ObjectStore("s3://tests/x").probe()
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_one_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DestinationError, match="Unable to locate credentials"):
        ObjectStore("s3://tests/x").probe()


def test_a_missing_bucket_is_named(s3: Any) -> None:
    with pytest.raises(DestinationError, match="The bucket no-such-bucket does not exist"):
        ObjectStore("s3://no-such-bucket/x").probe()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot be used to write"):
        ObjectStore(str(tmp_path / "file" / "below")).probe()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DestinationError, match="refuses to write"):
        ObjectStore(str(tmp_path)).probe()


@pytest.mark.parametrize("url", ["gs://bucket/x", "gopher://x", "s3://", "s3:///", "file://", "", " ", "/"])
def test_urls_of_other_kinds_are_refused(url: str) -> None:
    with pytest.raises(DestinationError, match="cannot hold tables: give a folder or s3://BUCKET/PREFIX"):
        ObjectStore(url)


def test_a_file_url_is_the_folder(tmp_path: Path) -> None:
    ObjectStore(f"file://{tmp_path}/").create("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_no_credentials_travel(s3: Any) -> None:
    objects = ObjectStore("s3://tests/pickled")
    objects.create("x", b"1")
    payload = pickle.dumps(objects)
    assert s3.secret.encode() not in payload and s3.key.encode() not in payload
    assert pickle.loads(payload).read("x") == b"1"


def test_storage_options_come_from_the_environment(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ObjectStore(str(tmp_path)).storage_options == {}
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    options = ObjectStore("s3://tests/x").storage_options
    assert options["aws_endpoint_url"] == s3.endpoint and options["aws_allow_http"] == "true"
    assert options["aws_session_token"] == "token" and options["aws_conditional_put"] == "etag"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.example")
    assert "aws_allow_http" not in ObjectStore("s3://tests/x").storage_options
