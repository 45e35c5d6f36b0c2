"""The jobs of a recipe's stages, as a cluster would be given them."""

from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe
from alignflow.flows.graph import stage_graph
from alignflow.tasks.rendering import render_job

_TRAINING = ("sft", "reward_model", "attribute_model", "dpo", "ppo", "steerlm", "steerlm2")


def render_stage(recipe: Recipe, stage: str) -> str:
    """Return the batch script, or the manifest, of a stage's job.

    Raises:
        ConfigError: The stage is none of the recipe's, or no job; or the recipe names no cluster.
    """
    stages = [name for name in stage_graph(recipe) if _is_job(name)]
    if stage not in stages:
        raise ConfigError(f"--stage {stage}: no such job; those are {', '.join(stages)}.")
    if stage == "token_audit":
        return render_job(recipe, stage, "alignflow.training.audit", num_processes=1, on_cpu=True)
    if stage == "annotated":
        return render_job(
            recipe, stage, "alignflow.training.annotate", num_processes=1, on_cpu=False
        )
    if stage == "duels":
        return render_job(
            recipe, stage, "alignflow.evaluation.answer_judge", num_processes=1, on_cpu=False
        )
    if stage.startswith("evaluate-"):
        return render_job(
            recipe,
            stage,
            "alignflow.evaluation",
            num_processes=recipe.evaluation.data_parallel_size,
            on_cpu=False,
        )
    config = getattr(recipe, _method(stage))
    return render_job(
        recipe,
        stage,
        "alignflow.training",
        num_processes=config.parallel.world_size,
        on_cpu=False,
    )


def _is_job(stage: str) -> bool:
    is_other = stage in ("token_audit", "annotated", "duels") or stage.startswith("evaluate-")
    return is_other or _method(stage) in _TRAINING


def _method(stage: str) -> str:
    """Return the recipe's section of a training stage, which may be a round or have a seed."""
    return stage.partition("-")[0]
