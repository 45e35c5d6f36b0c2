"""`alignflow evaluate` and `export`: work with one model outside a pipeline."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from alignflow.cli.local_jobs import run_module
from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace
from alignflow.errors import ConfigError, DataError, InputError


class Precision(StrEnum):
    """Number formats of a model's forward pass."""

    FP32 = "fp32"
    BF16 = "bf16"


# Scores that are shown by group too; no suite has two of them.
_SHOWN_BY_GROUP = {"accuracy", "toxicity_rate"}

# Where a suite's file lies in the folder that ALIGNFLOW_DATA names.
_DATA_FILES = {
    "truthfulqa": "truthfulqa/mc_task.json",
    "truthfulqa_generation": "truthfulqa/TruthfulQA.csv",
    "toxigen": "toxigen/annotated_safenlp.json",
    "toxigen_prompts": "toxigen/prompts_sample.jsonl",
    "refusals": "sft/self_instruct_user_oriented.jsonl",
}


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder, hub id, package:NAME, models:/NAME@ALIAS, a digest, or a checkpoint in a "
            "run folder."
        ),
    ],
    suite: Annotated[
        str,
        typer.Option(
            help="truthfulqa, truthfulqa_generation, toxigen, toxigen_prompts, refusals, one that "
            "a package adds, or lm_eval:TASK."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Its file: a path, s3://… or hf://datasets/…; else looked for in $ALIGNFLOW_DATA."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first N items only.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="Number format of the model.")
    ] = Precision.FP32,
    max_length: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt with an answer; longer ones are cut.")
    ] = 1024,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Digest or folder of a judge that the suite asks: of toxicity for "
            "toxigen_prompts; of truth and one of information for truthfulqa_generation."
        ),
    ] = None,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Judge one model on one benchmark."""
    from alignflow.cli.judges import find_judges
    from alignflow.evaluation.config import EvaluationConfig, EvaluationJob, SuiteConfig
    from alignflow.evaluation.judges.config import LocalJudge
    from alignflow.evaluation.suites import score_names
    from alignflow.sources import fetch_file

    score_names(suite)  # that there is none shows first
    workspace = workspace.absolute()
    found = find_judges(judge or (), suite, workspace)
    file = fetch_file(data or _default_data(suite), workspace / "cache")
    name = re.sub("[^a-z0-9_-]", "-", suite.lower())
    named = _find_model(model, workspace)
    job = EvaluationJob(
        evaluation=EvaluationConfig(
            suites={
                name: SuiteConfig(
                    suite=suite,
                    data=str(file.path),
                    limit=limit,
                    judges={
                        task: LocalJudge(kind="local", source=of.digest)
                        for task, of in found.items()
                    },
                )
            },
            precision=precision.value,
            max_length=max_length,
            num_samples=0,
        ),
        model=named.folder,
        judges={name: {task: of.folder for task, of in found.items()}},
    )
    config = job.model_dump(mode="json")
    identity = [named.identity, file.sha256, config]
    folder = run_module("evaluate", "alignflow.evaluation", config, identity, workspace)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    report = {
        "suite": suite,
        "model": model,
        "num_items": scores["num_items"][name],
        "scores": {
            score.partition("/")[2]: value
            for score, value in scores["scores"].items()
            if score.startswith(f"{name}/")
        },
        "intervals": {
            score.partition("/")[2]: interval
            for score, interval in scores["intervals"].items()
            if score.startswith(f"{name}/")
        },
        "items": str(folder / "items" / f"{name}.jsonl"),
    }
    for score in _SHOWN_BY_GROUP & {score.partition("/")[2] for score in scores["groups"]}:
        report["scores"]["by_group"] = {
            group: of["value"]
            for group, of in scores["groups"][f"{name}/{score}"].items()
            if of["value"] is not None
        }
    num_truncated = scores["num_truncated"][name]
    if num_truncated:
        typer.echo(f"{num_truncated} sequences were cut at {max_length} tokens", err=True)
    for reason in scores["weak_judges"].values():
        typer.echo(reason, err=True)
    if format is Format.JSON:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _print_scores(report, file.uri)


def _default_data(suite: str) -> str:
    folder = os.environ.get("ALIGNFLOW_DATA")
    if suite not in _DATA_FILES:
        raise ConfigError(f"--data is missing; name the file of {suite}.")
    path = Path(folder, _DATA_FILES[suite]) if folder else None
    if path is None or not path.is_file():
        where = f"there is no {path}" if path else "ALIGNFLOW_DATA is not set"
        raise ConfigError(f"--data is missing and {where}; name the file of {suite}.")
    return str(path)


def _print_scores(report: dict[str, Any], data: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "score",
        "value",
        "95 % interval",
        title=f"{report['model']} on {data}, as {report['suite']}",
    )
    for name, value in report["scores"].items():
        if isinstance(value, dict):
            for group, share in sorted(value.items()):
                table.add_row(f"of {group}", f"{share:.4f}")
        else:
            interval = report["intervals"].get(name)
            bounds = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
            table.add_row(name, f"{value:.4f}", bounds)
    console = Console()
    console.print(table)
    console.print(f"{report['num_items']} items, one a line in {report['items']}", soft_wrap=True)


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, a digest, or a checkpoint in a run folder.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Write a model as a Hugging Face folder that `from_pretrained` loads."""
    if to.exists():
        raise InputError(f"{to.absolute()} exists; name a new folder.")
    folder = _find_model(checkpoint, workspace.absolute()).folder
    staged = to.with_name(f".{to.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(folder, staged, ignore=shutil.ignore_patterns("manifest.json"))
    for path in staged.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    staged.rename(to)
    print(to)


def _export_checkpoint(checkpoint: Path, workspace: Path) -> "_NamedModel":
    """Convert a training checkpoint, in a job, because it takes the model on Megatron."""
    from alignflow.jobs.run_folder import RunFolder

    trained = RunFolder(checkpoint.absolute().parent.parent)
    config = {"run_folder": str(trained.path), "checkpoint": checkpoint.name}
    identity = {**config, "modified": checkpoint.stat().st_mtime_ns}
    folder = run_module(
        "export",
        "alignflow.training.export",
        config,
        identity,
        workspace,
        num_processes=trained.read_spec().processes_per_node,
    )
    return _NamedModel(folder, identity)


@dataclass(frozen=True)
class _NamedModel:
    folder: Path
    """Hugging Face folder on this machine."""
    identity: Any
    """What names its content."""


def _find_model(ref: str, workspace: Path) -> _NamedModel:
    """Find what a person names as a model."""
    from alignflow.artifacts import ArtifactStore
    from alignflow.lineage import find_artifact
    from alignflow.model_source import resolve_model

    if Path(ref).is_dir() and Path(ref).absolute().parent.name == "checkpoints":
        return _export_checkpoint(Path(ref), workspace)
    store = ArtifactStore(str(workspace / "artifacts"))
    artifact = None
    if ref.startswith("models:/"):
        from alignflow.tasks.tracking import resolve_version

        tags = resolve_version(ref, workspace).tags
        store = ArtifactStore(tags.get("alignflow.store", store.url))
        artifact = find_artifact(store, tags)
    elif len(ref) >= 8 and set(ref) <= set("0123456789abcdef") and not Path(ref).exists():
        artifact = store.get(ref)
    if artifact is not None:
        if artifact.manifest.tokenizer is None:
            raise DataError(f"{ref} is an artifact of kind {artifact.kind}; give one of a model.")
        return _NamedModel(store.fetch(artifact, workspace / "cache"), artifact.digest)
    source = resolve_model(ref, cache=workspace / "cache")
    identity = dict(source.identity)
    if not source.is_gguf:
        return _NamedModel(source.path, identity)
    config = {"file": str(source.path)}
    folder = run_module("import", "alignflow.training.import_gguf", config, identity, workspace)
    return _NamedModel(folder, identity)
