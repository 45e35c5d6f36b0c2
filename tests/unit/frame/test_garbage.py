"""What goes from a store, and what stays."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore, ParentRef, garbage
from alignflow.artifacts.garbage import Garbage, collect, find_garbage

Publish = Callable[..., Artifact]
FolderOf = Callable[[Mapping[str, bytes | str]], Path]
Key = Callable[[str], str]
DAY_S = 86_400.0


def age(store: ArtifactStore, artifact: Artifact, days: float) -> None:
    """Make the record of an artifact's key as old as that."""
    then = time.time() - days * DAY_S
    os.utime(Path(store.url) / "keys" / f"{artifact.key}.json", (then, then))


def garbage_of(store: ArtifactStore, *roots: ParentRef) -> Garbage:
    records = store.records.read()
    return find_garbage(
        records,
        store.records.without_key(records),
        roots=roots,
        kept_kinds={"judge"},
        unused_s=30 * DAY_S,
    )


def collected(store: ArtifactStore, *roots: ParentRef) -> Garbage:
    records = store.records.read()
    return collect(store.records, garbage_of(store, *roots), records, unused_s=30 * DAY_S)


def digests(garbage: Garbage) -> set[str]:
    return {manifest.digest for manifest in garbage.artifacts}


def test_what_a_root_was_made_from_stays_and_the_rest_goes_once_it_is_old(
    store: ArtifactStore, publish: Publish
) -> None:
    data = publish("data", kind="dataset")
    model = publish("model", parents={"dataset": data.ref})
    refused = publish("refused", parents={"dataset": data.ref})
    for artifact in (data, model, refused):
        age(store, artifact, days=31)
    young = publish("young")
    assert digests(garbage_of(store, model.ref)) == {refused.digest}
    assert garbage_of(store, model.ref).size == refused.manifest.size

    assert digests(collected(store, model.ref)) == {refused.digest}
    assert store.find(refused.key) is None
    assert not (Path(store.url) / "artifacts" / refused.digest).exists()
    for artifact in (data, model, young):
        assert store.find(artifact.key) == artifact
    assert collected(store, model.ref) == Garbage((), ())


def test_a_young_child_keeps_its_old_parents(store: ArtifactStore, publish: Publish) -> None:
    data = publish("data", kind="dataset")
    publish("model", parents={"dataset": data.ref})
    age(store, data, days=400)
    assert garbage_of(store) == Garbage((), ())


def test_a_use_counts_like_a_birth(store: ArtifactStore, publish: Publish) -> None:
    old = publish("old")
    age(store, old, days=400)
    store.records.note_use(old.key)
    assert garbage_of(store) == Garbage((), ())


def test_kinds_that_no_run_makes_again_stay(store: ArtifactStore, publish: Publish) -> None:
    judge = publish("judge", kind="judge")
    age(store, judge, days=400)
    assert garbage_of(store) == Garbage((), ())


def test_the_last_accepted_version_is_told(store: ArtifactStore, publish: Publish) -> None:
    accepted = publish("data", kind="dataset")
    store.record_latest("demo-train", accepted)
    assert store.records.latest() == [accepted.ref]


def publish_same(store: ArtifactStore, folder_of: FolderOf, key: str) -> Artifact:
    """Publish the same files as any other call, under a key."""
    folder = folder_of({"a.txt": "the same"})
    return store.publish(folder, kind="sft", key=key, code_version="0.1-r1")


def test_files_under_two_keys_go_with_the_second(
    store: ArtifactStore, folder_of: FolderOf, key: Key
) -> None:
    one, other = (publish_same(store, folder_of, key(name)) for name in ("one", "other"))
    assert one.digest == other.digest
    age(store, one, days=31)
    gone = collected(store)
    assert [record.manifest.key for record in gone.records] == [one.key]
    assert gone.artifacts == ()
    assert store.find(other.key) == other
    age(store, other, days=31)
    assert digests(collected(store)) == {one.digest}


def test_one_that_lost_its_key_of_late_stays_for_who_still_reads_it(
    store: ArtifactStore, publish: Publish, folder_of: FolderOf
) -> None:
    first = publish("model")
    again = publish_same(store, folder_of, first.key)
    assert garbage_of(store) == Garbage((), ())
    age(store, again, days=31)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(garbage, "_age_s", lambda manifest: 31 * DAY_S)
        assert digests(garbage_of(store, again.ref)) == {first.digest}
        assert garbage_of(store, again.ref, first.ref) == Garbage((), ())


def test_what_somebody_works_on_or_came_to_want_stays(
    store: ArtifactStore, publish: Publish
) -> None:
    held, wanted, gone = (publish(name) for name in ("held", "wanted", "gone"))
    for artifact in (held, wanted, gone):
        age(store, artifact, days=31)
    records = store.records.read()
    found = garbage_of(store)
    store.records.note_use(wanted.key)
    with store.lock(held.key):
        removed = collect(store.records, found, records, unused_s=30 * DAY_S)
    assert digests(found) == {held.digest, wanted.digest, gone.digest}
    assert digests(removed) == {gone.digest}
    assert store.find(held.key) == held
    assert store.find(wanted.key) == wanted


def test_an_artifact_that_another_key_comes_to_lead_to_is_put_back(
    store: ArtifactStore, folder_of: FolderOf, key: Key
) -> None:
    one = publish_same(store, folder_of, key("one"))
    age(store, one, days=31)
    records = store.records.read()
    found = garbage_of(store)
    other = publish_same(store, folder_of, key("other"))
    removed = collect(store.records, found, records, unused_s=30 * DAY_S)
    assert removed.artifacts == ()
    assert store.find(other.key) == other


def test_what_goes_before_its_new_record_stands_is_published_again(
    store: ArtifactStore, folder_of: FolderOf, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_same(store, folder_of, key("one"))
    backend = store._backend
    write = backend.write

    def remove_then_write(name: str, content: bytes) -> None:
        backend.remove_artifact(digest, lambda: False)
        write(name, content)

    digest = store.records.read()[0].manifest.digest
    monkeypatch.setattr(backend, "write", remove_then_write)
    other = publish_same(store, folder_of, key("other"))
    assert store.find(other.key) == other


def test_a_damaged_record_is_left_alone(store: ArtifactStore, publish: Publish) -> None:
    artifact = publish("model")
    (Path(store.url) / "keys" / f"{artifact.key}.json").write_text("{}")
    assert store.records.read() == []
