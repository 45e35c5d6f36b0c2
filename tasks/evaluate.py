"""Evaluation and gate as tasks: one job a model, then scores to a verdict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefect import task

from alignflow.artifacts import Artifact, ArtifactStore
from alignflow.errors import AlignflowError, ConfigError
from alignflow.evaluation.config import EvaluationJob, GateConfig
from alignflow.evaluation.gate import Measures, Verdict, judge
from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.judges.files import JUDGE_KIND
from alignflow.evaluation.measures import read_measures
from alignflow.evaluation.win_rate import JUDGED_WIN_RATES, duels, judged_duels, win_rates
from alignflow.fingerprints import check_same
from alignflow.tasks.data import only_file
from alignflow.tasks.jobs import run_as_job
from alignflow.tasks.judges import JudgeName, asked_of_judges, judge_stage, suite_of_stage
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import RegisteredVersion, StageRun
from alignflow.tasks.train import fingerprints_of

# Raised by a commit that changes what a stage makes: `alignflow.artifacts.code_version`.
_EVALUATION_REVISION = 7
_GATE_REVISION = 3


@task(task_run_name="evaluate-{name}", **STAGE_TASK)
def evaluate_model(
    pipeline: Pipeline,
    name: str,
    model: Artifact,
    *,
    parent: Artifact | None,
    reward_model: Artifact,
    attribute_model: Artifact | None = None,
    preferences: Artifact,
    benchmarks: Mapping[str, Artifact],
    judges: Mapping[JudgeName, Artifact],
) -> Artifact:
    """Judge one model on every suite of the recipe.

    Raises:
        ConfigError: Another model, such as the parent, has another tokenizer or chat template.
        JobError: The job failed.
    """
    config = pipeline.recipe.evaluation
    parents = {
        "model": model,
        **({"parent": parent} if parent is not None else {}),
        "reward_model": reward_model,
        **({"attribute_model": attribute_model} if attribute_model is not None else {}),
        "preferences": preferences,
        **{f"benchmark-{suite}": artifact for suite, artifact in benchmarks.items()},
        **{judge_stage(name): artifact for name, artifact in judges.items()},
    }
    # Where a benchmark's file came from is no part of the result; its content is, as a parent. Nor
    # is how many processes share the work, nor who compares the answers later.
    resolved = config.model_dump(
        mode="json",
        exclude={
            "suites": {"__all__": {"data", "judges"}},
            "pair_sets": {"__all__": {"data"}},
            "data_parallel_size": True,
            "answer_judge": True,
        },
    )
    resolved["judges"] = asked_of_judges(config)
    stage = Stage(
        name=f"evaluate-{name}",
        kind="evaluation",
        config=resolved,
        revision=_EVALUATION_REVISION,
        parents=parents,
    )

    def job() -> EvaluationJob:
        for other in (parent, reward_model, attribute_model):
            if other is not None:
                check_same(model.kind, fingerprints_of(model), other.kind, fingerprints_of(other))
        files = {name: only_file(pipeline.local(of)) for name, of in benchmarks.items()}
        local = {
            place: {
                name: settings.replaced(data=str(files[name]))
                for name, settings in getattr(config, place).items()
            }
            for place in ("suites", "pair_sets")
        }
        return EvaluationJob(
            evaluation=config.replaced(**local),
            model=pipeline.local(model),
            parent=pipeline.local(parent) if parent is not None else None,
            reward_model=pipeline.local(reward_model),
            attribute_model=(
                pipeline.local(attribute_model) if attribute_model is not None else None
            ),
            judges=_folders(pipeline, judges),
            preferences=pipeline.local(preferences),
        )

    return run_as_job(
        pipeline, stage, "alignflow.evaluation", job, num_processes=config.data_parallel_size
    )


def _folders(
    pipeline: Pipeline, judges: Mapping[JudgeName, Artifact]
) -> dict[str, dict[JudgeTask, Path]]:
    folders: dict[str, dict[JudgeTask, Path]] = {}
    for (suite, task_name), artifact in judges.items():
        folders.setdefault(suite, {})[task_name] = pipeline.local(artifact)
    return folders


@task(task_run_name="gate", **STAGE_TASK)
def judge_model(
    pipeline: Pipeline,
    evaluations: Mapping[str, Artifact],
    champion: RegisteredVersion | None,
    compared: Artifact | None = None,
) -> tuple[Verdict, Artifact]:
    """Turn the scores of the models, and the champion's, into a verdict.

    Args:
        pipeline: The run.
        evaluations: Evaluation artifacts of `base`, `sft` and `aligned`.
        champion: The version that serves now, if there is one.
        compared: What the judge of answers said, where the recipe has one.
    """
    parents = {**evaluations, **({"duels": compared} if compared is not None else {})}
    config = pipeline.recipe.gate
    determines = config.model_dump(mode="json")
    # A champion whose scores can't be had compares with nothing: rules about it fail.
    of_champion: Measures | None = None
    if champion is not None and any(rule.asks_for_champion for rule in config.rules.values()):
        of_champion = {}
        try:
            parents["champion"], folder = champion_evaluation(
                champion, pipeline.cache, pipeline.store.url
            )
            of_champion = comparable_measures(
                folder, parents["champion"], beside=evaluations["aligned"]
            )
        except AlignflowError as error:
            run_logger().warning("The champion can't be compared with: %s", error)
            determines["unread_champion"] = champion.uri
    stage = Stage(
        name="gate",
        kind="verdict",
        config=determines,
        revision=_GATE_REVISION,
        parents=parents,
    )

    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        folders = {role: pipeline.local(artifact) for role, artifact in evaluations.items()}
        answers = (
            JudgedAnswers.read(compared, pipeline.local(compared), champion)
            if compared is not None
            else None
        )
        verdict = judge_evaluations(config, folders, of_champion, answers)
        (scratch / "verdict.json").write_text(verdict.to_json())
        return StageOutput(scratch, metrics={"gate/passed": float(verdict.passed)})

    artifact = run_stage(pipeline, stage, compute)
    text = (pipeline.local(artifact) / "verdict.json").read_text()
    return Verdict.from_json(text), artifact


@dataclass(frozen=True)
class JudgedAnswers:
    """What the judge of answers said of the models of a run, and how good it is."""

    measures: Measures
    weak_judges: Mapping[str, str]
    """Scores that can't gate for its weakness, and why in one sentence."""
    num_left_out: int = 0
    """Comparisons that it could not be asked about."""

    @classmethod
    def read(cls, duels: Artifact, folder: Path, champion: RegisteredVersion | None) -> Self:
        """Read what its job made, less a duel with another champion than this one.

        Args:
            duels: What the job made.
            folder: Its files.
            champion: The version that serves now, if there is one.
        """
        measures = dict(measures_of(folder))
        rival = duels.manifest.parents.get("champion")
        digest = champion.tags.get("alignflow.evaluation") if champion else None
        if rival is None or rival.digest != digest:
            measures.pop("judged_win_rate/champion", None)
        scores = read_scores(folder)
        return cls(measures, scores["weak_judges"], sum(scores["num_left_out"].values()))


