"""Checks made before a run starts servers and jobs; neither Prefect nor MLflow is loaded here."""

from pathlib import Path
from tempfile import NamedTemporaryFile

from alignflow.artifacts import ArtifactStore
from alignflow.artifacts.files import os_errors_as
from alignflow.data_validation.hub import is_hub_set
from alignflow.errors import ConfigError
from alignflow.jobs.kubernetes.manifests import check_is_mounted
from alignflow.model_source import find_local_model, read_template
from alignflow.servers import named_servers, why_silent
from alignflow.sources import expand, is_data_file
from alignflow.tasks.config import RunConfig


def open_store(recipe: RunConfig) -> ArtifactStore:
    """Return the recipe's artifact store, under a URL that holds in any working directory."""
    url = recipe.store or str(Path(recipe.workspace) / "artifacts")
    return ArtifactStore(url if "://" in url else str(Path(url).expanduser().absolute()))


def check_inputs(recipe: RunConfig) -> None:
    """Refuse a recipe that can't run, in milliseconds where nothing has to be asked elsewhere.

    Raises:
        StoreError: The store can't be written.
        ConfigError: The workspace can't be written or isn't seen by the cluster's pods, the chat
            template can't be read, the package that ships the model isn't installed, or a server
            doesn't answer.
        DataError: A source names no file, or the model is none.
    """
    for source in (source for each in recipe.data.sets.values() for source in each.sources):
        # A data file's name is a path, though OWNER/NAME.jsonl could be a set of the hub as well.
        is_path = is_data_file(source) or not is_hub_set(source)
        if is_path and not source.startswith("hf://"):
            expand(source)
    for benchmark in recipe.evaluation.benchmarks.values():
        if not benchmark.data.startswith("hf://"):
            expand(benchmark.data)
    for suite in recipe.evaluation.suites.values():
        for judge in suite.judges.values():
            for uri in judge.uris:
                if "://" not in uri:
                    expand(uri)
    answer_judge = recipe.evaluation.answer_judge
    for model in (recipe.model, *([answer_judge.model] if answer_judge else [])):
        find_local_model(model.source)
        read_template(model.chat_template)
    workspace = Path(recipe.workspace).absolute()
    if recipe.cluster.kubernetes is not None:
        check_is_mounted(workspace.resolve(), recipe.cluster.kubernetes)
    _check_workspace(workspace)
    open_store(recipe).check_writable()
    _check_servers()


def _check_workspace(workspace: Path) -> None:
    with os_errors_as(ConfigError, f"write to the workspace {workspace}"):
        workspace.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=workspace):
            pass


def _check_servers() -> None:
    for server in named_servers():
        reason = why_silent(server)
        if reason is not None:
            raise ConfigError(
                f"{server.variable}: {server.name} doesn't answer at {server.url} ({reason}); "
                "start it (alignflow up), or unset the variable."
            )
