"""Files and folders that come from outside: a path, S3, or the Hugging Face hub.

    /data/pairs.jsonl   file:///data/pairs.jsonl   s3://bucket/folder/*.parquet
    hf://datasets/OWNER/NAME[@REVISION][/FILE]     hf://OWNER/NAME[@REVISION][/FILE]

Of a folder, a prefix or a repository only data files are taken (JSONL, JSON, CSV, Parquet, plain
or .gz/.zst); a file named outright, or met by a glob, is taken whatever its name.
"""

import fnmatch
import functools
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from alignflow import s3
from alignflow.artifacts.files import link_or_copy, os_errors_as, staging_folder
from alignflow.errors import DataError
from alignflow.known_files import KnownFiles, disk_state

_DATA_FILE = re.compile(r"\.(jsonl|json|csv|parquet)(\.(gz|zst))?$", re.IGNORECASE)
# What libraries write beside the data, under a name that looks like data.
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# Weights in pickles are never fetched, so that nobody can load them by accident.
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
NOTHING_THERE = "nothing_there"
"""Reason of a refusal: a folder without data files, or a pattern that none fits."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, with what lineage records of it."""

    path: Path
    uri: str
    """Where it came from."""
    sha256: str
    size: int
    """Bytes."""
    state: str | None
    """By which it is told whether it changes, see `known_files`; None where nothing tells."""


def fetch_file(uri: str, cache_dir: Path) -> LocalFile:
    """Return a file on this machine, downloaded into the cache where it isn't one yet.

    Raises:
        DataError: There is no such file, or it can't be had; the sentence says which.
        ConfigError: It is no S3 URL.
    """
    scheme, rest = _split(uri)
    with os_errors_as(DataError, f"fetch {uri}"):
        if scheme == "s3":
            path, state = _download_object(s3.S3Path.parse(uri), cache_dir)
        elif scheme == "hf":
            path, state = _download_from_hub(_HubPath.parse(uri)), None
        else:
            path = _local_file(rest)
            state = disk_state(path)
    sha256 = file_sha256(path)
    if scheme == "file" and state != disk_state(path):
        state = None
    return LocalFile(path, uri, sha256, path.stat().st_size, state)


def fetch_digest(uri: str, cache_dir: Path, *, read_again: bool = False) -> str:
    """Return the SHA-256 of a file, which is read only if it isn't as it was when last read here.

    Args:
        uri: Where it lies.
        cache_dir: Where downloads are kept, and digests of what was read.
        read_again: Read it in any case.

    Raises:
        DataError: There is no such file, or it can't be had; the sentence says which.
        ConfigError: It is no S3 URL.
    """
    known = KnownFiles(cache_dir)
    state = None if read_again else _state(uri)
    if state is not None and (sha256 := known.find(uri, state)) is not None:
        return sha256
    file = fetch_file(uri, cache_dir)
    if file.state is not None:
        known.remember(uri, file.state, file.sha256)
    return file.sha256


def _state(uri: str) -> str | None:
    scheme, rest = _split(uri)
    if scheme == "s3":
        path = s3.S3Path.parse(uri)
        with s3.translated(DataError, "read", path):
            return str(s3.stat(path)["ETag"])
    return disk_state(_local_file(rest)) if scheme == "file" else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, streamed.

    Raises:
        DataError: The file can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None


def check_unchanged(uri: str, expected: str, found: str) -> None:
    """Stop where a file was another one when it was used than when it was looked at.

    Args:
        uri: Where it lies.
        expected: SHA-256 under which it is known.
        found: SHA-256 of what was used.

    Raises:
        DataError: They differ.
    """
    if found != expected:
        raise DataError(
            f"{uri}: the file changed while the run read it ({expected[:12]} became {found[:12]}); "
            "run again when nobody writes to it."
        )


def expand(uri: str) -> list[str]:
    """Return what `fetch_file` takes for each file that a file, folder, prefix or glob names.

    Raises:
        DataError: It names no file.
        ConfigError: It is no S3 URL.
    """
    scheme, rest = _split(uri)
    if scheme == "s3":
        return _expand_objects(s3.S3Path.parse(uri))
    if scheme == "hf":
        return _expand_repository(_HubPath.parse(uri))
    return _expand_path(rest)


