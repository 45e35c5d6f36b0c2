"""The artifact store, its locks and the data sources on a real S3 server."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from alignflow import s3
from alignflow.artifacts import Artifact, ArtifactStore, files
from alignflow.artifacts.garbage import collect, find_garbage
from alignflow.artifacts.remote import S3Backend
from alignflow.errors import (
    CorruptArtifactError,
    DataError,
    InputError,
    StoreAwayError,
    StoreError,
)
from alignflow.landing import fingerprint, seen_files
from alignflow.lineage import trace
from alignflow.locks import LeaseLock
from alignflow.sources import expand, fetch_digest, fetch_file, fetch_folder

pytestmark = pytest.mark.integration

KEY = hashlib.sha256(b"a stage").hexdigest()
CONTENT = {"a.txt": b"hello", "sub/b.bin": b"\1" * 100_000}


@pytest.fixture
def store(s3_bucket: str) -> ArtifactStore:
    return ArtifactStore(f"s3://{s3_bucket}/models/store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        path = tmp_path / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "output"


def publish(store: ArtifactStore, folder: Path, **more: Any) -> Artifact:
    options: dict[str, Any] = {"kind": "sft", "key": KEY, "code_version": "v"}
    return store.publish(folder, **(options | more))


def put(url: str, content: bytes) -> None:
    s3.write_bytes(s3.S3Path.parse(url), content)


def keys_below(url: str) -> list[str]:
    return [item.path.key for item in s3.list_objects(s3.S3Path.parse(url))]


def test_what_was_published_is_found_and_fetched(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    store.check_writable()
    assert store.find(KEY) is None
    made = publish(store, folder, metrics={"sft/loss": 0.5})
    assert made.uri == f"{store.url}/artifacts/{made.digest}"
    assert store.find(KEY) == made
    assert store.get(made.digest[:8]) == made
    fetched = store.fetch(made, tmp_path / "cache")
    assert {p: (fetched / p).read_bytes() for p in CONTENT} == CONTENT
    assert files.list_files(fetched) == sorted(CONTENT)
    assert [node.digest for node in trace(store, made).nodes.values()] == [made.digest]
    with pytest.raises(StoreError, match="there is no artifact"):
        store.get("0000")


def test_both_kinds_of_store_name_an_artifact_alike(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    local = publish(ArtifactStore(str(tmp_path / "store")), folder)
    assert publish(store, folder).digest == local.digest


def test_a_large_file_goes_in_parts(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    content = os.urandom(2**20) * 40
    (folder / "large.bin").write_bytes(content)
    made = publish(store, folder)
    answer = s3.stat(s3.S3Path.parse(f"{made.uri}/large.bin"))
    assert answer["ETag"].endswith('-3"')
    assert store.find(KEY) == made
    assert (store.fetch(made, tmp_path / "cache") / "large.bin").read_bytes() == content


def test_a_sound_copy_in_the_cache_is_kept_and_a_damaged_one_replaced(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    made = publish(store, folder)
    copy = store.fetch(made, tmp_path / "cache") / "a.txt"
    inode = copy.stat().st_ino
    assert store.fetch(made, tmp_path / "cache") / "a.txt" == copy
    assert copy.stat().st_ino == inode
    copy.write_bytes(b"jello")
    store.fetch(made, tmp_path / "cache")
    assert copy.read_bytes() == b"hello"


def test_a_cache_that_cannot_be_written_is_named(
    store: ArtifactStore, s3_bucket: str, folder: Path, tmp_path: Path
) -> None:
    made = publish(store, folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        StoreError, match=f"can't write to the cache {tmp_path}/file: a file stands"
    ):
        store.fetch(made, tmp_path / "file")
    with pytest.raises(DataError, match=f"can't fetch {made.uri}/a.txt: a file stands"):
        fetch_file(f"{made.uri}/a.txt", tmp_path / "file")


@pytest.mark.parametrize("name", ["a.txt", "sub/b.bin"])
def test_an_overwritten_object_is_not_there_and_publishing_mends_it(
    store: ArtifactStore, folder: Path, tmp_path: Path, name: str
) -> None:
    made = publish(store, folder)
    flipped = bytearray(CONTENT[name])
    flipped[0] ^= 1
    put(f"{made.uri}/{name}", bytes(flipped))
    assert store.find(KEY) is None
    with pytest.raises(CorruptArtifactError, match="was overwritten"):
        store.get(made.digest)
    with pytest.raises(CorruptArtifactError, match=f"the content of {name} has changed"):
        store.fetch(made, tmp_path / "cache")
    assert not (tmp_path / "cache" / made.digest).exists()

    assert publish(store, folder).digest == made.digest
    assert store.find(KEY) is not None
    assert (store.fetch(made, tmp_path / "cache") / name).read_bytes() == CONTENT[name]


def test_a_missing_object_and_a_truncated_manifest_are_not_there(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    made = publish(store, folder)
    s3.delete(s3.S3Path.parse(f"{made.uri}/a.txt"))
    assert store.find(KEY) is None
    with pytest.raises(CorruptArtifactError, match="the artifact is damaged: a file is missing"):
        store.fetch(made, tmp_path / "cache")
    made = publish(store, folder)
    put(f"{made.uri}/manifest.json", made.manifest.to_json()[:100])
    assert store.find(KEY) is None
    with pytest.raises(CorruptArtifactError, match="damaged manifest"):
        store.get(made.digest)
    publish(store, folder)
    put(f"{store.url}/keys/{KEY}.json", b"{")
    assert store.find(KEY) is None


def test_an_object_that_lost_its_later_parts_is_damage(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    (folder / "large.bin").write_bytes(bytes(20 * 2**20))
    made = publish(store, folder)
    put(f"{made.uri}/large.bin", bytes(2**20))
    with pytest.raises(CorruptArtifactError, match="a file is missing or too short"):
        store.fetch(made, tmp_path / "cache")


def test_an_interrupted_upload_is_invisible_and_goes_on(
    store: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = s3.write_bytes

    def interrupt(path: s3.S3Path, content: bytes) -> None:
        if path.key.endswith("/manifest.json"):
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(s3, "write_bytes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            publish(store, folder)
    assert len(keys_below(f"{store.url}/artifacts")) == len(CONTENT)
    assert store.find(KEY) is None
    digest = keys_below(f"{store.url}/artifacts")[0].split("/")[3]
    with pytest.raises(StoreError, match="there is no artifact"):
        store.get(digest)
    assert publish(store, folder).digest == digest
    assert keys_below(f"{store.url}/tmp") == []


def test_what_a_killed_upload_left_is_removed_once_it_is_stale(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    root = s3.S3Path.parse(store.url)
    dead, done = "d" * 64, publish(store, folder)
    put(f"{store.url}/tmp/{dead}", b"")
    put(f"{store.url}/artifacts/{dead}/a.txt", b"a")
    put(f"{store.url}/tmp/{done.digest}", b"")
    part = root / f"artifacts/{dead}/large.bin"
    s3.client().call_s3("create_multipart_upload", **part.target)

    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.txt").write_text("x")
    other = publish(store, tmp_path / "other", key="1" * 64)
    assert keys_below(f"{store.url}/artifacts/{dead}"), "a day has not passed"

    time.sleep(1.1)
    S3Backend(root, stale_after_s=1).commit(tmp_path / "other", other.manifest)
    assert keys_below(f"{store.url}/artifacts/{dead}") == []
    assert keys_below(f"{store.url}/tmp") == []
    uploads = s3.client().call_s3("list_multipart_uploads", Bucket=root.bucket)
    assert not uploads.get("Uploads")
    assert store.find(KEY) == done, "what was committed stays"


# Wrong credentials, wrong buckets, no server ----------------------------------------------------


def refusals(store: ArtifactStore) -> list[str]:
    """Return the sentence of each way to use the store."""
    messages = []
    uses: list[Callable[[], object]] = [
        store.check_writable,
        lambda: store.find(KEY),
        lambda: store.get("abcd"),
        lambda: store.lock(KEY).__enter__(),
    ]
    for use in uses:
        with pytest.raises(StoreError) as caught:
            use()
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize(
    ("user", "secret", "reason"),
    [
        ("labadmin", "not-the-secret", "the secret key is wrong; check AWS_SECRET_ACCESS_KEY"),
        ("nobody-known", "hunter2", "doesn't know the access key; check AWS_ACCESS_KEY_ID"),
        ("labreader", "labreadersecret", "access is denied"),
    ],
)
def test_wrong_credentials_are_told_apart_and_never_shown(
    store: ArtifactStore,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    user: str,
    secret: str,
    reason: str,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for message in refusals(store):
        assert reason in message
        assert f"s3://{s3_bucket}/models/store/" in message
        assert secret not in message
        assert user not in message
        assert "\n" not in message


def test_what_nobody_needs_goes_from_a_bucket(store: ArtifactStore, folder: Path) -> None:
    keep = publish(store, folder)
    (folder / "a.txt").write_text("other")
    other = publish(store, folder, key=hashlib.sha256(b"another").hexdigest())
    time.sleep(2.1)  # the server's clock goes by seconds
    store.records.note_use(keep.key)
    records = store.records.read()
    garbage = find_garbage(records, [], roots=[], kept_kinds=(), unused_s=2)
    assert [manifest.digest for manifest in garbage.artifacts] == [other.digest]
    assert collect(store.records, garbage, records, unused_s=2) == garbage
    assert store.find(other.key) is None
    assert not keys_below(f"{store.url}/artifacts/{other.digest}")
    assert store.find(keep.key) == keep


def test_an_artifact_of_a_bucket_that_is_wanted_again_stays(
    store: ArtifactStore, folder: Path
) -> None:
    made = publish(store, folder)
    records = store.records.read()
    publish(store, folder, key=hashlib.sha256(b"another").hexdigest())
    assert not store.records.discard(made.digest, records)
    assert store.get(made.digest).digest == made.digest


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    for message in refusals(ArtifactStore("s3://no-such-bucket/store")):
        assert "there is no bucket no-such-bucket; create it" in message
    with pytest.raises(DataError, match="there is no bucket no-such-bucket"):
        expand("s3://no-such-bucket/data/")
    with pytest.raises(DataError, match="there is no bucket no-such-bucket"):
        fetch_file("s3://no-such-bucket/data/a.jsonl", Path("cache"))


def test_no_credentials_and_no_server_are_told_apart(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:9")
    # Which may pass; what is wrong with the settings below doesn't.
    with pytest.raises(StoreAwayError, match=r"127\.0\.0\.1:9 doesn't answer") as caught:
        store.check_writable()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL is not a URL"):
        store.check_writable()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="no credentials were found") as refused:
        store.check_writable()
    assert not isinstance(refused.value, StoreAwayError)


def test_a_store_that_may_only_be_read(
    s3_server: Any, s3_bucket: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(FileExistsError):
        s3.client().call_s3("create_bucket", Bucket="data")
    store = ArtifactStore(f"s3://data/{s3_bucket}")
    made = publish(store, folder)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "labreader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "labreadersecret")
    assert store.find(KEY) == made
    assert store.fetch(made, tmp_path / "cache").is_dir()
    for write in (store.check_writable, lambda: publish(store, folder, key="2" * 64)):
        with pytest.raises(StoreError, match="access is denied"):
            write()


# Locks -----------------------------------------------------------------------------------------

COMPUTE_ONCE = """
import sys, time
from pathlib import Path
from alignflow.artifacts import ArtifactStore

