"""Data stages as tasks: benchmarks, and training sets that passed validation."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from alignflow.artifacts import Artifact, code_version, stage_key
from alignflow.data_validation.benchmarks import benchmark_texts
from alignflow.data_validation.card import Card
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.expectations import ExpectationResult
from alignflow.data_validation.hub import hub_commit, is_hub_set
from alignflow.data_validation.quarantine import QUARANTINE_NAME
from alignflow.data_validation.reasons import FLAGS, REASONS
from alignflow.errors import DataError
from alignflow.evaluation.config import SuiteConfig
from alignflow.evaluation.pair_sets import read_pair_set
from alignflow.evaluation.suites import load_suite
from alignflow.reporting.model import (
    DatasetSummary,
    DataSource,
    ExpectationOutcome,
    ReasonCount,
    RefusedRow,
)
from alignflow.reporting.text import format_number, humanise
from alignflow.sources import check_unchanged, expand, fetch_digest, fetch_file, file_sha256
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import StageRun
from alignflow.tasks.versions import LENGTHS, accept_version, link_data_docs

if TYPE_CHECKING:
    from alignflow.data_validation.ingest import Progress

# Raised by a commit that changes what a stage makes: `alignflow.artifacts.code_version`.
_BENCHMARK_REVISION = 1
_DATASET_REVISION = 2


@task(task_run_name="benchmark-{name}", **STAGE_TASK)
def fetch_benchmark(pipeline: Pipeline, name: str) -> Artifact:
    """Return the data file of a suite or a set of pairs as an artifact.

    Raises:
        DataError: The file isn't there, can't be reached, or isn't the suite's.
    """
    suite = pipeline.recipe.evaluation.benchmarks[name]
    kind = suite.suite if isinstance(suite, SuiteConfig) else "pairs"
    file = fetch_file(suite.data, pipeline.cache)
    stage = Stage(
        name=f"benchmark-{name}",
        kind="benchmark",
        config={"suite": kind, "sha256": file.sha256},
        revision=_BENCHMARK_REVISION,
    )

    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        copied = scratch / Path(file.uri).name
        shutil.copyfile(file.path, copied)
        check_unchanged(file.uri, file.sha256, file_sha256(copied))
        # What is wrong with it shows before anything is trained.
        if isinstance(suite, SuiteConfig):
            load_suite(suite.suite, copied, limit=suite.limit)
        else:
            read_pair_set(copied, suite.limit)
        source = {"uri": file.uri, "sha256": file.sha256, "bytes": file.size}
        return StageOutput(scratch, details={"sources": [source]})

    return run_stage(pipeline, stage, compute)


def only_file(folder: Path) -> Path:
    """Return the one data file of a benchmark artifact."""
    (file,) = (path for path in folder.iterdir() if path.name != "manifest.json")
    return file


@task(task_run_name="{name}", **STAGE_TASK)
def ingest_dataset(
    pipeline: Pipeline, name: str, kind: DataKind, benchmarks: Mapping[str, Artifact]
) -> Artifact:
    """Read a training set, refuse what is wrong with it, split and judge it.

    Args:
        pipeline: The run.
        name: `demonstrations`, `preferences`, `unpaired` or `attributes`.
        kind: What its rows are.
        benchmarks: Suites whose items must not occur in it, where the recipe says so.

    Raises:
        DataError: A source can't be used, too little of the set passes, or it moved too far from
            its last accepted version.
    """
    config: DatasetConfig = getattr(pipeline.recipe.data, name)
    against = benchmarks if pipeline.recipe.data.decontaminate else {}
    identities = source_identities(config, pipeline.cache, read_again=name in pipeline.forced)
    stage = Stage(
        name=name,
        kind="dataset",
        config={"kind": kind, **config.model_dump(mode="json"), "sources": identities},
        revision=_DATASET_REVISION,
        parents={f"benchmark-{suite}": artifact for suite, artifact in against.items()},
    )

    def tell(progress: "Progress") -> None:
        pipeline.raise_if_stopped(name)
        pipeline.display.note(
            name, f"{progress.accepted} rows accepted, {progress.refused} refused"
        )

    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        from alignflow.data_validation.ingest import ingest

        checks = pipeline.row_checks
        # Not the scratch folder: after a refusal the quarantine file is what a person needs.
        folder = pipeline.workspace / "ingest" / f"{name}-{stage.key[:12]}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            card = ingest(
                config.replaced(sources=pinned_sources(config, identities)),
                kind,
                folder,
                benchmark_texts=[
                    text
                    for artifact in against.values()
                    for text in benchmark_texts(
                        fetch_file(str(only_file(pipeline.local(artifact))), pipeline.cache)
                    )
                ],
                on_progress=tell,
                cache_dir=pipeline.cache,
                executor=checks.executor(partial(pipeline.raise_if_stopped, name))
                if checks
                else None,
            )
        except DataError as error:
            if error.reason != "set_refused":
                raise
            kept = _keep_quarantine(pipeline, stage, folder, scratch)
            text = f"{str(error).removesuffix('.')}, and in {kept}."
            raise DataError(text, reason=error.reason) from None
        # A set that is full before the last source ends without a look at the others.
        for identity, source in zip(identities, card.sources, strict=False):
            if "sha256" in identity:
                check_unchanged(source.uri, identity["sha256"], source.sha256)
        return StageOutput(
            folder,
            metrics={
                f"data/{field}": float(count) for field, count in card.counts.model_dump().items()
            },
            details={
                "name": name,
                "num_train": card.counts.train,
                "sources": [source.model_dump() for source in card.sources],
                LENGTHS: card.lengths,
            },
        )

    artifact = run_stage(pipeline, stage, compute)
    accept_version(pipeline, name, artifact, config.expectations)
    link_data_docs(pipeline, name, artifact)
    return artifact


def _keep_quarantine(pipeline: Pipeline, stage: Stage, folder: Path, scratch: Path) -> str:
    """Publish the refused rows of a set that is refused as a whole; return where they lie.

    Whoever repairs them need not get at the disk of the machine that the run was on.
    """
    shutil.copyfile(folder / QUARANTINE_NAME, scratch / QUARANTINE_NAME)
    code = code_version(_DATASET_REVISION)
    artifact = pipeline.store.publish(
        scratch,
        kind="quarantine",
        key=stage_key("quarantine", stage.config, stage.parent_refs, code),
        code_version=code,
        parents=stage.parent_refs,
        config=stage.config,
    )
    return f"{artifact.uri}/{QUARANTINE_NAME}"


def source_identities(
    config: DatasetConfig, cache: Path, *, read_again: bool
) -> list[dict[str, Any]]:
    """Return what names the content of each source, in their order."""
    identities: list[dict[str, Any]] = []
    for source in config.sources:
        if is_hub_set(source):
            identities.append({"uri": source, "commit": hub_commit(source)})
        else:
            for uri in expand(source):
                sha256 = fetch_digest(uri, cache, read_again=read_again)
                identities.append({"name": Path(uri).name, "sha256": sha256})
    return identities


def pinned_sources(config: DatasetConfig, identities: list[dict[str, Any]]) -> list[str]:
    """Return the sources, sets of the hub at the commit that their identity names."""
    commits = {
        identity["uri"]: identity["commit"] for identity in identities if "commit" in identity
    }
    return [
        f"{_hub_name(source)}@{commits[source]}" if source in commits else source
        for source in config.sources
    ]


def _hub_name(source: str) -> str:
    """Return `hf://datasets/OWNER/NAME` for any way to name a set of the hub."""
    name = source.removeprefix("hf://datasets/").partition("@")[0].rstrip("/")
    return f"hf://datasets/{name}"


def summarise_dataset(pipeline: Pipeline, name: str, artifact: Artifact) -> DatasetSummary:
    """Return what the report shows of a training set."""
    folder = pipeline.local(artifact)
    card = Card.load(folder)
    return DatasetSummary(
        name=name,
        kind=card.kind,
        num_read=card.counts.read,
        num_accepted=card.counts.accepted,
        num_refused=card.counts.refused,
        num_skipped=card.counts.skipped,
        num_train=card.counts.train,
        num_held_out=card.counts.held_out,
        reasons=_counted(card.reasons, REASONS),
        flags=_counted(card.flags, FLAGS),
        examples=[
            RefusedRow(
                file=row.file, line=row.line, reason=row.reason, message=row.message, text=row.row
            )
            for row in card.examples
        ],
        expectations=[
            ExpectationOutcome(
                name=humanise(item.name),
                severity=item.severity,
                passed=item.success,
                observed="" if item.observed is None else format_number(item.observed),
            )
            for item in [*card.expectations, *_drift(pipeline, name)]
        ],
        ratings=card.ratings,
        scripts=card.scripts,
        licence=card.config.licence,
        digest=artifact.digest,
        parents={role: parent.digest for role, parent in artifact.manifest.parents.items()},
        sources=[
            DataSource(uri=source.uri, sha256=source.sha256, num_bytes=source.bytes)
            for source in card.sources
        ],
        data_docs=(folder / "data_docs" / "index.html").as_uri(),
    )


def _drift(pipeline: Pipeline, name: str) -> list[ExpectationResult]:
    return [pipeline.drifts[name]] if name in pipeline.drifts else []


def _counted(counts: Mapping[str, int], meanings: Mapping[str, str]) -> list[ReasonCount]:
    return [
        ReasonCount(code=code, count=count, meaning=meanings.get(code, ""))
        for code, count in counts.items()
    ]
