"""Writers of the same key at once, and large objects, on a real S3 server."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from alignflow import s3
from alignflow.artifacts import ArtifactStore, files
from alignflow.sources import fetch_file

pytestmark = pytest.mark.integration

KEY = hashlib.sha256(b"a stage").hexdigest()
NUM_ROUNDS = 3

PUBLISH = """
import sys, time
from pathlib import Path
from alignflow.artifacts import ArtifactStore

url, key, go, *folders = sys.argv[1:]
store = ArtifactStore(url)
store.find(key)
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.01)
for folder in folders:
    store.publish(Path(folder), kind="sft", key=key, code_version="v")
"""


@pytest.fixture
def store(s3_bucket: str) -> ArtifactStore:
    return ArtifactStore(f"s3://{s3_bucket}/store")


def make_folder(folder: Path, large_bytes: int) -> Path:
    folder.mkdir()
    (folder / "name.txt").write_text(folder.name)
    (folder / "large.bin").write_bytes(os.urandom(2**16) * (large_bytes >> 16))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in files.list_files(folder)}


@contextmanager
def writing(
    store: ArtifactStore, go: Path, folders: list[list[Path]]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a process for each list of folders; they all publish under one key, at once."""
    with ExitStack() as processes:
        writers = [
            processes.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PUBLISH, store.url, KEY, str(go), *map(str, own)],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for own in folders
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        go.touch()
        yield writers


def test_two_writers_of_one_artifact_leave_it_whole(store: ArtifactStore, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "same", 40 * 2**20)
    with writing(store, tmp_path / "go", [[folder], [folder]]) as writers:
        assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    found = store.find(KEY)
    assert found is not None
    assert content(store.fetch(found, tmp_path / "cache")) == content(folder)
    assert s3.list_objects(s3.S3Path.parse(f"{store.url}/tmp/")) == []


def test_two_writers_of_one_key_and_a_reader_who_sees_one_or_the_other(
    store: ArtifactStore, tmp_path: Path
) -> None:
    names = [[f"{writer}-{i}" for i in range(NUM_ROUNDS)] for writer in "ab"]
    folders = [[make_folder(tmp_path / name, 20 * 2**20) for name in own] for own in names]
    seen: list[str] = []
    with writing(store, tmp_path / "go", folders) as writers:
        is_over = False
        while not is_over:
            # Once more after the end: what the last of them wrote.
            is_over = all(writer.poll() is not None for writer in writers)
            if (found := store.find(KEY)) is not None:
                fetched = content(store.fetch(found, tmp_path / "cache"))
                seen.append(fetched["name.txt"].decode())
                assert fetched == content(tmp_path / seen[-1])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(set(seen)) > 1
    assert seen[-1] in (names[0][-1], names[1][-1])


def test_an_object_of_200_mb_is_written_and_read_in_parts(
    store: ArtifactStore, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "output", 200 * 10**6)
    made = store.publish(folder, kind="sft", key=KEY, code_version="v")
    # 199.95 MB (3051 blocks of 64 KiB) are twelve parts of 16 MiB.
    assert s3.stat(s3.S3Path.parse(f"{made.uri}/large.bin"))["ETag"].endswith('-12"')
    assert store.find(KEY) == made
    fetched = store.fetch(made, tmp_path / "cache")
    assert files.find_damage(fetched, made.manifest.files) is None
    (entry,) = (entry for entry in made.manifest.files if entry.path == "large.bin")
    assert fetch_file(f"{made.uri}/large.bin", tmp_path / "cache").sha256 == entry.sha256
