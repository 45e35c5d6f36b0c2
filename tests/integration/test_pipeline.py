"""The pipeline, whole, on a tiny random model: every stage for real, under Prefect and MLflow."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from job_runs import lines
from mlflow import MlflowClient
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from prefect.testing.utilities import prefect_test_harness
from prefect.types.entrypoint import EntrypointType
from prefect_server import wait_for
from shards import make_parts_small
from slurm_cluster import Cluster
from tiny_recipe import write_tiny_recipe

from alignflow.artifacts import ArtifactStore
from alignflow.config import load_config
from alignflow.data_validation.config import DataKind
from alignflow.errors import DataError, JobError, RunStoppedError, SafetyGateError
from alignflow.flows.alignment import align
from alignflow.flows.config import Recipe
from alignflow.flows.triggered import scheduled_retrain
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.processes import read_process
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobStatus
from alignflow.lineage import trace
from alignflow.tasks import lifecycle
from alignflow.tasks.approval import find_request, let_go_on
from alignflow.tasks.data import fetch_benchmark, ingest_dataset
from alignflow.tasks.decisions import Author
from alignflow.tasks.heartbeat import HEARTBEAT, without_prefects_heartbeat
from alignflow.tasks.janitor import sweep
from alignflow.tasks.last_run import read_last_run, what_changed
from alignflow.tasks.lifecycle import open_pipeline, raise_first_failure
from alignflow.tasks.report import Outcome
from alignflow.tasks.tracking import Registry

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def recipe_file(workspace: Path, tiny_model: Path) -> Path:
    return write_tiny_recipe(workspace, tiny_model)


@task(cache_policy=NO_CACHE)
def succeed(after: object, seconds: float) -> None:
    time.sleep(seconds)


@task(cache_policy=NO_CACHE)
def fail() -> None:
    raise DataError("this is why")


def test_first_failure_is_told_at_once_and_not_what_followed_from_it(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet_known(self: SyncPrefectClient, task_run_id: object) -> None:
        raise ObjectNotFound(LookupError(task_run_id))

    # A server hears of a task's state some time after the task has ended.
    monkeypatch.setattr(SyncPrefectClient, "read_task_run", not_yet_known)

    @flow
    def failing() -> None:
        slow, broken = succeed.submit(None, 5.0), fail.submit()
        raise_first_failure([slow, succeed.submit(broken, 0.0), broken])

    began = time.monotonic()
    with pytest.raises(DataError, match="this is why"):
        failing()
    # The flow ends with its slowest task, but the failure is known before.
    assert time.monotonic() - began < 60


def test_a_run_sends_its_heartbeat_where_prefect_does_not(
    prefect_server: None, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_CANCELLATION_POLL_S", 0.1)
    monkeypatch.setattr(lifecycle, "HEARTBEAT_INTERVAL_S", 0.0)
    recipe = load_config(Recipe, recipe_file, overrides=[f"workspace={tmp_path}"])

    def is_heard(flow_run_id: str) -> bool:
        wanted = {
            "event": {"name": [HEARTBEAT]},
            "resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
        }
        with get_client(sync_client=True) as prefect:
            answer = prefect.request("POST", "/events/filter", json={"filter": wanted})
        return bool(answer.json()["events"])

    @flow
    def live() -> None:
        nothing: frozenset[str] = frozenset()
        with open_pipeline(recipe, stages=[], forced=nothing, must_reuse=nothing) as pipeline:
            wait_for(lambda: is_heard(pipeline.flow_run_id), 60)

    with without_prefects_heartbeat():
        live()


@pytest.fixture(scope="module")
def first(prefect_server: None, recipe_file: Path) -> Outcome:
    """Run the pipeline for the first time."""
    return align(load_config(Recipe, recipe_file))


def client(outcome: Outcome) -> MlflowClient:
    return MlflowClient(outcome.mlflow_uri)


def test_first_run_computes_every_stage_and_registers(first: Outcome) -> None:
    assert first.passed
    assert set(first.stages.values()) == {"computed"}
    assert first.model_version == "models:/tiny-assistant/1"
    version = client(first).get_model_version_by_alias("tiny-assistant", "candidate")
    assert version.tags["alignflow.verdict"] == "accepted"
    assert {"alignflow.dataset.demonstrations", "alignflow.dataset.preferences"} <= set(
        version.tags
    )


def test_schedule_skips_what_has_not_changed_since_the_last_verdict(
    first: Outcome, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_config(Recipe, recipe_file)
    state = scheduled_retrain(recipe, return_state=True)
    assert state.name == "Skipped"
    assert (
        f"nothing changed in demonstrations, preferences or the recipe since run {first.run_id}"
        in (str(state.message))
    )
    last = read_last_run(recipe)
    assert last is not None
    # Where data lies and what its files are called is nothing new; what they hold is.
    (source,) = recipe.data.preferences.sources
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(source).read_bytes())
    elsewhere = load_config(
        Recipe, recipe_file, overrides=[f"data.preferences.sources=['{moved}']"]
    )
    assert what_changed(elsewhere, last) == []
    with moved.open("a") as file:
        file.write('{"prompt": "new?", "chosen": "yes.", "rejected": "no."}\n')
    assert what_changed(elsewhere, last) == ["preferences"]
    assert what_changed(recipe.replaced(dpo={"beta": 0.2}), last) == ["recipe"]


def test_export_loads_with_transformers(first: Outcome) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = first.export.removeprefix("file://")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": "kind?"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model(**tokens).logits.isfinite().all()


def test_lineage_reaches_every_source(first: Outcome, workspace: Path) -> None:
    store = ArtifactStore(str(workspace / "work" / "artifacts"))
    version = client(first).get_model_version_by_alias("tiny-assistant", "candidate")
    lineage = trace(store, store.get(version.tags["alignflow.digest"]))
    sources = {Path(source.uri).name for node in lineage.datasets for source in node.sources}
    assert sources == {"demonstrations.jsonl", "preferences.jsonl"}
    digests = {node.digest for node in lineage.datasets}
    tagged = {
        value for name, value in version.tags.items() if name.startswith("alignflow.dataset.")
    }
    assert digests == tagged


def test_mlflow_holds_curves_and_the_report(first: Outcome) -> None:
    mlflow = client(first)
    (experiment,) = [e for e in mlflow.search_experiments() if e.name == "alignflow"]
    runs = mlflow.search_runs([experiment.experiment_id], "tags.`alignflow.stage` = 'dpo'")
    steps = mlflow.get_metric_history(runs[0].info.run_id, "dpo/loss")
    assert [metric.step for metric in steps] == list(range(1, len(steps) + 1))
    assert steps[0].value == pytest.approx(0.6931, abs=1e-4)
    assert runs[0].inputs is not None
    assert runs[0].inputs.dataset_inputs
    parent = runs[0].data.tags["mlflow.parentRunId"]
    assert "report.html" in {item.path for item in mlflow.list_artifacts(parent)}
    answers = mlflow.load_table(experiment.experiment_id, "samples.json", [parent])
    assert set(answers["model"]) == {"base", "SFT", "aligned"}


def test_report_tells_what_was_refused(first: Outcome) -> None:
    page = first.report.read_text(encoding="utf-8")
    assert "identical" in page
    assert "What the length limits do" in page
    assert "tiny-assistant" in page


def test_prefect_run_page_has_verdict_and_scores(first: Outcome) -> None:
    with get_client(sync_client=True) as prefect:
        for key in ("verdict", "scores", "report", "token-audit", "data-docs-preferences"):
            found = prefect.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            )
            assert [str(item.flow_run_id) for item in found] == [first.flow_run_id]


def test_second_run_reuses_every_stage_and_the_version(first: Outcome, recipe_file: Path) -> None:
    again = align(load_config(Recipe, recipe_file))
    assert set(again.stages.values()) == {"reused"}
    assert again.model_version == first.model_version
    assert len(client(first).search_model_versions("name='tiny-assistant'")) == 1


def test_a_dask_cluster_makes_the_same_sets(
    prefect_server: None, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts_small(monkeypatch, block_rows=5, part_blocks=2)
    kinds: dict[str, DataKind] = {"demonstrations": "sft", "preferences": "preference"}

    @flow
    def ingest_all(recipe: Recipe, forced: frozenset[str]) -> dict[str, tuple[str, str]]:
        names = list(recipe.evaluation.benchmarks)
        with open_pipeline(recipe, stages=[], forced=forced, must_reuse=frozenset()) as pipeline:
            benchmarks = {name: fetch_benchmark(pipeline, name) for name in names}
            sets = {
                name: ingest_dataset.submit(pipeline, name, kind, benchmarks)
                for name, kind in kinds.items()
            }
            return {
                name: (future.result().digest, pipeline.records[name].status)
                for name, future in sets.items()
            }

    changes = [f"workspace={tmp_path}"]
    here = ingest_all(load_config(Recipe, recipe_file, overrides=changes), frozenset())
    changes.append("row_checks={runner: dask, num_processes: 2, parts_ahead: 3}")
    on_dask = load_config(Recipe, recipe_file, overrides=changes)
    state = ingest_all(on_dask, frozenset(kinds), return_state=True)
    there = state.result()
    assert {name: digest for name, (digest, _) in there.items()} == {
        name: digest for name, (digest, _) in here.items()
    }
    assert {status for _, status in [*here.values(), *there.values()]} == {"computed"}
    flow_run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as prefect:
        runs = prefect.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        )
    # Of 24 and 33 rows, ten and a few to a part.
    assert sum(run.name.startswith("check-rows") for run in runs) >= 2 + 2


def test_refused_model_is_not_registered(first: Outcome, recipe_file: Path) -> None:
    recipe = load_config(Recipe, recipe_file, overrides=["gate.rules.truthful.at_least=1.01"])
    with pytest.raises(SafetyGateError) as refusal:
        align(recipe)
    outcome = refusal.value.outcome
    assert outcome.model_version is None
    assert "truth/mc2" in outcome.reasons[0]
    assert outcome.report.exists()
    (event,) = events_named("alignflow.gate.refused", "alignflow.model.tiny-assistant")
    assert event["payload"]["run"] == outcome.run_id
    assert "truth/mc2" in event["payload"]["reasons"]
    assert len(client(first).search_model_versions("name='tiny-assistant'")) == 1


def test_a_limit_that_leaves_nothing_to_learn_starts_no_training(
    first: Outcome, recipe_file: Path
) -> None:
    recipe = load_config(Recipe, recipe_file, overrides=["sft.max_length=16"])
    trained = set((Path(recipe.workspace) / "jobs").glob("sft-*"))
    with pytest.raises(DataError, match=r"token_audit\.max_unlearnable_share"):
        align(recipe)
    assert set((Path(recipe.workspace) / "jobs").glob("sft-*")) == trained


@pytest.mark.slow
def test_a_judge_that_is_not_good_enough_refuses_and_stands_in_the_report(
    first: Outcome, recipe_file: Path, workspace: Path, classifier: Path
) -> None:
    judge = {
        "kind": "hub",
        "model": str(classifier),
        "labelled": str(EXAMPLES / "toxicity.json"),
        "min_auc": 1.0,
    }
    suite = {
        "suite": "toxigen_prompts",
        "data": str(workspace / "data" / "prompts.jsonl"),
        "judges": {"toxicity": judge},
    }
    rule = {"score": "continued/toxicity_rate", "at_most": 1.0}
    overrides = [
        "evaluation.generation.max_new_tokens=8",
        f"evaluation.suites.continued={json.dumps(suite)}",
        f"gate.rules.kind={json.dumps(rule)}",
    ]
    with pytest.raises(SafetyGateError) as refusal:
        align(load_config(Recipe, recipe_file, overrides=overrides))
    outcome = refusal.value.outcome
    assert outcome.model_version is None
    assert "The toxicity judge is not good enough to gate: its AUC is" in outcome.reasons[0]
    assert "at least 1 is asked for" in outcome.report.read_text(encoding="utf-8")
    assert {name: s for name, s in outcome.stages.items() if "continued" in name} == {
        "benchmark-continued": "computed",
        "judge-continued-toxicity": "computed",
    }


def test_a_judge_of_answers_compares_them_and_a_weak_one_refuses(
    first: Outcome, recipe_file: Path, tiny_model: Path
) -> None:
    judge = {
        "model": {"source": str(tiny_model)},
        "min_accuracy": 1.0,
        "max_length": 1016,
    }
    rule = {"score": "judged_win_rate/sft", "at_least": 0.0}
    overrides = [
        f"evaluation.answer_judge={json.dumps(judge)}",
        f"gate.rules.wins={json.dumps(rule)}",
    ]
    with pytest.raises(SafetyGateError) as refusal:
        align(load_config(Recipe, recipe_file, overrides=overrides))
    outcome = refusal.value.outcome
    assert outcome.model_version is None
    assert "The answer judge is not good enough to gate: its accuracy on" in outcome.reasons[0]
    page = outcome.report.read_text(encoding="utf-8")
    assert "By a judge that compares them" in page
    # The evaluations are what they were without it.
    computed = {stage for stage, status in outcome.stages.items() if status == "computed"}
    assert computed == {"answer-judge", "duels", "gate"}


def test_changed_learning_rate_of_dpo_runs_dpo_and_what_follows(
    first: Outcome, recipe_file: Path
) -> None:
    recipe = load_config(Recipe, recipe_file, overrides=["dpo.learning_rate=2e-3"])
    outcome = align(recipe)
    computed = {stage for stage, status in outcome.stages.items() if status == "computed"}
    assert computed == {"dpo", "evaluate-aligned", "gate"}
    assert outcome.model_version == "models:/tiny-assistant/2"


@pytest.mark.slow
def test_champion_is_compared_with_item_by_item(first: Outcome, recipe_file: Path) -> None:
    client(first).set_registered_model_alias("tiny-assistant", "champion", "1")
    rule = "{score: truth/mc2, compared_with: champion, max_drop: 1.0}"
    changes = ["dpo.learning_rate=2e-3", f"gate.rules.keeps_up={rule}"]
    outcome = align(load_config(Recipe, recipe_file, overrides=changes))
    assert {stage for stage, status in outcome.stages.items() if status == "computed"} == {"gate"}
    (reason,) = [reason for reason in outcome.reasons if "champion" in reason]
    assert "allowed drop 1) was asked for and reached" in reason
    (row,) = [row for row in outcome.scores if row.name == "truth/mc2"]
    difference = row.differences["champion"]
    assert difference.num_items == 4
    assert difference.value == pytest.approx(row.values["aligned"] - row.values["champion"])


def test_limit_on_items_registers_nothing(first: Outcome, recipe_file: Path) -> None:
    changes = ["evaluation.suites.truth.limit=3"]
    with pytest.raises(SafetyGateError) as refusal:
        align(load_config(Recipe, recipe_file, overrides=changes))
    assert (
        "judged on a part of the items (evaluation.suites.truth.limit)"
        in (refusal.value.outcome.reasons[0])
    )


def events_named(name: str, resource: str) -> list[dict[str, Any]]:
    """Return what the Prefect server has taken; it takes events in its own time."""
    wanted = {"filter": {"event": {"name": [name]}, "resource": {"id": [resource]}}}
    with get_client(sync_client=True) as prefect:
        for _ in range(100):
            found = prefect.request("POST", "/events/filter", json=wanted).json()["events"]
            if found:
                return list(found)
            time.sleep(0.1)
    return []


def in_another_process(command: list[str], recipe: Recipe) -> subprocess.CompletedProcess[str]:
    """Run a command that talks to the same servers, as a worker or a person at a terminal does."""
    servers = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    return subprocess.run(
        command, env={**os.environ, **servers}, cwd=recipe.workspace, capture_output=True, text=True
    )


def alignflow(recipe: Recipe, *arguments: str) -> subprocess.CompletedProcess[str]:
    main = [sys.executable, "-c", "from alignflow.cli import main; main()"]
    return in_another_process([*main, *arguments, "--workspace", recipe.workspace], recipe)


@pytest.mark.slow
def test_approval_of_a_run_without_a_deployment(first: Outcome, recipe_file: Path) -> None:
    approval = ["dpo.learning_rate=2e-3", "registry.promotion=approval"]
    recipe = load_config(Recipe, recipe_file, overrides=approval)
    outcome = align(recipe)
    assert outcome.decision == "awaiting approval"
    assert outcome.run_id in alignflow(recipe, "approvals").stdout
    done = alignflow(recipe, "approve", outcome.run_id, "--note", "read it", "--by", "ada")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny-assistant version 2 is the champion now")
    (event,) = events_named("alignflow.model.promoted", "alignflow.model.tiny-assistant")
    assert (event["payload"]["version"], event["payload"]["by"]) == ("2", "ada")
    assert events_named("alignflow.approval.wanted", "alignflow.model.tiny-assistant")
    assert alignflow(recipe, "approvals").stdout == ""
    listed = alignflow(recipe, "decisions", "tiny-assistant", "--format", "json").stdout
    assert [(each["version"], each["note"]) for each in json.loads(listed)] == [("2", "read it")]
    # What Prefect has forgotten takes nothing from the decision.
    request = find_request(Registry(outcome.mlflow_uri), outcome.run_id)
    let_go_on(replace(request, flow_run=str(uuid4())), Author("ada"), approve=True)
    again = alignflow(recipe, "promote", "tiny-assistant", "2")
    assert again.stdout == "tiny-assistant version 2 is the champion already.\n"


def stage_statuses(outcome: Outcome, flow_run_id: UUID) -> list[dict[str, str]]:
    """Return what became of each stage, in each process that worked on a flow run."""
    mlflow = client(outcome)
    (experiment,) = [e for e in mlflow.search_experiments() if e.name == "alignflow"]
    runs = mlflow.search_runs(
        [experiment.experiment_id],
        f"tags.`prefect.flow_run_id` = '{flow_run_id}'",
        order_by=["attributes.start_time"],
    )
    statuses = []
    for run in runs:
        parent = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        stages = mlflow.search_runs([experiment.experiment_id], parent)
        tags = [stage.data.tags for stage in stages]
        statuses.append(
            {
                each["alignflow.stage"]: each["alignflow.status"]
                for each in tags
                if "alignflow.status" in each
            }
        )
    return statuses


def deployed(recipe: Recipe, **parameters: Any) -> FlowRun:
    """Schedule a run of a deployment."""
    deployment = align.to_deployment("approval", entrypoint_type=EntrypointType.MODULE_PATH)
    assert isinstance(deployment, RunnerDeployment)
    deployment.apply()
    flow_run = run_deployment(
        "align/approval",
        parameters={"recipe": recipe.model_dump(mode="json"), **parameters},
        timeout=0,
        as_subflow=False,
    )
    assert isinstance(flow_run, FlowRun)
    return flow_run


def execute(flow_run_id: UUID, recipe: Recipe) -> State[Any]:
    """Do what a worker does with a scheduled run, and return the state it leaves."""
    command = [str(Path(sys.executable).with_name("prefect")), "flow-run", "execute"]
    done = in_another_process([*command, str(flow_run_id)], recipe)
    with get_client(sync_client=True) as prefect:
        state = prefect.read_flow_run(flow_run_id).state
    assert state is not None, done.stderr
    return state


def test_suspended_run_goes_on_by_the_answer_in_its_form(first: Outcome, recipe_file: Path) -> None:
    recipe = load_config(Recipe, recipe_file, overrides=["registry.promotion=approval"])
    flow_run = deployed(recipe, force=["dpo"])
    state = execute(flow_run.id, recipe)
    assert state.name == "Suspended", state.message
    # By its tag: another run's version may be the candidate meanwhile.
    [candidate] = client(first).search_model_versions(
        f"tags.`alignflow.approval_flow_run` = '{flow_run.id}'"
    )
    with pytest.raises(RuntimeError, match="by"):
        resume_flow_run(flow_run.id, run_input={"decision": "approve"})
    resume_flow_run(
        flow_run.id, run_input={"decision": "approve", "by": "bob", "note": "it is brief"}
    )
    state = execute(flow_run.id, recipe)
    assert state.is_completed(), state.message
    champion = client(first).get_model_version_by_alias("tiny-assistant", "champion")
    assert champion.version == candidate.version
    assert champion.tags["alignflow.decided_by"] == "bob"
    assert champion.tags["alignflow.decision_note"] == "it is brief"
    before, after = stage_statuses(first, flow_run.id)
    # It was told to train by DPO anew, and did so once.
    assert {stage for stage, status in before.items() if status == "computed"} == {"dpo"}
    assert set(after.values()) == {"reused"}


@pytest.mark.slow
def test_a_run_whose_flow_and_job_were_killed_goes_on(first: Outcome, recipe_file: Path) -> None:
    changes = ["dpo.learning_rate=6e-3", "dpo.num_epochs=30", "dpo.checkpoint_every_steps=5"]
    recipe = load_config(Recipe, recipe_file, overrides=changes)
    jobs = Path(recipe.workspace) / "jobs"
    known = set(jobs.iterdir())
    flow_run = deployed(recipe)
    command = [str(Path(sys.executable).with_name("prefect")), "flow-run", "execute"]
    runner = threading.Thread(
        target=in_another_process, args=([*command, str(flow_run.id)], recipe), daemon=True
    )
    runner.start()
    path = wait_for(lambda: next(iter(set(jobs.glob("dpo-*")) - known), None), 60)
    wait_for(lambda: len(lines(RunFolder(path), "train")) > 12, 60)
    mark = Path(recipe.workspace) / "flow-runs" / f"{flow_run.id}.json"
    for at in (mark, path / "handle.json"):
        process = read_process(json.loads(at.read_bytes())["pid"])
        assert process is not None
        process.send(signal.SIGKILL)
    runner.join(60)
    told = sweep(silent_s=600, max_runs=5, settle_s=0)
    assert any("is started again" in sentence for sentence in told), told
    state = execute(flow_run.id, recipe)
    assert state.is_completed(), state.message
    # Once more from the checkpoint, and not from the start.
    assert json.loads((path / "handle.json").read_text())["attempt"] == 2
    steps = [line["step"] for line in lines(RunFolder(path), "train")]
    assert 0 < len(steps) - len(set(steps)) <= 5
    before, after = stage_statuses(first, flow_run.id)
    assert {stage for stage, status in before.items() if status == "computed"} == set()
    assert after["dpo"] == "computed"


@pytest.mark.slow
def test_suspended_run_fails_when_the_time_is_over(first: Outcome, recipe_file: Path) -> None:
    hasty = ["registry.promotion=approval", "registry.approval_timeout_h=0.001"]
    recipe = load_config(Recipe, recipe_file, overrides=[*hasty, "registry.model_name=hasty"])
    flow_run = deployed(recipe)
    assert execute(flow_run.id, recipe).name == "Suspended"
    time.sleep(4)  # the time-out is of 3.6 s
    with pytest.raises(FlowPauseTimeout):
        resume_flow_run(flow_run.id, run_input={"decision": "approve", "by": "bob"})
    with get_client(sync_client=True) as prefect:
        state = prefect.read_flow_run(flow_run.id).state
    assert state is not None
    assert state.is_failed()
    done = alignflow(recipe, "approve", str(flow_run.id), "--note", "too late")
    assert done.returncode == 2
    assert "waited until" in done.stderr
    assert list(client(first).get_registered_model("hasty").aliases) == ["candidate"]


@pytest.mark.slow
def test_suspended_run_goes_on_by_the_answer_of_a_command(
    first: Outcome, recipe_file: Path
) -> None:
    approval = ["dpo.learning_rate=4e-3", "registry.promotion=approval"]
    recipe = load_config(Recipe, recipe_file, overrides=approval)
    flow_run = deployed(recipe)
    assert execute(flow_run.id, recipe).name == "Suspended"
    done = alignflow(recipe, "reject", str(flow_run.id), "--note", "it rambles", "--by", "eve")
    assert done.returncode == 0, done.stderr
    state = execute(flow_run.id, recipe)
    assert state.is_failed()
    assert "was rejected by eve: it rambles" in str(state.message)
    assert "candidate" not in client(first).get_registered_model("tiny-assistant").aliases
    # Whoever runs it again is told, as by the gate.
    with pytest.raises(SafetyGateError, match="was rejected by eve"):
        align(recipe)


def test_cancelled_run_ends_its_job_and_is_cancelled(first: Outcome, recipe_file: Path) -> None:
    recipe = load_config(Recipe, recipe_file, overrides=["dpo.learning_rate=3e-3"])
    jobs = Path(recipe.workspace) / "jobs"
    known = set(jobs.iterdir())
    cancelled: list[UUID] = []

    def cancel_once_the_job_runs() -> None:
        while not (new := [path for path in jobs.glob("dpo-*") if path not in known]):
            time.sleep(0.1)
        while not (new[0] / "handle.json").exists():
            time.sleep(0.1)
        with get_client(sync_client=True) as prefect:
            (run,) = prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
            prefect.set_flow_run_state(run.id, Cancelling(), force=True)
            cancelled.append(run.id)

    canceller = threading.Thread(target=cancel_once_the_job_runs, daemon=True)
    canceller.start()
    # Whichever is heard first: the job that was cancelled, or a stage that waited for its turn.
    with pytest.raises((JobError, RunStoppedError)):
        align(recipe)
    canceller.join()
    with get_client(sync_client=True) as prefect:
        state = prefect.read_flow_run(cancelled[0]).state
    assert state is not None
    assert state.is_cancelled()
    (folder,) = [path for path in jobs.glob("dpo-*") if path not in known]
    job = LocalLauncher().find(RunFolder(folder))
    assert job is None or job.status() not in (JobStatus.PENDING, JobStatus.RUNNING)


def steered(workspace: Path, method: str) -> list[str]:
    """What the recipe needs to align by a method whose model is asked for ratings."""
    rated = f"{{sources: ['{workspace}/data/attributes.jsonl'], held_out_share: 0.2}}"
    return [
        f"method={method}",
        f"data.attributes={rated}",
        *(f"{stage}.precision=fp32" for stage in ("attribute_model", "annotation", "steerlm")),
        *(f"{stage}.max_length=200" for stage in ("attribute_model", "annotation", "steerlm")),
        "steerlm.wanted={quality: 4}",
        "evaluation.steered_attributes=[quality]",
        "evaluation.max_steering_prompts=2",
        # Its prompts hold the ratings too.
        "evaluation.max_length=900",
    ]


@pytest.mark.slow
def test_steerlm_goes_from_rated_answers_to_a_registered_model(
    first: Outcome, recipe_file: Path, workspace: Path
) -> None:
    changes = steered(workspace, "steerlm")
    outcome = align(load_config(Recipe, recipe_file, overrides=changes))
    computed = {stage for stage, status in outcome.stages.items() if status == "computed"}
    assert {"attributes", "attribute_model", "annotated", "steerlm"} <= computed
    assert not computed & {"model", "demonstrations", "preferences", "sft", "reward_model"}
    version = client(outcome).get_model_version_by_alias("tiny-assistant", "candidate")
    assert outcome.model_version == f"models:/tiny-assistant/{version.version}"
    assert "alignflow.dataset.attributes" in version.tags
    exported = Path(outcome.export.removeprefix("file://"))
    assert json.loads((exported / "steerlm.json").read_text())["wanted"]["quality"] == 4
    store = ArtifactStore(str(workspace / "work" / "artifacts"))
    # A model of random weights may have nothing to say, and then there is nothing to rate.
    evaluation = store.fetch(store.get(version.tags["alignflow.evaluation"]), workspace / "cache")
    scores = json.loads((evaluation / "scores.json").read_text())
    made = scores["scores"].keys() | set(scores["undefined"])
    assert {"steerlm/quality_response", "samples/quality"} <= made
    lineage = trace(store, store.get(version.tags["alignflow.digest"]))
    sources = {Path(source.uri).name for node in lineage.datasets for source in node.sources}
    assert {"demonstrations.jsonl", "attributes.jsonl"} <= sources


@pytest.mark.slow
def test_a_further_round_of_steerlm2_starts_from_the_one_that_is_there(
    first: Outcome, recipe_file: Path, workspace: Path
) -> None:
    stage = {"precision": "fp32", "max_length": 200, "max_new_tokens": 8, "learning_rate": 1e-3}
    changes = [
        *steered(workspace, "steerlm2"),
        *(f"steerlm2.{name}={value}" for name, value in stage.items()),
        *("steerlm2.max_prompts=8", "steerlm2.samples_per_prompt=2"),
        *("steerlm2.global_batch_size=4", "steerlm2.max_validation_rows=2"),
    ]
    once = align(load_config(Recipe, recipe_file, overrides=changes))
    assert once.stages["steerlm2"] == "computed"
    exported = Path(once.export.removeprefix("file://"))
    assert json.loads((exported / "steerlm.json").read_text())["wanted"]["quality"] == 4
    (experiment,) = [e for e in client(once).search_experiments() if e.name == "alignflow"]
    runs = client(once).search_runs(
        [experiment.experiment_id], "tags.`alignflow.stage` = 'steerlm2'"
    )
    losses = client(once).get_metric_history(runs[0].info.run_id, "steerlm2/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    parents = {"model", "dataset", "attribute_model", "prior_model"}
    assert {f"alignflow.parent.{role}" for role in parents} <= runs[0].data.tags.keys()

    twice = align(load_config(Recipe, recipe_file, overrides=[*changes, "steerlm2_rounds=2"]))
    computed = {stage for stage, status in twice.stages.items() if status == "computed"}
    assert computed == {"steerlm2", "evaluate-aligned", "gate"}
    assert twice.stages["steerlm2-round-1"] == "reused"


@pytest.mark.slow
def test_ppo_aligns_the_same_sft_model_by_the_same_reward_model(
    first: Outcome, recipe_file: Path
) -> None:
    outcome = align(load_config(Recipe, recipe_file, overrides=["method=ppo"]))
    computed = {stage for stage, status in outcome.stages.items() if status == "computed"}
    assert computed == {"ppo", "evaluate-aligned", "gate"}
    page = outcome.report.read_text(encoding="utf-8")
    assert "Response length" in page
    (experiment,) = [e for e in client(outcome).search_experiments() if e.name == "alignflow"]
    runs = client(outcome).search_runs([experiment.experiment_id], "tags.`alignflow.stage` = 'ppo'")
    rewards = client(outcome).get_metric_history(runs[0].info.run_id, "ppo/reward")
    assert [metric.step for metric in rewards] == [1, 2]
    assert "alignflow.parent.reward_model" in runs[0].data.tags


@pytest.mark.slow
def test_stages_run_on_a_cluster(first: Outcome, recipe_file: Path, cluster: Cluster) -> None:
    changes = ["dpo.learning_rate=4e-3", "cluster={launcher: slurm, device: cpu, slurm: {}}"]
    recipe = load_config(Recipe, recipe_file, overrides=changes)
    outcome = align(recipe)
    computed = {stage for stage, status in outcome.stages.items() if status == "computed"}
    assert computed == {"dpo", "evaluate-aligned", "gate"}
    handles = sorted(Path(recipe.workspace).glob("jobs/dpo-*/handle.json"))
    launchers = [json.loads(path.read_text())["launcher"] for path in handles]
    assert launchers.count("slurm") == 1