def fetch_folder(uri: str, cache_dir: Path) -> Path:
    """Return a model's folder on this machine; its files are regular files, links resolved.

    A local folder is returned as it is; of others only configs, tokenizers and safetensors are
    downloaded.

    Raises:
        DataError: There is no such folder, or it can't be had; the sentence says which.
        ConfigError: It is no S3 URL.
    """
    scheme, rest = _split(uri)
    with os_errors_as(DataError, f"fetch {uri}"):
        if scheme == "s3":
            return _download_prefix(s3.S3Path.parse(uri), cache_dir)
        if scheme == "hf":
            return _download_model(_HubPath.parse(uri), cache_dir)
    folder = Path(rest).expanduser()
    if not folder.is_dir():
        what = "this is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder.absolute()}: {what}; give the folder of a model.")
    return folder


def _split(uri: str) -> tuple[str, str]:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "file", uri
    if scheme not in ("file", "s3", "hf"):
        raise DataError(
            f"{scheme}:// is not supported as a source; give a path, file://, s3:// or hf://."
        )
    return scheme, rest


def is_data_file(path: str) -> bool:
    """Say whether a path has the name of a data file; hidden ones and libraries' notes have not."""
    name = PurePosixPath(path).name
    hidden = any(part.startswith(".") for part in PurePosixPath(path).parts)
    return not hidden and name not in _NOT_DATA and _DATA_FILE.search(name) is not None


# A path ----------------------------------------------------------------------------------------


