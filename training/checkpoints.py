"""The resume checkpoints of a run folder: which of them counts, and which may go."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.errors import ConfigError, DataError
from alignflow.jobs.run_folder import write_atomically

_MARKER = "complete"
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 2**14


def model_digest(model: Path) -> str:
    """Return a SHA-256 that tells initial models apart without reading all of their bytes.

    It covers the config and, of each file of weights, the name, the size and evenly spaced pieces,
    the first of which is the header: training moves weights everywhere, so it shows in the pieces.

    Args:
        model: Hugging Face folder.
    """
    digest = hashlib.sha256((model / "config.json").read_bytes())
    for path in sorted(model.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_NUM_SAMPLES):
                file.seek(number * size // _NUM_SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class Checkpoints:
    """Folders `step-NNNNNNNN`; one counts once its marker, written last, stands in it.

    The marker holds what the run was made of: digests of its initial model and of its data, and its
    config. A checkpoint of another run is refused: going on from it would give a model that no
    config describes. It also holds the SHA-256 of each file, by which damage is told: Megatron
    would load flipped bits as weights.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model_digest: str,
        data_digest: str,
        config: Mapping[str, Any],
        keep: int,
    ) -> None:
        self._folder = folder
        identity = {"model_digest": model_digest, "data_digest": data_digest, "config": config}
        self._identity = json.loads(json.dumps(identity))
        self._keep = keep

    def newest(self, *, until_step: int | None = None) -> Path | None:
        """Return the newest complete checkpoint, or None.

        Args:
            until_step: Look at those only that were made after at most so many steps.

        Raises:
            ConfigError: It was made under another config.
            DataError: It was made on other data, or from another model.
        """
        complete = self._complete()
        if until_step is not None:
            complete = [path for path in complete if path <= self.path(until_step)]
        if not complete:
            return None
        self._check(complete[-1], _read_marker(complete[-1]))
        return complete[-1]

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
        return self._folder / f"step-{step:08d}"

    def begin(self, path: Path) -> None:
        """Make the checkpoint's folder, emptied of what an earlier attempt left there."""
        _remove(path)
        path.mkdir(parents=True)

    def discard(self, path: Path) -> None:
        """Have a damaged checkpoint count no more; its files stay until it is written anew."""
        (path / _MARKER).unlink()

    def finish(
        self, path: Path, digests: Mapping[str, str], *, best_step: int | None = None
    ) -> None:
        """Make the checkpoint count, then remove those that are no longer kept.

        Args:
            path: The checkpoint, its files written.
            digests: SHA-256 of each of them.
            best_step: The step whose checkpoint stays, however old it is.
        """
        marker = {**self._identity, "files": dict(digests)}
        write_atomically(path / _MARKER, json.dumps(marker, indent=2) + "\n")
        for old in self._complete()[: -self._keep]:
            if best_step is None or old != self.path(best_step):
                _remove(old)

    def _complete(self) -> list[Path]:
        return sorted(marker.parent for marker in self._folder.glob(f"step-*/{_MARKER}"))

    def _check(self, path: Path, identity: dict[str, Any]) -> None:
        hint = "remove the run folder's checkpoints to start over"
        if identity.get("model_digest") != self._identity["model_digest"]:
            raise DataError(f"{path}: this checkpoint was made from another model; {hint}.")
        if identity["data_digest"] != self._identity["data_digest"]:
            raise DataError(f"{path}: this checkpoint was made on other data; {hint}.")
        before, now = identity["config"], self._identity["config"]
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            name = changed[0]
            raise ConfigError(
                f"{path}: this checkpoint was made with {name} {before.get(name)!r}, "
                f"the job now has {now[name]!r}; {hint}."
            )


def recorded_digests(path: Path) -> dict[str, str]:
    """Return the SHA-256 that each file of a complete checkpoint was written with.

    Raises:
        DataError: It isn't complete.
    """
    if not (path / _MARKER).is_file():
        raise DataError(f"{path}: not a whole checkpoint; name one that was finished.")
    digests: dict[str, str] = _read_marker(path)["files"]
    return digests


def _read_marker(path: Path) -> dict[str, Any]:
    marker: dict[str, Any] = json.loads((path / _MARKER).read_text(encoding="utf-8"))
    return marker


def _remove(path: Path) -> None:
    if path.exists():
        (path / _MARKER).unlink(missing_ok=True)  # first: half a checkpoint must not count
        shutil.rmtree(path)
