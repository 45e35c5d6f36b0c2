"""Small texts that are kept beside the artifacts: what runs and watches remember of one another."""

from alignflow.artifacts.backend import Backend


class Notes:
    """Named notes of a store; every method raises StoreError where it can't be reached."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def read(self, name: str) -> bytes | None:
        """Return a note, or None where there is none."""
        return self._backend.read(f"notes/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a note, all or nothing, over the one that stood there."""
        self._backend.write(f"notes/{name}", content)

    def names(self, folder: str) -> list[str]:
        """Return the names of the `.json` notes right in a folder, with the folder."""
        found = self._backend.ages(f"notes/{folder}")
        return sorted(f"{folder}/{name}" for name in found if name.endswith(".json"))