def _local_file(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_dir():
        raise DataError(f"{path.absolute()}: this is a folder; give a file.")
    if not path.exists():
        raise DataError(f"{path.absolute()}: there is no such file; check the path.")
    return path


def _expand_path(text: str) -> list[str]:
    path = Path(text).expanduser()
    if path.is_dir():
        names = (str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
        found = [str(path / name) for name in sorted(names) if is_data_file(name)]
        problem = "the folder holds no .jsonl, .json, .csv or .parquet file"
    elif glob.has_magic(text) and not path.exists():
        found = sorted(p for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        problem = "no file fits this pattern"
    else:
        return [str(_local_file(text))]
    if not found:
        raise DataError(f"{path.absolute()}: {problem}.", reason=NOTHING_THERE)
    return found


# S3 --------------------------------------------------------------------------------------------


def _download_object(path: s3.S3Path, cache_dir: Path) -> tuple[Path, str]:
    """Return a copy of an object in the cache, and the object's entity tag."""
    with s3.translated(DataError, "read", path):
        state = s3.stat(path)
        size, etag = state["ContentLength"], state["ETag"]
        name = PurePosixPath(path.key).name
        folder = cache_dir.absolute() / "s3" / _short_hash(f"{path}\n{etag}")
        if (folder / name).exists() and (folder / name).stat().st_size != size:
            # A power cut can keep a file's name and lose the end of its content.
            shutil.rmtree(folder)
        if not (folder / name).exists():
            with staging_folder(cache_dir.absolute() / "tmp") as work:
                download = functools.partial(
                    s3.download, path=path, target=work / name, size=size, etag=etag
                )
                s3.run_parallel([download])
                _put_in_place(work, folder)
    return folder / name, etag


def _expand_objects(path: s3.S3Path) -> list[str]:
    with s3.translated(DataError, "read", path):
        if path.key and s3.head(path) is not None:
            return [str(path)]
        if glob.has_magic(path.key):
            listing = s3.client().glob(f"{path.bucket}/{path.key}", detail=True)
            found = sorted(f"s3://{n}" for n, info in listing.items() if info["type"] == "file")
        else:
            prefix = path / "" if path.key else path
            found = [
                str(item.path)
                for item in s3.list_objects(prefix)
                if is_data_file(item.path.key.removeprefix(prefix.key))
            ]
    if not found:
        raise DataError(
            f"{path}: there is no such object, nor any data file below it.", reason=NOTHING_THERE
        )
    return found


def _download_prefix(path: s3.S3Path, cache_dir: Path) -> Path:
    prefix = path / "" if path.key else path
    with s3.translated(DataError, "read", path):
        objects = {
            name: item
            for item in s3.list_objects(prefix)
            if _is_model_file(name := item.path.key.removeprefix(prefix.key))
        }
        if not objects:
            raise DataError(f"{path}: there is no model; no config or safetensors file is there.")
        state = "\n".join(f"{name} {item.etag}" for name, item in objects.items())
        folder = cache_dir.absolute() / "s3" / _short_hash(f"{path}\n{state}")
        if not folder.exists():
            with staging_folder(cache_dir.absolute() / "tmp") as work:
                s3.run_parallel(
                    functools.partial(
                        s3.download,
                        path=item.path,
                        target=work / name,
                        size=item.size,
                        etag=item.etag,
                    )
                    for name, item in objects.items()
                )
                _put_in_place(work, folder)
    return folder


def _is_model_file(name: str) -> bool:
    # A key is any text: `..` in one would lead out of the folder.
    is_inside = not {"", ".", ".."} & set(name.split("/"))
    return is_inside and any(fnmatch.fnmatchcase(name, pattern) for pattern in _MODEL_FILES)


def _put_in_place(work: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        work.rename(folder)
    except OSError:
        # Another process has put the same download there meanwhile.
        if not folder.exists():
            raise


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# The hub ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _HubPath:
    repository: str
    """OWNER/NAME."""
    kind: str
    """`dataset` or `model`, as huggingface_hub names them."""
    revision: str | None
    file: str
    """A file, a glob, or empty."""

    @classmethod
    def parse(cls, uri: str) -> Self:
        rest = uri.removeprefix("hf://")
        kind = "dataset" if rest.startswith("datasets/") else "model"
        owner, _, rest = rest.removeprefix("datasets/").partition("/")
        name, _, file = rest.partition("/")
        name, _, revision = name.partition("@")
        is_inside = ".." not in file.split("/")
        if not (_HUB_NAME.fullmatch(owner) and _HUB_NAME.fullmatch(name) and is_inside):
            raise DataError(
                f"{uri}: not a path on the hub; it looks like hf://datasets/OWNER/NAME/FILE or "
                "hf://OWNER/NAME."
            )
        return cls(f"{owner}/{name}", kind, revision or None, file.strip("/"))

    def __str__(self) -> str:
        prefix = "datasets/" if self.kind == "dataset" else ""
        revision = f"@{self.revision}" if self.revision else ""
        file = f"/{self.file}" if self.file else ""
        return f"hf://{prefix}{self.repository}{revision}{file}"

    def with_file(self, file: str) -> Self:
        return type(self)(self.repository, self.kind, self.revision, file)


def _download_from_hub(path: _HubPath) -> Path:
    if not path.file:
        raise DataError(f"{path}: this is a repository; name a file in it.")
    file = _snapshot(path, glob.escape(path.file)) / path.file
    if not file.exists():
        raise DataError(f"{path}: the repository has no such file; check its name.")
    return file


def _expand_repository(path: _HubPath) -> list[str]:
    from huggingface_hub import HfApi

    if path.file and not glob.has_magic(path.file):
        return [str(path)]
    with _hub_errors(path):
        describe = HfApi().dataset_info if path.kind == "dataset" else HfApi().model_info
        info = describe(path.repository, revision=path.revision)
    names = sorted(sibling.rfilename for sibling in info.siblings or [])
    if path.file:
        found = [name for name in names if fnmatch.fnmatchcase(name, path.file)]
    else:
        found = [name for name in names if is_data_file(name)]
    if not found:
        raise DataError(f"{path}: the repository has no such data file.")
    return [str(path.with_file(name)) for name in found]


def _download_model(path: _HubPath, cache_dir: Path) -> Path:
    if path.kind != "model" or path.file:
        raise DataError(f"{path}: not a model on the hub; give hf://OWNER/NAME.")
    snapshot = _snapshot(path, *_MODEL_FILES)
    # The hub's cache is made of links, and its folder is named by the commit.
    name = f"{path.repository.replace('/', '--')}@{snapshot.name}"
    folder = cache_dir.absolute() / "hub" / name
    if not folder.exists():
        with staging_folder(cache_dir.absolute() / "tmp") as work:
            for file in (p for p in snapshot.rglob("*") if p.is_file()):
                target = work / file.relative_to(snapshot)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file.resolve(), target)
            _put_in_place(work, folder)
    return folder


def _snapshot(path: _HubPath, *patterns: str) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(path):
        # Also for one file: it resolves the revision first and so fails at once without a network.
        folder = snapshot_download(
            path.repository,
            repo_type=path.kind,
            revision=path.revision,
            allow_patterns=list(patterns),
        )
    return Path(str(folder))


@contextmanager
def _hub_errors(path: _HubPath) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = _hub_reason(error, path)
        if reason is None:
            raise
        raise DataError(f"{path}: {reason}.") from None


def _hub_reason(error: BaseException, path: _HubPath) -> str | None:
    from huggingface_hub import constants, errors

    # What a missing file of the cache hides: the hub was asked first, and this came back.
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated; accept its terms on the hub and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the id or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {path.revision}"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answered {error.response.status_code}; try again later"
    # The base class of the HTTP library behind the hub, which has not always been the same one.
    no_connection = errors.HTTPError  # type: ignore[attr-defined]
    if not isinstance(error, (errors.LocalEntryNotFoundError, no_connection, ConnectionError)):
        return None
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
    return f"{constants.ENDPOINT} doesn't answer; check the network and HF_ENDPOINT"
