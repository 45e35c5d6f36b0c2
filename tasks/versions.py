"""Versions of a training set: each is compared with the last one that was accepted."""

from prefect.artifacts import create_link_artifact

from alignflow.artifacts import Artifact
from alignflow.data_validation.config import SetExpectations
from alignflow.data_validation.drift import population_stability
from alignflow.data_validation.expectations import ExpectationResult
from alignflow.errors import DataError
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline

LENGTHS = "lengths"
"""Name in a dataset's details of the histograms that versions are compared by."""


def accept_version(
    pipeline: Pipeline, name: str, artifact: Artifact, bounds: SetExpectations
) -> None:
    """Compare a set with its last accepted version, and record it as that unless it is refused.

    The comparison is no part of the set: the same files may follow on different versions.

    Raises:
        DataError: The lengths moved too far, and the recipe calls that critical.
        StoreError: The store can't be read or written.
    """
    set_name = f"{pipeline.recipe.name}-{name}"
    last = pipeline.store.latest(set_name)
    if last is not None and last.digest == artifact.digest:
        return
    if last is not None:
        drift = lengths_drift(last, artifact)
        severity = bounds.severities.get("lengths_stable", "warning")
        result = ExpectationResult(
            name="lengths_stable",
            severity=severity,
            success=drift <= bounds.max_length_drift,
            observed=drift,
        )
        pipeline.drifts[name] = result
        if not result.success:
            sentence = (
                f"{name}: the lengths moved by {drift:.3g} since the version {last.digest[:12]}, "
                f"more than max_length_drift ({bounds.max_length_drift:g})"
            )
            if severity == "critical":
                raise DataError(f"{sentence}; look at what is new, or raise the bound.")
            run_logger().warning("%s.", sentence)
    pipeline.store.record_latest(set_name, artifact)


def lengths_drift(before: Artifact, after: Artifact) -> float:
    """Return the larger population stability index, of the prompts' or the responses' lengths."""
    one, other = (artifact.manifest.details.get(LENGTHS, {}) for artifact in (before, after))
    return max(
        (population_stability(one[column], other[column]) for column in other if column in one),
        default=0.0,
    )


def link_data_docs(pipeline: Pipeline, name: str, artifact: Artifact) -> None:
    """Link the Data Docs page of a set from Prefect's page of the run."""
    page = pipeline.local(artifact) / "data_docs" / "index.html"
    create_link_artifact(
        key=f"data-docs-{name.replace('_', '-')}",
        link=page.as_uri(),
        link_text=f"Data Docs of {name}",
        description=f"Great Expectations' page of the training set {name}",
    )
