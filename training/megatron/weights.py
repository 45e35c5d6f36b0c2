"""Weights in a Hugging Face folder: safetensors, in one file or in shards with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignflow.errors import DataError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Weights:
    """The tensors of a folder by name, read from disk one slice at a time."""

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        """Take the folder, for messages, and the file that holds each tensor."""
        self.folder = folder
        self._files = files
        self._open: dict[Path, Any] = {}

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Find the weights of a model folder.

        Raises:
            DataError: There are none, or the index is broken or leads out of the folder.
        """
        index = folder / INDEX_FILE
        if index.is_file():
            return cls(folder, _indexed_files(index))
        return cls.of_file(folder / SINGLE_FILE)

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Take all tensors of one file.

        Raises:
            DataError: The file is missing or broken.
        """
        weights = cls(path.parent, {})
        weights._files = dict.fromkeys(weights._handle(path).keys(), path)
        return weights

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._files)

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        """Return a tensor, or some of its rows or columns, reading nothing else from disk.

        Raises:
            DataError: The tensor is missing, has another shape, or its file is broken.
        """
        if name not in self._files:
            raise DataError(f"{self.folder}: the weights lack {name}.")
        path = self._files[name]
        try:
            stored = self._handle(path).get_slice(name)
            found = tuple(stored.get_shape())
            if found != shape:
                raise DataError(
                    f"{path}: {name} has shape {list(found)}, "
                    f"but config.json asks for {list(shape)}."
                )
            if columns is not None:
                part: Tensor = stored[:, columns]
            else:
                part = stored[rows] if rows is not None else stored[:]
        except SafetensorError as error:
            raise DataError(f"{path}: {name} can't be read ({error}).") from None
        return part

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise DataError(
                    f"{path}: no such file; the weights of a model must be safetensors."
                ) from None
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path}: not a readable safetensors file ({error}).") from None
        return self._open[path]


def _indexed_files(index: Path) -> dict[str, Path]:
    try:
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {tensor: index.parent / str(file) for tensor, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: not an index of weights ({error!r}).") from None
    for tensor, path in files.items():
        if path.parent != index.parent or path.name in ("", ".", ".."):
            raise DataError(f"{index}: {tensor} must lie in a file beside the index, not {path}.")
    return files
