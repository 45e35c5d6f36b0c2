"""One look at where a recipe's preferences land: has a new set come, whole, and worth a run?

What was seen is kept in the recipe's store, so that each look goes on from the one before,
whichever process made it. A set lands when its files have not changed for a quiet period, its
content has not landed before, and enough of its pairs are new. Landing is recorded, then told as
an event. An event may be lost: it is told again until a run stands under the key of the landing,
and however often it is told, there is one run.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.exceptions import ObjectNotFound
from pydantic import NonNegativeFloat, NonNegativeInt

from alignflow.config import Config
from alignflow.data_validation.accepted import accepted_rows
from alignflow.errors import ConfigError, DataError
from alignflow.landing import SeenFile, content_digest, fingerprint, read_digests, seen_files
from alignflow.tasks.config import RunConfig
from alignflow.tasks.data_versions import (
    DataVersion,
    DataVersions,
    VersionFile,
    new_version,
    pinned,
)
from alignflow.tasks.events import emit
from alignflow.tasks.last_run import read_last_run
from alignflow.tasks.logs import run_logger
from alignflow.tasks.prefect_api import prefect_client
from alignflow.tasks.preflight import open_store
from alignflow.tasks.starting import cache_of, landing_key

LANDED_EVENT = "alignflow.preferences.landed"
TRIGGERED = "align-on-new-preferences"
"""Flow of the deployments that the event starts, which are named after their recipes."""

Pairs = NDArray[np.uint64]

_TELL_AGAIN_AFTER = timedelta(minutes=10)


class WatchRules(Config):
    """When a set has landed."""

    min_new_pairs: NonNegativeInt = 1
    """Fewest pairs that the version before did not have; with 0 nobody counts."""
    quiet_s: NonNegativeFloat = 60.0
    """Seconds for which no file may have come, gone or changed."""


class Sighting(NamedTuple):
    """What a look came to."""

    what: Literal["nothing", "waiting", "too few", "refused", "known", "landed"]
    sentence: str
    digest: str | None = None


class _Note(Config):
    """What is kept between two looks."""

    fingerprint: str
    since: datetime
    """When the files were first seen so."""
    files: tuple[VersionFile, ...] = ()
    """Once they were quiet."""
    num_new_pairs: int | None = None
    """Once they were counted."""
    refused: str | None = None
    """Why the set can't be used."""

    @property
    def digest(self) -> str:
        return content_digest(file.sha256 for file in self.files)


def look(recipe: RunConfig, sources: Sequence[str], rules: WatchRules) -> Sighting:
    """Look once, and tell of what has landed.

    Args:
        recipe: As it is deployed.
        sources: Folders, files and `s3://` prefixes.
        rules: When a set has landed.

    Raises:
        DataError: A source isn't there, or can't be read.
        StoreError: The store can't be read or written.
        ConfigError: Prefect's settings name no server, or the recipe isn't deployed there.
    """
    store = open_store(recipe)
    with prefect_client() as client:
        _check_deployed(client, recipe)
        # Two watches that look at once would both find that nobody has told yet.
        with store.lock(_hash("watch", recipe.name)):
            return _Look(client, recipe, sources, rules).run()


