"""Training sets of the Hugging Face hub, read by the `datasets` library, and their names."""

import hashlib
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import orjson

from alignflow.data_validation.config import DataKind
from alignflow.data_validation.source_row import SourceRow
from alignflow.errors import DataError

_HUB_URI = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLITS: dict[DataKind, tuple[str, ...]] = {
    "sft": ("train_sft", "train"),
    "preference": ("train_prefs", "train"),
    "unpaired": ("train",),
    "steerlm": ("train",),
}
"""Splits that are taken for training, by preference: one that names the kind goes first."""


def is_hub_set(source: str) -> bool:
    """Say whether a source names a whole set of the hub, not a file in it nor a local path."""
    if _HUB_URI.fullmatch(source):
        return True
    return _HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


class HubRows:
    """The rows of a set's training split, streamed; identity and size are known at the end.

    A set of the hub is read at one commit, that of its revision when the reading begins, however
    long the reading takes and whatever is pushed meanwhile.

    Args:
        source: `hf://datasets/OWNER/NAME[@REVISION]`, `OWNER/NAME`, or what else the `datasets`
            library loads, such as a folder of data files.
        kind: What its rows are.
    """

    def __init__(self, source: str, kind: DataKind) -> None:
        self._source, self._kind = source, kind
        self._name, _ = _name_and_revision(source)
        self._commit: str | None = None
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    @property
    def uri(self) -> str:
        """The source, with the commit that was read where it is of the hub."""
        return f"hf://datasets/{self._name}@{self._commit}" if self._commit else self._source

    @property
    def sha256(self) -> str:
        """SHA-256 of the rows read so far, as JSON lines."""
        return self._digest.hexdigest()

    def read(self) -> Generator[SourceRow, None, None]:
        """Yield the rows in order, numbered from 1.

        Raises:
            DataError: There is no such set, it has no training split, or the hub can't be reached.
        """
        if is_hub_set(self._source):
            self._commit = hub_commit(self._source)
        rows = _load(self._name, self._commit, _SPLITS[self._kind])
        for number, values in enumerate(rows, start=1):
            original = orjson.dumps(values, default=str) + b"\n"
            self._digest.update(original)
            self.num_bytes += len(original)
            yield SourceRow.of_values(number, values, original)


def hub_commit(source: str) -> str:
    """Return the commit that names the content of a set of the hub now.

    Raises:
        DataError: There is no such set, or the hub can't be reached.
    """
    from huggingface_hub import HfApi, errors

    # The base class of the HTTP library behind the hub, which has not always been the same one.
    no_connection = errors.HTTPError  # type: ignore[attr-defined]

    name, revision = _name_and_revision(source)
    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except (errors.HfHubHTTPError, no_connection, OSError) as error:
        raise DataError(
            f"{source}: there is no such file here, and the hub can't be asked for a set of this "
            f"name ({str(error).partition(chr(10))[0]})."
        ) from None


def _name_and_revision(source: str) -> tuple[str, str | None]:
    match = _HUB_URI.fullmatch(source)
    return (match["name"], match["revision"]) if match else (source, None)


def _load(name: str, revision: str | None, preferred: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        splits = datasets.load_dataset(name, revision=revision, streaming=True)
        split = next((split for split in preferred if split in splits), None)
        if split is None and len(splits) != 1:
            raise DataError(
                f"{name}: none of its splits ({', '.join(splits)}) is for training; "
                f"name a file, as in hf://datasets/{name}/FILE."
            )
        yield from splits[split or next(iter(splits))]
    except (DatasetsError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        first_line = str(error).partition("\n")[0]
        raise DataError(
            f"{name}: can't be read from the hub ({first_line}); check the name, the network, "
            "and HF_TOKEN if it is private."
        ) from None
