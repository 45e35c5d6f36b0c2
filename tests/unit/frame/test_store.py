import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore, Manifest, files
from alignflow.errors import ConfigError, CorruptArtifactError, DataError, StoreError

Publish = Callable[..., Artifact]
FolderOf = Callable[[Mapping[str, bytes | str]], Path]
Key = Callable[[str], str]


def path_of(artifact: Artifact) -> Path:
    return Path(artifact.uri.removeprefix("file://"))


def flip_a_bit(path: Path) -> None:
    """Change one bit of a file in place, in a process's life after it was verified."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_what_was_published_is_found_by_key_and_by_digest(
    store: ArtifactStore, publish: Publish, key: Key, tmp_path: Path
) -> None:
    made = publish("one", metrics={"sft/loss": 0.5}, config={"rate": 1e-5}, details={"n": 3})
    assert store.find(key("one")) == made
    for ref in (made.digest, made.digest[:8]):
        assert store.get(ref) == made
    assert made.manifest.metrics == {"sft/loss": 0.5}
    assert made.manifest.config == {"rate": 1e-5}
    assert [entry.path for entry in made.manifest.files] == ["a.txt", "sub/b.bin"]
    folder = store.fetch(made, tmp_path / "cache")
    assert (folder / "a.txt").read_text() == "content of one"
    assert (folder / "sub/b.bin").read_bytes() == b"\0" * 1000
    assert not (tmp_path / "cache").exists(), "a local artifact is read in place"


def test_a_new_process_finds_it_too(publish: Publish, key: Key, tmp_path: Path) -> None:
    made = publish("one")
    again = ArtifactStore(f"file://{tmp_path}/store").find(key("one"))
    assert again == made


def test_nothing_is_found_in_a_store_that_does_not_exist(store: ArtifactStore, key: Key) -> None:
    assert store.find(key("one")) is None
    with pytest.raises(StoreError, match="there is no artifact abcd"):
        store.get("abcd")


def test_a_digest_prefix_must_be_unique(store: ArtifactStore, publish: Publish) -> None:
    made = publish("one")
    twin = made.digest[:60] + "0000"
    shutil.copytree(path_of(made), path_of(made).with_name(twin))
    with pytest.raises(StoreError, match="fits 2 artifacts"):
        store.get(made.digest[:8])


@pytest.mark.parametrize("ref", ["", "abc", "sft", "../../etc", "*" * 8, "A" * 64])
def test_what_is_no_digest_is_refused(store: ArtifactStore, ref: str) -> None:
    with pytest.raises(StoreError, match="is no digest"):
        store.get(ref)


def test_a_key_never_becomes_a_path(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="no stage key"):
        store.find("../../etc/passwd")
    with pytest.raises(ValueError, match="no stage key"), store.lock("x"):
        pass


def test_equal_files_under_two_keys_are_one_artifact_with_two_histories(
    store: ArtifactStore, publish: Publish, key: Key, folder_of: FolderOf
) -> None:
    parents = publish("p1"), publish("p2")
    made = [
        store.publish(
            folder_of({"same.txt": "same"}),
            kind="dpo",
            key=key(f"child{index}"),
            code_version="v",
            parents={"policy": parent.ref},
        )
        for index, parent in enumerate(parents)
    ]
    assert made[0].digest == made[1].digest
    for index, parent in enumerate(parents):
        found = store.find(key(f"child{index}"))
        assert found is not None
        assert found.manifest.parents == {"policy": parent.ref}


def test_one_flipped_bit_is_noticed_even_after_the_first_verification(
    store: ArtifactStore, publish: Publish, key: Key, tmp_path: Path
) -> None:
    made = publish("one")
    assert store.find(key("one")) == made
    flip_a_bit(path_of(made) / "sub/b.bin")
    with pytest.raises(CorruptArtifactError, match=r"content of sub/b\.bin has changed"):
        store.get(made.digest)
    with pytest.raises(CorruptArtifactError, match=r"content of sub/b\.bin has changed"):
        store.fetch(made, tmp_path)
    assert store.find(key("one")) is None


def test_verification_hashes_once_per_process(
    store: ArtifactStore, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish("one")

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(files, "hash_files", refuse)
    store.fetch(made, tmp_path)
    monkeypatch.setattr(files, "_verified", {})
    with pytest.raises(AssertionError, match="hashed again"):
        store.fetch(made, tmp_path)


def _remove(folder: Path) -> None:
    (folder / "a.txt").unlink()


def _add(folder: Path) -> None:
    (folder / "model.safetensors").write_text("not from here")


def _truncate(folder: Path) -> None:
    (folder / "a.txt").chmod(0o644)
    os.truncate(folder / "a.txt", 3)


def _replace_by_link(folder: Path) -> None:
    (folder / "a.txt").rename(folder.parent / "elsewhere.txt")
    (folder / "a.txt").symlink_to(folder.parent / "elsewhere.txt")


def _truncate_manifest(folder: Path) -> None:
    (folder / "manifest.json").chmod(0o644)
    os.truncate(folder / "manifest.json", 100)


def _remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _swap_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text().replace('"size": 1000', '"size": 1001')
    path.chmod(0o644)
    path.write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        _remove,
        _add,
        _truncate,
        _replace_by_link,
        _truncate_manifest,
        _remove_manifest,
        _swap_manifest,
        shutil.rmtree,
    ],
)
def test_a_damaged_artifact_is_not_there_and_publishing_mends_it(
    store: ArtifactStore,
    publish: Publish,
    key: Key,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    made = publish("one")
    damage(path_of(made))
    with caplog.at_level(logging.WARNING):
        assert store.find(key("one")) is None
    assert "It is computed again." in caplog.text
    with pytest.raises((CorruptArtifactError, StoreError)):
        store.get(made.digest)

    again = publish("one")
    assert again.digest == made.digest
    assert store.find(key("one")) == again
    assert store.get(made.digest[:10]).digest == made.digest


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}', b"\xff"])
def test_a_damaged_record_of_a_key_is_not_there(
    store: ArtifactStore, publish: Publish, key: Key, tmp_path: Path, content: bytes
) -> None:
    made = publish("one")
    (tmp_path / "store/keys" / f"{key('one')}.json").write_bytes(content)
    assert store.find(key("one")) is None
    assert store.get(made.digest).digest == made.digest
    assert publish("one").digest == made.digest
    assert store.find(key("one")) is not None


def test_a_manifest_that_points_outside_is_refused(
    store: ArtifactStore, publish: Publish, key: Key, tmp_path: Path
) -> None:
    made = publish("one")
    for path in (
        path_of(made) / "manifest.json",
        tmp_path / "store/keys" / f"{key('one')}.json",
    ):
        path.chmod(0o644)
        path.write_text(path.read_text().replace('"sub/b.bin"', '"../../b.bin"'))
    assert store.find(key("one")) is None
    with pytest.raises(CorruptArtifactError, match="leaves the artifact's folder"):
        store.get(made.digest)


def test_a_folder_with_a_link_is_refused(
    store: ArtifactStore, key: Key, folder_of: FolderOf, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    for name, target in (("file", tmp_path / "secret"), ("folder", tmp_path), ("gone", Path("x"))):
        folder = folder_of({"a.txt": "a"})
        (folder / name).symlink_to(target)
        with pytest.raises(DataError, match=f"{name}: this is a link"):
            store.publish(folder, kind="sft", key=key("x"), code_version="v")
    assert store.find(key("x")) is None


def test_other_folders_that_can_be_no_artifact(
    store: ArtifactStore, key: Key, folder_of: FolderOf, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    pipe = folder_of({"a.txt": "a"})
    os.mkfifo(pipe / "pipe")
    named = folder_of({"a.txt": "a"})
    (Path(os.fsdecode(bytes(named) + b"/\xff"))).write_text("x")
    for folder, message in (
        (tmp_path / "empty", "holds no files"),
        (tmp_path / "none", "there is no such folder"),
        (folder_of({"manifest.json": "{}"}), "rename the file"),
        (pipe, "no regular file"),
        (named, "is not UTF-8"),
    ):
        with pytest.raises(DataError, match=message):
            store.publish(folder, kind="sft", key=key("x"), code_version="v")


def test_files_are_linked_and_read_only_or_copied_on_request(
    store: ArtifactStore, key: Key, folder_of: FolderOf
) -> None:
    mine, others = folder_of({"a.txt": "mine"}), folder_of({"a.txt": "theirs"})
    linked = store.publish(mine, kind="sft", key=key("1"), code_version="v")
    copied = store.publish(others, kind="sft", key=key("2"), code_version="v", copy=True)
    assert (path_of(linked) / "a.txt").samefile(mine / "a.txt")
    assert not (path_of(copied) / "a.txt").samefile(others / "a.txt")
    assert (path_of(copied) / "a.txt").stat().st_mode & 0o777 == 0o444
    assert (others / "a.txt").stat().st_mode & 0o200
    shutil.rmtree(mine)
    assert store.find(key("1")) == linked


def test_a_file_system_without_hard_links_gets_copies(
    store: ArtifactStore, publish: Publish, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = publish("one")
    assert store.find(key("one")) == made


@pytest.mark.parametrize("at", ["shutil.copyfile", "os.pwrite"], ids=["files", "lock"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    store: ArtifactStore,
    key: Key,
    folder_of: FolderOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(at, no_space)
    folder = folder_of({"a.txt": "a"})
    with pytest.raises(
        StoreError, match=r"can't write to the store .*: the disk is full"
    ) as caught:
        store.publish(folder, kind="sft", key=key("x"), code_version="v", copy=True)
    assert "\n" not in str(caught.value)
    assert store.find(key("x")) is None
    assert list((tmp_path / "store/tmp").iterdir()) == []
    assert not (tmp_path / "store/artifacts").exists()


@pytest.mark.parametrize("at", ["link_or_copy", "make_durable", "remember_verified"])
def test_ctrl_c_while_publishing_shows_all_or_nothing(
    store: ArtifactStore,
    publish: Publish,
    key: Key,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            publish("one")
    assert store.find(key("one")) is None
    assert list((tmp_path / "store/tmp").iterdir()) == []
    made = publish("one")
    assert store.find(key("one")) == made


PUBLISH_SLOWLY = """
import sys, time
from pathlib import Path
from alignflow.artifacts import ArtifactStore, files

