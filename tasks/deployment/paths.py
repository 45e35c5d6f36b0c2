"""Recipes that hold in any folder: the process of a deployment's run starts in an empty one."""

import glob
import re
from pathlib import Path
from typing import Any, TypeVar

from alignflow.data_validation.hub import is_hub_set
from alignflow.model_source import is_hub_id
from alignflow.sources import is_data_file
from alignflow.tasks.config import RunConfig

RecipeT = TypeVar("RecipeT", bound=RunConfig)

_DIGEST = re.compile(r"[0-9a-f]{4,64}")


def with_absolute_paths(recipe: RecipeT, folder: Path) -> RecipeT:
    """Return a recipe whose relative paths are taken as relative to a folder.

    What isn't a path stays: URLs, `package:` names, hub ids. A name that could be a hub id as well
    is a path where the folder holds it.

    Args:
        recipe: As `alignflow run` would read it in that folder.
        folder: Absolute; on the machine of the workers, if not on this one.
    """
    data = recipe.model_dump(mode="json")
    data["workspace"] = _path(recipe.workspace, folder)
    if recipe.store is not None:
        data["store"] = _path(recipe.store, folder)
    _place_model(data["model"], folder)
    for name, config in recipe.data.sets.items():
        data["data"][name]["sources"] = [_source(source, folder) for source in config.sources]
    evaluation = data["evaluation"]
    for benchmark in (*evaluation["suites"].values(), *evaluation["pair_sets"].values()):
        benchmark["data"] = _path(benchmark["data"], folder)
    for suite in evaluation["suites"].values():
        for judge in suite["judges"].values():
            _place_judge(judge, folder)
    if evaluation["answer_judge"] is not None:
        _place_model(evaluation["answer_judge"]["model"], folder)
    return type(recipe).model_validate(data)


def _path(text: str, folder: Path) -> str:
    if "://" in text:
        return text
    return str(folder / Path(text).expanduser())


def _source(source: str, folder: Path) -> str:
    is_path = is_data_file(source) or glob.has_magic(source) or (folder / source).exists()
    return _path(source, folder) if is_path or not is_hub_set(source) else source


def _model(source: str, folder: Path) -> str:
    is_elsewhere = source.startswith("package:") or is_hub_id(source)
    return source if is_elsewhere and not (folder / source).exists() else _path(source, folder)


def _place_model(model: dict[str, Any], folder: Path) -> None:
    model["source"] = _model(model["source"], folder)
    if model["chat_template"] is not None:
        model["chat_template"] = _path(model["chat_template"], folder)


def _place_judge(judge: dict[str, Any], folder: Path) -> None:
    if judge["kind"] == "local":
        if not _DIGEST.fullmatch(judge["source"]):
            judge["source"] = _path(judge["source"], folder)
    elif judge["kind"] == "hub":
        judge["model"] = _model(judge["model"], folder)
        judge["labelled"] = _path(judge["labelled"], folder)
    else:
        training = judge["training"]
        if training["model"] is not None:
            training["model"] = _model(training["model"], folder)
        for role in ("data", "references", "transfer"):
            if training[role] is not None:
                training[role] = _path(training[role], folder)
