"""Which artifacts nobody needs any more."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from alignflow.artifacts.manifest import Manifest, ParentRef
from alignflow.artifacts.records import Record, Records


@dataclass(frozen=True)
class Garbage:
    """What can go from a store."""

    records: tuple[Record, ...]
    """Keys that nobody needs; their artifacts go too, unless another key leads there."""
    artifacts: tuple[Manifest, ...]
    """Artifacts to which no other key leads."""

    @property
    def size(self) -> int:
        """Return the bytes of the artifacts."""
        return sum(manifest.size for manifest in self.artifacts)


def find_garbage(
    records: Sequence[Record],
    without_key: Sequence[Manifest],
    *,
    roots: Iterable[ParentRef],
    kept_kinds: Collection[str],
    unused_s: float,
) -> Garbage:
    """Return what neither a root nor a stage of the last while needs.

    Needed are the roots, what was wanted within `unused_s` seconds, every artifact of a kept kind,
    and all that these were made from.

    Args:
        records: Every key of the store.
        without_key: The artifacts to which no key leads.
        roots: What is needed in any case, such as registered versions.
        kept_kinds: Kinds that no run makes again by itself.
        unused_s: Seconds for which nobody may have wanted what goes.
    """
    by_key = {record.manifest.key: record.manifest for record in records}
    by_digest = {manifest.digest: manifest for manifest in [*without_key, *by_key.values()]}
    recent = {record.manifest.key for record in records if record.unused_s < unused_s}
    waiting = [
        *roots,
        *(m.ref for m in by_key.values() if m.key in recent),
        # One that lost its key of late may still be read by a run that began before.
        *(m.ref for m in without_key if m.key in recent or _age_s(m) < unused_s),
        *(m.ref for m in by_digest.values() if m.kind in kept_kinds),
    ]
    needed: set[tuple[str, str]] = set()
    while waiting:
        ref = waiting.pop()
        if (ref.key, ref.digest) in needed:
            continue
        needed.add((ref.key, ref.digest))
        manifest = by_key.get(ref.key)
        if manifest is None or manifest.digest != ref.digest:
            # The key was computed again, with another outcome: the artifact itself still knows.
            manifest = by_digest.get(ref.digest)
        waiting.extend(manifest.parents.values() if manifest else ())
    keys, digests = {key for key, _ in needed}, {digest for _, digest in needed}
    kept = [record for record in records if record.manifest.key in keys]
    digests |= {record.manifest.digest for record in kept}
    return Garbage(
        tuple(record for record in records if record.manifest.key not in keys),
        tuple(m for m in by_digest.values() if m.digest not in digests),
    )


def _age_s(manifest: Manifest) -> float:
    return (datetime.now(UTC) - manifest.created).total_seconds()


def collect(
    store: Records, garbage: Garbage, records: Sequence[Record], *, unused_s: float
) -> Garbage:
    """Remove garbage, and return what was removed.

    What somebody works on, or has come to want since it was found, stays.

    Args:
        store: Where it lies.
        garbage: Of `find_garbage`.
        records: As `find_garbage` was given them.
        unused_s: As `find_garbage` was given it.

    Raises:
        StoreError: The store can't be read or written to; a second call goes on.
    """
    gone: list[Record] = []
    stay: list[Record] = []
    for record in garbage.records:
        is_gone = store.forget(record.manifest.key, unused_s=unused_s)
        (gone if is_gone else stay).append(record)
    still_named = {record.manifest.digest for record in stay}
    chosen = [m for m in garbage.artifacts if m.digest not in still_named]
    return Garbage(tuple(gone), tuple(m for m in chosen if store.discard(m.digest, records)))
