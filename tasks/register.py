"""Registration of an accepted model: one version a model, whatever often it is run."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

from prefect import task

from alignflow.artifacts import Artifact
from alignflow.evaluation.gate import Verdict
from alignflow.tasks.decisions import CANDIDATE, CHAMPION
from alignflow.tasks.evaluate import read_scores
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import RegisteredVersion


def find_champion(pipeline: Pipeline) -> RegisteredVersion | None:
    """Return the version that serves now, if there is one."""
    return pipeline.tracker.registry.get(pipeline.recipe.registry.model_name, CHAMPION)


@task(task_run_name="register", **STAGE_TASK)
def register_model(
    pipeline: Pipeline,
    model: Artifact,
    *,
    parent: Artifact,
    datasets: Mapping[str, Artifact],
    evaluation: Artifact,
    verdict: Verdict,
    verdict_artifact: Artifact,
) -> RegisteredVersion:
    """Make the model a version with alias `candidate`, or return the version it already is.

    A version that is already there becomes the candidate only where there is none, and where
    nobody has decided on it.

    Args:
        pipeline: The run.
        model: The aligned model; its files are the Hugging Face export.
        parent: The model it was aligned from.
        datasets: Dataset artifacts by role.
        evaluation: Its scores.
        verdict: A verdict that passed.
        verdict_artifact: The verdict's place in the store.

    Raises:
        ValueError: The verdict refuses; a refused model is never registered.
    """
    if not verdict.passed:
        raise ValueError("a refused model is not registered")
    pipeline.display.started("register")
    name, registry = pipeline.recipe.registry.model_name, pipeline.tracker.registry
    origin = {
        "alignflow.key": model.key,
        "alignflow.digest": model.digest,
        "alignflow.export": model.uri,
        "alignflow.parent": parent.digest,
        "alignflow.store": pipeline.store.url,
        **{f"alignflow.dataset.{role}": a.digest for role, a in datasets.items()},
    }
    judgement = {
        "alignflow.evaluation": evaluation.digest,
        "alignflow.verdict": "accepted",
        "alignflow.verdict_digest": verdict_artifact.digest,
        "alignflow.verdict_key": verdict_artifact.key,
    }
    # Two runs of one model at once must not make two versions of it.
    lock = hashlib.sha256(f"register {name} {model.digest}".encode()).hexdigest()
    with pipeline.store.lock(lock):
        version = registry.version_of(name, model.digest)
        is_new = version is None
        if version is None:
            version = _create_version(pipeline, name, model, evaluation, {**origin, **judgement})
        elif version.tags.get("alignflow.store") == pipeline.store.url:
            # Where it came from stays as it was told first; the judgement lies in that store too.
            registry.set_tags(version, judgement)
        is_undecided = "alignflow.decision" not in version.tags
        if is_new or (is_undecided and registry.get(name, CANDIDATE) is None):
            version = registry.set_alias(version, CANDIDATE)
    pipeline.display.finished(
        "register", "done" if is_new else "reused", f"{version.name} version {version.version}"
    )
    return version


def _create_version(
    pipeline: Pipeline, name: str, model: Artifact, evaluation: Artifact, tags: Mapping[str, str]
) -> RegisteredVersion:
    run = pipeline.tracker.start_stage("register", {"alignflow.key": model.key})
    try:
        model_id = pipeline.tracker.log_model(run, name, model)
        scores = read_scores(pipeline.local(evaluation))["scores"]
        run.log_metrics(scores, time_ms=int(datetime.now(UTC).timestamp() * 1000))
        version = pipeline.tracker.register(name, model_id, run=run, tags=tags)
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")
    return version
