import hashlib
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from alignflow.artifacts import (
    FileEntry,
    Manifest,
    ParentRef,
    canonical_json,
    code_version,
    files_digest,
    stage_key,
)

HELLO = FileEntry(path="a.txt", size=5, sha256=hashlib.sha256(b"hello").hexdigest())
EMPTY = FileEntry(path="b/c.txt", size=0, sha256=hashlib.sha256(b"").hexdigest())
PARENT = ParentRef(kind="model", digest="d" * 64, key="e" * 64)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "sft",
        "digest": files_digest([HELLO, EMPTY]),
        "key": "f" * 64,
        "files": [HELLO, EMPTY],
        "code_version": "0.1-r1",
        "created": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return Manifest.model_validate(fields | changes)


def test_digest_is_sha256_of_the_sorted_file_list() -> None:
    # Worked by hand from the definition: rows of path, size and SHA-256 as compact JSON.
    text = f'[["a.txt",5,"{HELLO.sha256}"],["b/c.txt",0,"{EMPTY.sha256}"]]'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert files_digest([HELLO, EMPTY]) == expected
    assert files_digest([EMPTY, HELLO]) == expected


@pytest.mark.parametrize("change", [{"path": "z.txt"}, {"size": 6}, {"sha256": "0" * 64}])
def test_digest_sees_path_size_and_content(change: dict[str, Any]) -> None:
    assert files_digest([HELLO.replaced(**change)]) != files_digest([HELLO])


def test_key_does_not_depend_on_the_order_of_keys_or_on_the_parents_keys() -> None:
    one = stage_key("sft", {"a": 1, "b": {"c": [1, 2]}}, {"model": PARENT}, "v")
    other = PARENT.replaced(key="0" * 64, kind="other")
    assert one == stage_key("sft", {"b": {"c": [1, 2]}, "a": 1}, {"model": other}, "v")


@pytest.mark.parametrize(
    "changed",
    [
        ("dpo", {"a": 1}, {"model": PARENT}, "v"),
        ("sft", {"a": 2}, {"model": PARENT}, "v"),
        ("sft", {"a": 1}, {"model": PARENT.replaced(digest="0" * 64)}, "v"),
        ("sft", {"a": 1}, {"base": PARENT}, "v"),
        ("sft", {"a": 1}, {}, "v"),
        ("sft", {"a": 1}, {"model": PARENT}, "w"),
    ],
)
def test_key_sees_kind_config_parents_roles_and_code(changed: Any) -> None:
    assert stage_key(*changed) != stage_key("sft", {"a": 1}, {"model": PARENT}, "v")


def test_key_is_the_same_in_every_process() -> None:
    code = (
        "from alignflow.artifacts import stage_key;"
        "print(stage_key('sft', {'rate': 1e-5, 'names': ['é']}, {}, 'v'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == stage_key("sft", {"names": ["é"], "rate": 1e-5}, {}, "v")


def test_key_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        stage_key("sft", {"rate": float("nan")}, {}, "v")
    with pytest.raises(TypeError):
        stage_key("sft", {"path": object()}, {}, "v")


def test_code_version_holds_the_minor_version_and_the_revision() -> None:
    assert code_version(1) != code_version(2)
    assert code_version(3) == "0.1-r3"


def test_a_manifest_survives_its_json() -> None:
    one = manifest(parents={"model": PARENT}, metrics={"sft/loss": 1.5}, details={"rows": [1]})
    assert Manifest.model_validate_json(one.to_json()) == one
    assert one.created.utcoffset() is not None
    assert one.size == 5


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a/", "", ".", "a\0b"]
)
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        FileEntry(path=path, size=1, sha256="0" * 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "0" * 64},
        {"files": [EMPTY, HELLO]},
        {"files": [HELLO, HELLO], "digest": files_digest([HELLO, HELLO])},
        {"format": 2},
        {"metrics": {"sft/loss": float("nan")}},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        manifest(**changes)


def test_canonical_json_is_compact_and_sorted() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


def test_importing_artifacts_loads_no_client() -> None:
    code = (
        "import sys, alignflow.artifacts, alignflow.sources, alignflow.lineage;"
        "print({'s3fs', 'fsspec', 'botocore', 'huggingface_hub', 'torch', 'prefect'}"
        " & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
