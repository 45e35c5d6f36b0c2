"""The model registry: models, their versions, tags and aliases."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from alignflow.errors import ConfigError
from alignflow.tasks.tracking.client import Writer, first_line, tracking_uri, use_tracking_uri
from alignflow.tasks.tracking.journal import JOURNAL_TAG, Journal, start_journal
from alignflow.urls import without_credentials


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


class Registry:
    """The registered models of an MLflow server or database.

    Args:
        uri: Of the tracking server or database. Nothing is read or written before the first call.
    """

    def __init__(self, uri: str) -> None:
        self._client = MlflowClient(uri)
        self._write = Writer(uri)

    def get(self, name: str, version_or_alias: str) -> RegisteredVersion | None:
        """Return a version by number or alias, or None where there is none."""
        try:
            if version_or_alias.isdigit():
                found = self._client.get_model_version(name, version_or_alias)
            else:
                found = self._client.get_model_version_by_alias(name, version_or_alias)
        except MlflowException as error:
            # An unknown alias is a bad parameter to MLflow; a server that is down is neither.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return _registered(found)

    def version_of(self, name: str, digest: str) -> RegisteredVersion | None:
        """Return the version that holds the model with this digest."""
        quoted = name.replace("'", "")
        for version in self._client.search_model_versions(f"name='{quoted}'"):
            if version.tags.get("alignflow.digest") == digest:
                return self.get(name, str(version.version))
        return None

    def add(
        self,
        name: str,
        source: str,
        *,
        run_id: str,
        tags: Mapping[str, str],
        model_id: str | None = None,
    ) -> RegisteredVersion:
        """Create a version of a model, and the model where there is none of its name.

        Args:
            name: Of the model.
            source: `models:/ID` of what MLflow logged, or a URL.
            run_id: The run that registers it.
            tags: Of the version.
            model_id: The ID in the source, if one stands there: a server, unlike a database file,
                refuses the one without the other.
        """
        if self._find_model(name) is None:
            self._create_model(name)
        version = self._write(
            self._client.create_model_version,
            name,
            source=source,
            run_id=run_id,
            tags=dict(tags),
            model_id=model_id,
        )
        return _registered(version)

    def set_tags(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Set tags on a version."""
        for key, value in tags.items():
            self._write(
                self._client.set_model_version_tag, version.name, version.version, key, value
            )

    def tagged(self, tag: str, value: str) -> list[RegisteredVersion]:
        """Return the versions of all models that carry a tag with this value."""
        quoted = value.replace("'", "")
        found = self._client.search_model_versions(f"tags.`{tag}` = '{quoted}'")
        # A search tells no aliases.
        versions = [self.get(each.name, str(each.version)) for each in found]
        return [version for version in versions if version is not None]

    def all_tags(self) -> Iterator[Mapping[str, str]]:
        """Yield the tags of every version of every model."""
        token = None
        while True:
            page = self._client.search_model_versions("", max_results=1000, page_token=token)
            yield from (dict(found.tags) for found in page)
            token = page.token
            if not token:
                return

    def aliases(self, name: str) -> dict[str, str]:
        """Return the number of the version that each alias of a model points at.

        Raises:
            ConfigError: There is no model of this name.
        """
        return {alias: str(number) for alias, number in self._model(name).aliases.items()}

    def point(self, name: str, alias: str, version: str | None) -> None:
        """Point an alias of a model at a version, or at none."""
        if version is None:
            self._write(self._client.delete_registered_model_alias, name, alias)
        else:
            self._write(self._client.set_registered_model_alias, name, alias, version)

    def journal(self, name: str) -> Journal:
        """Return the journal of a model.

        A model that alignflow made has one from its beginning. For one that somebody else made it
        is started here; the first two decisions on such a model mustn't be made at once.

        Raises:
            ConfigError: There is no model of this name.
        """
        run_id = self._model(name).tags.get(JOURNAL_TAG)
        if run_id is None:
            run_id = start_journal(self._client, self._write, name)
            self._write(self._client.set_registered_model_tag, name, JOURNAL_TAG, run_id)
        return Journal(self._client, self._write, run_id)

    def set_alias(self, version: RegisteredVersion, alias: str) -> RegisteredVersion:
        """Point an alias at a version and return the version with it."""
        self.point(version.name, alias, version.version)
        return replace(version, aliases=(*version.aliases, alias))

    def _find_model(self, name: str) -> RegisteredModel | None:
        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _model(self, name: str) -> RegisteredModel:
        model = self._find_model(name)
        if model is None:
            raise ConfigError(f"{name}: the registry holds no model of this name.")
        return model

    def _create_model(self, name: str) -> None:
        journal = start_journal(self._client, self._write, name)
        try:
            # One step with its tag, so that two who create it at once agree on one journal.
            self._write(self._client.create_registered_model, name, tags={JOURNAL_TAG: journal})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            self._write(self._client.delete_run, journal)


def _registered(found: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        name=found.name,
        version=str(found.version),
        tags=dict(found.tags),
        aliases=tuple(found.aliases),
    )


def resolve_version(ref: str, workspace: Path) -> RegisteredVersion:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        ConfigError: It has another form, the registry holds no such version, or can't be asked.
    """
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)[/@](?P<version>[^/@]+)", ref)
    if match is None:
        raise ConfigError(f"{ref}: a model is named models:/NAME@ALIAS or models:/NAME/VERSION.")
    uri = tracking_uri(workspace.absolute())
    use_tracking_uri(uri)
    try:
        found = Registry(uri).get(match["name"], match["version"])
    except MlflowException as error:
        raise ConfigError(
            f"{ref}: MLflow at {without_credentials(uri)} can't be asked ({first_line(error)})."
        ) from None
    if found is None or "alignflow.digest" not in found.tags:
        raise ConfigError(
            f"{ref}: the registry at {without_credentials(uri)} holds no such version of alignflow."
        )
    return found
