"""`alignflow evaluate` and `export`: work with one model outside a pipeline."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace
from alignflow.errors import ConfigError, DataError, InputError

# Raised by a commit that changes what these jobs make: `alignflow.artifacts.code_version`.
_REVISION = 1


class Suite(StrEnum):
    """Benchmarks that `evaluate` knows."""

    TRUTHFULQA = "truthfulqa"
    TOXIGEN = "toxigen"
    TOXIGEN_PROMPTS = "toxigen_prompts"
    REFUSALS = "refusals"


class Precision(StrEnum):
    """Number formats of a model's forward pass."""

    FP32 = "fp32"
    BF16 = "bf16"


# Where a suite's file lies in the folder that ALIGNFLOW_DATA names.
_DATA_FILES = {
    Suite.TRUTHFULQA: "truthfulqa/mc_task.json",
    Suite.TOXIGEN: "toxigen/annotated_safenlp.json",
    Suite.TOXIGEN_PROMPTS: "toxigen/prompts_sample.jsonl",
    Suite.REFUSALS: "sft/self_instruct_user_oriented.jsonl",
}


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Folder, hub id, package:NAME, models:/NAME@ALIAS or a digest."),
    ],
    suite: Annotated[Suite, typer.Option(help="Benchmark.")],
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
        str | None, typer.Option(help="Digest or folder of the toxicity judge of toxigen_prompts.")
    ] = None,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Judge one model on one benchmark."""
    from alignflow.cli.judges import find_judge
    from alignflow.evaluation.config import EvaluationConfig, EvaluationJob, SuiteConfig
    from alignflow.evaluation.judges.config import JudgeTask, LocalJudge
    from alignflow.sources import fetch_file

    workspace = workspace.absolute()
    judges: dict[JudgeTask, LocalJudge] = {}
    folders: dict[JudgeTask, Path] = {}
    if judge is not None:
        found = find_judge(judge, workspace)
        judges["toxicity"] = LocalJudge(kind="local", source=found.digest)
        folders["toxicity"] = found.folder
    elif suite is Suite.TOXIGEN_PROMPTS:
        raise ConfigError("--judge is missing; alignflow judge train toxicity makes one.")
    file = fetch_file(data or _default_data(suite), workspace / "cache")
    named = _find_model(model, workspace)
    job = EvaluationJob(
        evaluation=EvaluationConfig(
            suites={
                suite.value: SuiteConfig(
                    suite=suite.value, data=str(file.path), limit=limit, judges=judges
                )
            },
            precision=precision.value,
            max_length=max_length,
            num_samples=0,
        ),
        model=named.folder,
        judges={suite.value: folders} if folders else {},
    )
    config = job.model_dump(mode="json")
    identity = [named.identity, file.sha256, config]
    folder = _run("evaluate", "alignflow.evaluation", config, identity, workspace)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    report = {
        "suite": suite.value,
        "model": model,
        "num_items": scores["num_items"][suite.value],
        "scores": {
            name.partition("/")[2]: value
            for name, value in scores["scores"].items()
            if name.startswith(f"{suite.value}/")
        },
        "intervals": {
            name.partition("/")[2]: interval
            for name, interval in scores["intervals"].items()
            if name.startswith(f"{suite.value}/")
        },
        "items": str(folder / "items" / f"{suite.value}.jsonl"),
    }
    for by_group in scores["groups"].values():  # no suite has more than one score with groups
        report["scores"]["by_group"] = {
            name: of["value"] for name, of in by_group.items() if of["value"] is not None
        }
    num_truncated = scores["num_truncated"][suite.value]
    if num_truncated:
        typer.echo(f"{num_truncated} sequences were cut at {max_length} tokens", err=True)
    if format is Format.JSON:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _print_scores(report, file.uri)


def _default_data(suite: Suite) -> str:
    folder = os.environ.get("ALIGNFLOW_DATA")
    path = Path(folder, _DATA_FILES[suite]) if folder else None
    if path is None or not path.is_file():
        where = f"there is no {path}" if path else "ALIGNFLOW_DATA is not set"
        raise ConfigError(f"--data is missing and {where}; name the file of {suite.value}.")
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
    source = Path(checkpoint)
    if source.is_dir() and source.parent.name == "checkpoints":
        folder = _export_checkpoint(source, workspace.absolute())
    else:
        folder = _find_model(checkpoint, workspace.absolute()).folder
    staged = to.with_name(f".{to.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(folder, staged, ignore=shutil.ignore_patterns("manifest.json"))
    for path in staged.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    staged.rename(to)
    print(to)


def _export_checkpoint(checkpoint: Path, workspace: Path) -> Path:
    """Convert a training checkpoint, in a job, because it takes the model on Megatron."""
    from alignflow.jobs.run_folder import RunFolder

    trained = RunFolder(checkpoint.absolute().parent.parent)
    config = {"run_folder": str(trained.path), "checkpoint": checkpoint.name}
    identity = {**config, "modified": checkpoint.stat().st_mtime_ns}
    return _run(
        "export",
        "alignflow.training.export",
        config,
        identity,
        workspace,
        num_processes=trained.read_spec().processes_per_node,
    )


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
    folder = _run("import", "alignflow.training.import_gguf", config, identity, workspace)
    return _NamedModel(folder, identity)


def _run(
    stage: str,
    module: str,
    config: dict[str, Any],
    identity: Any,
    workspace: Path,
    *,
    num_processes: int = 1,
) -> Path:
    """Run a module as a job and return its output; the same identity is not computed twice."""
    from rich.console import Console

    from alignflow.artifacts import code_version
    from alignflow.jobs.local import LocalLauncher
    from alignflow.jobs.run_folder import RunFolder
    from alignflow.jobs.slots import gpu_slots
    from alignflow.jobs.spec import JobSpec
    from alignflow.jobs.wait import cancel_on_exit, wait_for
    from alignflow.terminal import make_display

    determines = [identity, module, code_version(_REVISION)]
    digest = hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()
    folder = RunFolder(workspace / "jobs" / f"{stage}-{digest[:12]}")
    spec = JobSpec(
        name=folder.path.name,
        module=module,
        config=config,
        processes_per_node=num_processes,
        gpus_per_node=num_processes if gpu_slots() else 0,
        env={"HF_HUB_OFFLINE": "1"},
    )
    with make_display(False, Console(stderr=True)) as display:
        display.plan([stage])
        display.started(stage)
        job = LocalLauncher().submit(spec, folder)

        def follow(lines: list[dict[str, Any]]) -> None:
            for line in lines:
                display.progress(stage, line)

        try:
            with cancel_on_exit(job):
                wait_for(job, folder, on_metrics=follow)
        except BaseException:
            display.finished(stage, "failed")
            raise
        display.finished(stage, "done")
    return folder.output
