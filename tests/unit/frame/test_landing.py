"""Which files there are, in what state, and which are not finished yet."""

import os
from pathlib import Path

import pytest

from alignflow.errors import DataError
from alignflow.landing import content_digest, fingerprint, read_digests, seen_files


def names(folder: Path) -> list[str]:
    return [Path(file.uri).name for file in seen_files([str(folder)])]


@pytest.mark.parametrize(
    "unfinished",
    ["a.jsonl.part", "a.part.jsonl", "a.tmp.jsonl", ".a.jsonl", "a.jsonl.crdownload", "a.jsonl~"],
)
def test_unfinished_file_is_not_seen(tmp_path: Path, unfinished: str) -> None:
    (tmp_path / unfinished).touch()
    assert names(tmp_path) == []
    assert seen_files([f"{tmp_path}/*"]) == []
    (tmp_path / "a.jsonl").touch()
    assert names(tmp_path) == ["a.jsonl"]


def test_names_that_only_look_unfinished_are_seen(tmp_path: Path) -> None:
    for name in ("part.jsonl", "tmp-1.jsonl", "party.jsonl"):
        (tmp_path / name).touch()
    assert len(names(tmp_path)) == 3


def test_folder_that_is_empty_holds_nothing_and_one_that_is_not_there_is_an_error(
    tmp_path: Path,
) -> None:
    assert seen_files([str(tmp_path)]) == []
    with pytest.raises(DataError, match="no such file"):
        seen_files([str(tmp_path / "gone")])


def test_fingerprint_differs_with_what_is_written_though_size_and_time_agree(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    before, times = fingerprint(seen_files([str(tmp_path)])), path.stat()
    assert fingerprint(seen_files([str(tmp_path)])) == before
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(seen_files([str(tmp_path)])) != before


def test_digest_is_of_what_the_files_hold(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": "1", "b.jsonl": "2", "copy.jsonl": "1"}.items():
        (tmp_path / name).write_text(text)
    seen = seen_files([str(tmp_path), str(tmp_path / "a.jsonl")])
    assert len(seen) == 3
    digests = read_digests(seen, tmp_path / "cache")
    assert content_digest(digests.values()) == content_digest(sorted(set(digests.values())))
    (tmp_path / "copy.jsonl").unlink()
    fewer = read_digests(seen_files([str(tmp_path)]), tmp_path / "cache")
    assert content_digest(fewer.values()) == content_digest(digests.values())
    assert content_digest(["other"]) != content_digest(digests.values())