class _Look:
    """One look; the lock is held."""

    def __init__(
        self,
        client: SyncPrefectClient,
        recipe: RunConfig,
        sources: Sequence[str],
        rules: WatchRules,
    ) -> None:
        self._client = client
        self._recipe = recipe
        self._sources = sources
        self._rules = rules
        self._versions = DataVersions(recipe)
        self._notes = open_store(recipe).notes
        self._name = f"watch/{recipe.name}-{_hash(*sorted(sources))[:16]}.json"
        self._cache = cache_of(recipe)

    def run(self) -> Sighting:
        self._tell_again()
        files = seen_files(self._sources)
        if not files:
            return Sighting("nothing", f"no data file lies in {', '.join(self._sources)} yet")
        note = self._note_of(files)
        quiet_for = (datetime.now(UTC) - note.since).total_seconds()
        if quiet_for < self._rules.quiet_s:
            left = self._rules.quiet_s - max(quiet_for, 0.0)
            return Sighting(
                "waiting", f"{len(files)} files may still change: quiet in {left:.0f} s"
            )
        if not note.files:
            note = self._read(note, files)
            if fingerprint(seen_files(self._sources)) != note.fingerprint:
                return Sighting("waiting", "the files changed while they were read")
            self._keep(note)
        return self._judge(note)

    def _note_of(self, files: Sequence[SeenFile]) -> _Note:
        """Return what is known of the files in this state; they are new from now on."""
        content = self._notes.read(self._name)
        if content is not None:
            try:
                note = _Note.model_validate_json(content)
            except ValueError:
                run_logger().warning("The note %s was damaged; the watch starts over.", self._name)
            else:
                if note.fingerprint == fingerprint(files):
                    return note
        return self._keep(_Note(fingerprint=fingerprint(files), since=datetime.now(UTC)))

    def _keep(self, note: _Note) -> _Note:
        self._notes.write(self._name, note.model_dump_json(indent=2).encode())
        return note

    def _read(self, note: _Note, files: Sequence[SeenFile]) -> _Note:
        digests = read_digests(files, self._cache)
        read = tuple(VersionFile(uri=uri, sha256=sha256) for uri, sha256 in digests.items())
        return note.replaced(files=read)

    def _judge(self, note: _Note) -> Sighting:
        """Decide on files that are quiet and read."""
        digest = note.digest
        if (version := self._versions.read(digest)) is not None:
            run = f"run {version.flow_run}" if version.flow_run else "told to Prefect"
            return Sighting("known", f"preferences {version.short} landed before: {run}", digest)
        version = new_version(digest, note.files)
        last = read_last_run(self._recipe)
        if last is not None and last.preferences == digest:
            self._record(version.replaced(flow_run=last.run), self._pairs_of(version))
            return Sighting("known", f"preferences {version.short} had run {last.run}", digest)
        if note.refused is not None:
            return Sighting("refused", note.refused, digest)
        return self._land(note, version)

    def _land(self, note: _Note, version: DataVersion) -> Sighting:
        pairs = None
        if self._rules.min_new_pairs:
            if note.num_new_pairs is not None and note.num_new_pairs < self._rules.min_new_pairs:
                return self._too_few(note.num_new_pairs, version)
            try:
                pairs = self._pairs_of(version)
            except DataError as error:
                self._keep(note.replaced(refused=str(error)))
                return Sighting("refused", str(error), version.digest)
            num_new = int(np.setdiff1d(pairs, self._pairs_before(), assume_unique=True).size)
            self._keep(note.replaced(num_new_pairs=num_new))
            if num_new < self._rules.min_new_pairs:
                return self._too_few(num_new, version)
            version = version.replaced(num_pairs=int(pairs.size), num_new_pairs=num_new)
        self._tell(self._record(version, pairs))
        new = "" if pairs is None else f" with {version.num_new_pairs} new pairs"
        return Sighting("landed", f"preferences {version.short} have landed{new}", version.digest)

    def _too_few(self, num_new: int, version: DataVersion) -> Sighting:
        wanted = self._rules.min_new_pairs
        sentence = f"preferences {version.short} have {num_new} new pairs, {wanted} are waited for"
        return Sighting("too few", sentence, version.digest)

    def _pairs_of(self, version: DataVersion) -> Pairs:
        config = pinned(self._recipe, version).data.preferences
        return accepted_rows(config, "preference", self._cache)

    def _pairs_before(self) -> Pairs:
        earlier = self._versions.all()
        return self._versions.pairs_of(earlier[-1].digest if earlier else "")

    def _record(self, version: DataVersion, pairs: Pairs | None) -> DataVersion:
        if pairs is not None:
            self._versions.write_pairs(version.digest, pairs)
        return self._versions.write(version)

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self, version: DataVersion) -> None:
        """Post the event of a version; the next look sees whether it came to a run."""
        payload: dict[str, str | int] = {
            "recipe": self._recipe.name,
            "digest": version.digest,
            "source": self._sources[0],
            "files": len(version.files),
            "new_pairs": version.num_new_pairs or 0,
        }
        is_told = emit(
            LANDED_EVENT,
            f"alignflow.preferences.{self._recipe.name}",
            payload,
            key=f"{landing_key(self._recipe, version.digest)} {version.told}",
            labels={"alignflow.digest": version.digest},
        )
        if is_told:
            self._versions.write(version.replaced(told=version.told + 1, told_at=datetime.now(UTC)))

    def _tell_again(self) -> None:
        """See that each version has its run; tell of those again that have none."""
        for version in self._versions.all():
            if version.flow_run is not None:
                continue
            flow_run = self._find_run(version)
            if flow_run is not None:
                self._versions.write(version.replaced(flow_run=flow_run))
            elif version.told_at is None or datetime.now(UTC) - version.told_at > _TELL_AGAIN_AFTER:
                self._tell(version)

    def _find_run(self, version: DataVersion) -> str | None:
        key = FlowRunFilterIdempotencyKey(any_=[landing_key(self._recipe, version.digest)])
        found = self._client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=key))
        return str(found[0].id) if found else None


def _check_deployed(client: SyncPrefectClient, recipe: RunConfig) -> None:
    name = f"{TRIGGERED}/{recipe.name}"
    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise ConfigError(
            f"Prefect has no deployment {name}, which new preferences are told to; make it by "
            "alignflow deploy --recipe RECIPE."
        ) from None


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