def hang(folder):
    print("staged", flush=True)
    time.sleep(60)

files.make_durable = hang
store = ArtifactStore(sys.argv[1])
store.publish(Path(sys.argv[2]), kind="sft", key="0" * 64, code_version="v")
"""


def test_what_a_killed_publisher_left_is_removed_once_it_is_stale(
    store: ArtifactStore,
    publish: Publish,
    folder_of: FolderOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of({"a.txt": "a"})
    staging = tmp_path / "store/tmp"
    arguments = [sys.executable, "-c", PUBLISH_SLOWLY, str(tmp_path / "store"), str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        monkeypatch.setattr(files, "_STALE_AFTER_S", 0.0)
        publish("while it lives")
        (left,) = staging.iterdir()
        process.send_signal(signal.SIGKILL)
    assert store.find("0" * 64) is None
    with pytest.raises(StoreError):
        store.get("0000")

    monkeypatch.setattr(files, "_STALE_AFTER_S", 60.0)
    publish("too soon to tell")
    assert list(staging.iterdir()) == [left]
    os.utime(left, (time.time() - 120, time.time() - 120))
    publish("later")
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x", "memory://x"])
def test_a_store_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="give a path, file:// or s3:// URL"):
        ArtifactStore(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://a b/x", "s3://key:hunter2@bucket/x"])
def test_a_bad_s3_url_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ArtifactStore(url)
    assert "hunter2" not in str(caught.value)


def test_a_writable_store_passes_and_keeps_no_trace(store: ArtifactStore, tmp_path: Path) -> None:
    store.check_writable()
    assert list((tmp_path / "store/tmp").iterdir()) == []


def test_a_store_below_a_file_is_refused(tmp_path: Path, key: Key) -> None:
    (tmp_path / "file").write_text("x")
    store = ArtifactStore(str(tmp_path / "file/store"))
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.check_writable()
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.find(key("x"))


def test_a_read_only_store_is_one_sentence(
    without_rights: Callable[[], AbstractContextManager[None]], key: Key
) -> None:
    # Not in tmp_path: only its owner can enter that.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "store").mkdir(mode=0o555)
        root.chmod(0o755)
        store = ArtifactStore(str(root / "store"))
        with without_rights():
            with pytest.raises(StoreError, match="permission is denied") as caught:
                store.check_writable()
            assert caught.value.exit_code == 2
            assert str(root / "store") in str(caught.value)
            with pytest.raises(StoreError, match="permission is denied"), store.lock(key("x")):
                pass
            assert store.find(key("x")) is None


def test_the_record_of_an_ancestor_is_read_without_its_files(
    store: ArtifactStore, publish: Publish, key: Key
) -> None:
    made = publish("one")
    shutil.rmtree(path_of(made))
    assert store.manifest_of(made.ref) == made.manifest


def test_the_record_of_an_ancestor_survives_a_new_outcome_of_its_key(
    store: ArtifactStore, publish: Publish, key: Key, folder_of: FolderOf
) -> None:
    old = publish("one")
    store.publish(folder_of({"new.txt": "new"}), kind="sft", key=key("one"), code_version="v")
    found = store.manifest_of(old.ref)
    assert isinstance(found, Manifest)
    assert found.digest == old.digest
    shutil.rmtree(path_of(old))
    assert store.manifest_of(old.ref) is None