def judge_evaluations(
    config: GateConfig,
    folders: Mapping[str, Path],
    of_champion: Measures | None,
    answers: JudgedAnswers | None = None,
) -> Verdict:
    """Return the gate's verdict on evaluation artifacts.

    Args:
        config: The rules.
        folders: Of `base`, `sft` and `aligned`.
        of_champion: None without a champion, empty where its measures can't be had.
        answers: What a judge of answers said of them.
    """
    models = {role: measures_of(folder) for role, folder in folders.items()}
    of_aligned = read_scores(folders["aligned"])
    rivals = {**models, "champion": of_champion or {}}
    rates = win_rates(duels(rivals, tie_margin=config.tie_margin))
    # Evaluations that are older than the judges had none.
    weak_judges = dict(of_aligned.get("weak_judges", {}))
    if answers is not None:
        rates |= win_rates(judged_duels(rivals, answers.measures), JUDGED_WIN_RATES)
        weak_judges |= answers.weak_judges
        models["aligned"] = {**models["aligned"], **answers.measures}
    return judge(
        config,
        {**models, "champion": of_champion},
        win_rates=rates,
        limited=of_aligned["limited"],
        weak_judges=weak_judges,
    )


def champion_evaluation(
    champion: RegisteredVersion, cache: Path, store_url: str
) -> tuple[Artifact, Path]:
    """Return the champion's evaluation and its folder, from the store that its run used.

    Args:
        champion: The version.
        cache: Folder for what is fetched.
        store_url: The store of a version that names none.

    Raises:
        ConfigError: The version names no evaluation.
        StoreError: The store can't be read, or doesn't hold the evaluation any more.
        CorruptArtifactError: The evaluation is damaged.
    """
    digest = champion.tags.get("alignflow.evaluation")
    if digest is None:
        raise ConfigError(f"{champion.uri} has no tag alignflow.evaluation.")
    store = ArtifactStore(champion.tags.get("alignflow.store", store_url))
    evaluation = store.get(digest)
    return evaluation, store.fetch(evaluation, cache)


def comparable_measures(folder: Path, evaluation: Artifact, *, beside: Artifact) -> Measures:
    """Return the measures of an evaluation that can stand beside those of another.

    Rewards of one reward model say nothing beside those of another one, nor do ratings, nor what
    two judges say of a suite.

    Raises:
        ConfigError: An older version of alignflow made it, which kept no values of items.
    """
    parents, others = evaluation.manifest.parents, beside.manifest.parents
    differing = {
        role
        for role in parents.keys() & others.keys()
        if parents[role].digest != others[role].digest
    }
    suites = {suite_of_stage(role) for role in differing if parents[role].kind == JUDGE_KIND}
    return {
        name: measure
        for name, measure in measures_of(folder).items()
        if _judge_of(name) not in differing and name.partition("/")[0] not in suites
    }


def _judge_of(score: str) -> str | None:
    """Return the model in whose units a score of the evaluated model is, if it is in any."""
    suite, _, name = score.partition("/")
    if suite not in ("samples", "steerlm") or name == "mean_tokens":
        return None
    return "reward_model" if name == "mean_reward" else "attribute_model"


def read_scores(folder: Path) -> dict[str, Any]:
    """Return the content of an evaluation artifact's `scores.json`."""
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def measures_of(folder: Path) -> Measures:
    """Return the scores of an evaluation artifact, as what each item contributes to them.

    Raises:
        ConfigError: An older version of alignflow made it, which kept no values of items.
    """
    path = folder / "measures.json"
    if not path.exists():
        raise ConfigError(f"{folder} keeps no values of its items; evaluate the model anew.")
    return read_measures(path)
