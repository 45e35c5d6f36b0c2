import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore, ParentRef

Publish = Callable[..., Artifact]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def key() -> Callable[[str], str]:
    """Return a valid stage key for a name."""
    return lambda name: hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[Mapping[str, bytes | str]], Path]:
    """Write files, given by relative path, into a new folder."""

    def write(files: Mapping[str, bytes | str]) -> Path:
        folder = tmp_path / f"folder-{len(list(tmp_path.iterdir()))}"
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return write


@pytest.fixture
def publish(
    store: ArtifactStore,
    key: Callable[[str], str],
    folder_of: Callable[[Mapping[str, bytes | str]], Path],
) -> Publish:
    """Publish a small artifact under a name that gives it its key and its content."""

    def publish(
        name: str, kind: str = "sft", parents: Mapping[str, ParentRef] | None = None, **more: object
    ) -> Artifact:
        folder = folder_of({"a.txt": f"content of {name}", "sub/b.bin": b"\0" * 1000})
        options: dict[str, object] = {"kind": kind, "code_version": "0.1-r1", "parents": parents}
        return store.publish(folder, key=key(name), **(options | more))  # type: ignore[arg-type]

    return publish


@pytest.fixture
def without_rights() -> Callable[[], object]:
    """Return a context in which file permissions count, also where tests run as root."""

    @contextmanager
    def lowered() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return lowered