store, key, folder = ArtifactStore(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
store.find(key)
while not (folder / "go").exists():
    time.sleep(0.01)
with store.lock(key):
    if store.find(key) is None:
        print("computed", flush=True)
        time.sleep(0.5)
        store.publish(folder / "output", kind="sft", key=key, code_version="v")
    else:
        print("reused", flush=True)
"""

HOLD = """
import sys, time
from alignflow.locks import LeaseLock
from alignflow.s3 import S3Path

LeaseLock(S3Path.parse(sys.argv[1]), lease_s=2).acquire()
print("held", flush=True)
time.sleep(60)
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )


@contextmanager
def held(lock: LeaseLock, told: list[str] | None = None) -> Iterator[None]:
    lock.acquire(on_wait=told.append if told is not None else None)
    try:
        yield
    finally:
        lock.release()


@pytest.fixture
def lease(s3_bucket: str) -> Callable[[], LeaseLock]:
    """Return locks on one object, with a short lease."""
    path = s3.S3Path(s3_bucket, "locks/one.json")
    return lambda: LeaseLock(path, lease_s=2, poll_s=0.1)


def test_two_processes_that_want_one_key_compute_it_once(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    racers = [python(COMPUTE_ONCE, store.url, KEY, str(tmp_path)) for _ in range(2)]
    (tmp_path / "go").touch()
    outcomes = [racer.communicate(timeout=60)[0] for racer in racers]
    assert sorted(outcomes) == ["computed\n", "reused\n"]


def test_many_threads_race_for_a_lease_and_one_at_a_time_has_it(
    lease: Callable[[], LeaseLock],
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with held(lease()):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_a_lease_is_renewed_as_long_as_its_holder_lives(lease: Callable[[], LeaseLock]) -> None:
    told: list[str] = []
    begun = time.monotonic()
    first = lease()
    first.acquire()
    threading.Timer(4, first.release).start()
    with held(lease(), told):
        assert time.monotonic() - begun >= 4, "taken over from a holder that lives"
    assert told
    assert told[0].startswith(f"process {os.getpid()} on ")


def test_the_lease_of_a_killed_holder_is_taken_over(
    s3_bucket: str, lease: Callable[[], LeaseLock]
) -> None:
    with python(HOLD, f"s3://{s3_bucket}/locks/one.json") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    begun = time.monotonic()
    with held(lease()):
        assert 0.5 < time.monotonic() - begun < 20


def test_a_lease_lost_to_another_is_left_to_it(
    lease: Callable[[], LeaseLock], caplog: pytest.LogCaptureFixture, s3_bucket: str
) -> None:
    first = lease()
    with held(first):
        # What a taker-over would write while this process was cut off from the server.
        path = s3.S3Path(s3_bucket, "locks/one.json")
        metadata = {"token": "other", "state": "held", "lease-s": "60", "owner": "somebody"}
        s3.client().call_s3("put_object", **path.target, Body=b"other", Metadata=metadata)
        time.sleep(1.2)
    assert "the lease was lost to another run" in caplog.text
    answer = s3.stat(path)
    assert answer["Metadata"]["token"] == "other"
    assert answer["Metadata"]["state"] == "held"


def test_a_lock_can_be_taken_again(lease: Callable[[], LeaseLock]) -> None:
    told: list[str] = []
    lock = lease()
    for _ in range(2):
        with held(lock, told):
            pass
    assert told == []


# Sources ---------------------------------------------------------------------------------------


def upload(bucket: str, objects: Mapping[str, bytes]) -> None:
    for key, content in objects.items():
        put(f"s3://{bucket}/{key}", content)


def test_sources_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    names = ["data/a.jsonl", "data/sub/b.csv.gz", "data/README.md", "database/c.jsonl"]
    names += ["odd/[1].jsonl", "odd/1.jsonl"]
    upload(s3_bucket, {name: name.encode() for name in names})
    root = f"s3://{s3_bucket}"
    inside = [f"{root}/data/a.jsonl", f"{root}/data/sub/b.csv.gz"]
    assert expand(f"{root}/data") == expand(f"{root}/data/") == inside
    assert expand(f"{root}/data/*.jsonl") == [f"{root}/data/a.jsonl"]
    assert expand(f"{root}/data/**/*.gz") == [f"{root}/data/sub/b.csv.gz"]
    assert expand(f"{root}/data/README.md") == [f"{root}/data/README.md"]
    assert expand(f"{root}/odd/[1].jsonl") == [f"{root}/odd/[1].jsonl"]
    assert len(expand(root)) == 5

    file = fetch_file(f"{root}/data/a.jsonl", tmp_path)
    assert file.path.name == "a.jsonl"
    assert file.path.read_bytes() == b"data/a.jsonl"
    assert file.sha256 == hashlib.sha256(b"data/a.jsonl").hexdigest()
    assert file.size == len("data/a.jsonl")


def test_a_file_that_has_changed_on_s3_is_downloaded_again(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/a.jsonl"
    put(uri, b"one")
    first = fetch_file(uri, tmp_path)
    assert fetch_file(uri, tmp_path) == first
    put(uri, b"two")
    assert fetch_file(uri, tmp_path).path.read_bytes() == b"two"


def test_a_copy_that_lost_its_end_is_downloaded_again(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/a.jsonl"
    put(uri, b"one\ntwo\n")
    first = fetch_file(uri, tmp_path)
    first.path.write_bytes(b"one\n")
    assert fetch_file(uri, tmp_path) == first
    assert first.path.read_bytes() == b"one\ntwo\n"


def test_a_known_object_is_not_downloaded_again_and_a_changed_one_is(
    s3_bucket: str, tmp_path: Path
) -> None:
    uri = f"s3://{s3_bucket}/a.jsonl"
    put(uri, b"one")
    one = fetch_digest(uri, tmp_path)
    assert one == hashlib.sha256(b"one").hexdigest()
    shutil.rmtree(tmp_path / "s3")
    assert fetch_digest(uri, tmp_path) == one
    assert not (tmp_path / "s3").exists()
    put(uri, b"two")
    assert fetch_digest(uri, tmp_path) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("none.jsonl", lambda uri, cache: fetch_file(uri, cache)),
        ("none.jsonl", lambda uri, _: expand(uri)),
        ("none.jsonl", lambda uri, cache: fetch_digest(uri, cache)),
        ("*.jsonl", lambda uri, _: expand(uri)),
        ("none", lambda uri, cache: fetch_folder(uri, cache)),
    ],
)
def test_what_is_not_there_is_named(
    s3_bucket: str, tmp_path: Path, name: str, use: Callable[[str, Path], object]
) -> None:
    uri = f"s3://{s3_bucket}/{name}"
    with pytest.raises(DataError) as caught:
        use(uri, tmp_path)
    assert uri in str(caught.value)
    assert "there is no" in str(caught.value)


def test_sources_with_wrong_credentials(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"s3://{s3_bucket}/a.jsonl", b"one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    uses: list[Callable[[], object]] = [
        lambda: expand(f"s3://{s3_bucket}/a.jsonl"),
        lambda: fetch_file(f"s3://{s3_bucket}/a.jsonl", tmp_path),
        lambda: fetch_folder(f"s3://{s3_bucket}/model", tmp_path),
    ]
    for use in uses:
        with pytest.raises(InputError, match="the secret key is wrong") as caught:
            use()
        assert isinstance(caught.value, DataError)


def test_a_model_folder_on_s3_comes_without_pickles(s3_bucket: str, tmp_path: Path) -> None:
    wanted = {"config.json": b"{}", "model.safetensors": b"weights", "sub/chat.jinja": b"x"}
    others = {"pytorch_model.bin": b"pickle", "README.md": b"#"}
    upload(s3_bucket, {f"models/tiny/{name}": c for name, c in (wanted | others).items()})
    folder = fetch_folder(f"s3://{s3_bucket}/models/tiny/", tmp_path / "cache")
    assert {p: (folder / p).read_bytes() for p in files.list_files(folder)} == wanted
    assert fetch_folder(f"s3://{s3_bucket}/models/tiny", tmp_path / "cache") == folder


def test_a_key_does_not_lead_out_of_the_folder(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3_bucket, {"tiny/config.json": b"{}", "evil.json": b"x"})
    # S3 itself takes any text as a key; the server of the tests refuses this one.
    evil = s3.S3Object(s3.S3Path(s3_bucket, "tiny/a/../../../evil.json"), 1, "etag")
    list_objects = s3.list_objects
    monkeypatch.setattr(s3, "list_objects", lambda path: [*list_objects(path), evil])
    folder = fetch_folder(f"s3://{s3_bucket}/tiny", tmp_path / "cache")
    assert files.list_files(folder) == ["config.json"]
    assert not list(tmp_path.rglob("evil.json"))


def test_objects_that_land_are_seen_once_they_are_complete(s3_bucket: str) -> None:
    prefix = s3.S3Path(s3_bucket, "incoming")
    assert seen_files([str(prefix)]) == []
    for name in ("a.jsonl", "b.jsonl.part", "sub/c.jsonl", "notes.txt"):
        s3.write_bytes(prefix / name, b"{}")
    # An upload in parts shows nothing before it is complete.
    whole = prefix / "d.jsonl"
    upload = s3.client().call_s3("create_multipart_upload", **whole.target)["UploadId"]
    part = s3.client().call_s3(
        "upload_part", **whole.target, UploadId=upload, PartNumber=1, Body=b"{}"
    )
    seen = seen_files([str(prefix)])
    assert [file.uri for file in seen] == [str(prefix / "a.jsonl"), str(prefix / "sub/c.jsonl")]
    assert [file.uri for file in seen_files([f"{prefix}/*.jsonl*"])] == [str(prefix / "a.jsonl")]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.client().call_s3(
        "complete_multipart_upload", **whole.target, UploadId=upload, MultipartUpload=parts
    )
    assert len(seen_files([str(prefix)])) == 3
    before = fingerprint(seen_files([str(prefix)]))
    s3.write_bytes(prefix / "a.jsonl", b"[]")
    assert fingerprint(seen_files([str(prefix)])) != before
    assert seen_files([str(prefix / "a.jsonl")])[0].uri == str(prefix / "a.jsonl")


def test_notes_are_kept_beside_the_artifacts(store: ArtifactStore) -> None:
    assert store.notes.read("versions/a/1.json") is None
    assert store.notes.names("versions/a") == []
    store.notes.write("versions/a/1.json", b"one")
    store.notes.write("versions/a/1.pairs", b"\0")
    store.notes.write("versions/b/2.json", b"two")
    assert store.notes.read("versions/a/1.json") == b"one"
    assert store.notes.names("versions/a") == ["versions/a/1.json"]
