"""The jobs of a recipe's stages, as a cluster would be given them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignflow.config import load_config
from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe
from alignflow.flows.rendering import render_stage

RECIPES = Path(__file__).parents[3] / "deployments/recipes"
KUBERNETES: dict[str, Any] = {
    "launcher": "kubernetes",
    "device": "cuda",
    "kubernetes": {
        "image": "registry.example/alignflow:1",
        "processes_per_node": 8,
        "volumes": [{"claim": "alignflow", "mount_path": "/mnt/alignflow"}],
    },
}
SLURM: dict[str, Any] = {"launcher": "slurm", "device": "cuda", "slurm": {"processes_per_node": 8}}


def recipe(name: str = "demo", *, cluster: dict[str, Any], **changes: Any) -> Recipe:
    shipped = load_config(Recipe, RECIPES / f"{name}.yaml")
    return shipped.replaced(workspace="/mnt/alignflow/runs", cluster=cluster, **changes)


def test_manifest_of_a_stage_is_that_of_its_job() -> None:
    sft = {"parallel": {"data_parallel_size": 16}, "global_batch_size": 16}
    objects = list(yaml.safe_load_all(render_stage(recipe(cluster=KUBERNETES, sft=sft), "sft")))
    assert [each["kind"] for each in objects] == ["Job", "Service"]
    assert objects[0]["spec"]["completions"] == 2  # 16 processes, 8 a node
    (main,) = objects[0]["spec"]["template"]["spec"]["containers"]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert main["command"][-2] == "/mnt/alignflow/runs/jobs/sft-000000000000"


def test_audit_of_tokens_needs_no_gpu() -> None:
    (job,) = yaml.safe_load_all(render_stage(recipe(cluster=KUBERNETES), "token_audit"))
    (main,) = job["spec"]["template"]["spec"]["containers"]
    assert "limits" not in main["resources"]


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("demo", "reward_model"),
        ("demo", "evaluate-aligned"),
        ("demo-steerlm", "annotated"),
        ("demo-methods", "evaluate-base"),
    ],
)
def test_every_kind_of_job_has_a_manifest(name: str, stage: str) -> None:
    (job,) = yaml.safe_load_all(render_stage(recipe(name, cluster=KUBERNETES), stage))
    assert job["metadata"]["name"].startswith(stage.replace("_", "-"))


def test_duels_have_a_manifest() -> None:
    judged = recipe(cluster=KUBERNETES)
    judge = {"model": {"source": "org/judge"}}
    judged = judged.replaced(evaluation=judged.evaluation.replaced(answer_judge=judge))
    (job,) = yaml.safe_load_all(render_stage(judged, "duels"))
    (main,) = job["spec"]["template"]["spec"]["containers"]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_stage_of_a_trial_has_a_manifest() -> None:
    methods = recipe("demo-methods", cluster=KUBERNETES)
    assert methods.compare is not None
    trial = f"{methods.compare.methods[0]}-seed-{methods.compare.seeds[0]}"
    assert trial in render_stage(methods, trial)


def test_batch_script_of_a_stage_is_that_of_its_job() -> None:
    assert render_stage(recipe(cluster=SLURM), "dpo").startswith(
        "#!/bin/sh\n#SBATCH --job-name=dpo-"
    )


def test_what_is_no_job_has_no_manifest() -> None:
    with pytest.raises(ConfigError, match="--stage gate: no such job; those are token_audit, sft"):
        render_stage(recipe(cluster=KUBERNETES), "gate")
    with pytest.raises(ConfigError, match="run on this machine"):
        render_stage(recipe(cluster={"launcher": "local"}), "sft")
