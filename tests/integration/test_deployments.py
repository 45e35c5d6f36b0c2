"""Deployments, triggers and upkeep on a real Prefect server."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Running
from prefect_server import server_of_this_process, wait_for
from server_process import free_port

from alignflow.cli.deploy import deploy
from alignflow.cli.watch import watch
from alignflow.errors import ConfigError, DataError
from alignflow.flows.config import Recipe
from alignflow.flows.triggered import align_on_new_preferences, backfill, scheduled_retrain
from alignflow.tasks.data_versions import DataVersions
from alignflow.tasks.deployment.config import DEFAULT_FILE
from alignflow.tasks.deployment.deployed import deployed_recipes
from alignflow.tasks.events import emit
from alignflow.tasks.janitor import sweep
from alignflow.tasks.liveness import marked_process
from alignflow.tasks.starting import watched_sources
from alignflow.tasks.tracking import Tracker, tracking_uri
from alignflow.tasks.train import train_stage
from alignflow.tasks.watching import TRIGGERED, Sighting, WatchRules, look

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_of_this_process(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer's shell says is no part of a test."""
    names = ("PREFECT_API", "ALIGNFLOW_NOTIFY", "MLFLOW_TRACKING", "SENDGRID_API")
    for variable in os.environ:
        if variable.startswith(names):
            monkeypatch.delenv(variable)


def write_recipe(folder: Path, name: str) -> Path:
    """Write a recipe whose paths are relative, as by hand, and what it names."""
    (folder / "incoming").mkdir()
    write_pairs(folder / "incoming" / "a.jsonl", range(4))
    (folder / "demonstrations.jsonl").write_text('{"prompt": "Who?", "response": "Nobody."}\n')
    # What passes for a model until somebody reads its weights.
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model/model.safetensors").write_bytes(b"")
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: {name}
workspace: work
model: {{source: model}}
data:
  demonstrations: {{sources: [demonstrations.jsonl]}}
  preferences: {{sources: [incoming]}}
registry: {{model_name: {name}-model}}
"""
    )
    return path


def write_pairs(path: Path, numbers: range) -> None:
    """Write pairs that no other test has."""
    of = path.parent.parent.name
    rows = [
        {"prompt": f"{of}, {i}?", "chosen": f"{of}: answer {i}.", "rejected": f"{of}: no {i}."}
        for i in numbers
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


class Deployed(NamedTuple):
    """What was deployed for all tests."""

    recipe_file: Path
    told: str


@pytest.fixture(scope="module")
def deployed(api: str, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    folder = tmp_path_factory.mktemp("deployed")
    path, told = write_recipe(folder, "assistant"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(told):
        deploy(recipe=[path])
    return Deployed(path, told.getvalue())


@pytest.fixture
def recipe(deployed: Deployed, tmp_path: Path) -> Recipe:
    """The deployed recipe, with data and a store of the test's own."""
    write_recipe(tmp_path, "assistant")
    recipe = Recipe.model_validate(deployed_recipes()["assistant"])
    sources = {"sources": [str(tmp_path / "incoming")]}
    data = recipe.data.replaced(preferences={**recipe.data.preferences.model_dump(), **sources})
    return recipe.replaced(workspace=str(tmp_path / "work"), data=data)


def runs(client: SyncPrefectClient, flow: str, **parameters: str) -> list[FlowRun]:
    """Return the runs of a flow with these parameters, `workspace` being that of the recipe."""
    found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    return [
        run
        for run in found
        if parameters.items()
        <= {**run.parameters, "workspace": run.parameters["recipe"]["workspace"]}.items()
    ]


def started(client: SyncPrefectClient, recipe: Recipe) -> list[FlowRun]:
    """Return the pipeline's runs on the data of a test."""
    return runs(client, "align", workspace=recipe.workspace)


# Deploying -------------------------------------------------------------------------------------


def changed(told: str) -> dict[str, str]:
    """Return what a deploy said that it changed, and how."""
    lines = [line for line in told.splitlines() if not line.startswith("unchanged")]
    return {line[30:]: line.split()[0] for line in lines[:-1]}


def test_deploying_twice_changes_nothing(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = changed(deployed.told)
    assert set(first.values()) == {"created"}
    flows = ["align", "align-on-new-preferences", "scheduled-retrain", "backfill", "watch"]
    names = {f"{flow}/assistant" for flow in [*flows, "promote", "rollback"]}
    assert names | {"janitor/every-run", "alignflow", "alignflow/control"} <= first.keys()
    monkeypatch.chdir(deployed.recipe_file.parent)
    deploy(recipe=[deployed.recipe_file])
    told = capsys.readouterr().out
    assert changed(told) == {}
    assert told.endswith("nothing changed\n")


@pytest.mark.slow
def test_what_changes_in_the_file_changes_on_the_server(
    client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, file = write_recipe(tmp_path, "other"), tmp_path / "prefect.yaml"
    content = yaml.safe_load(DEFAULT_FILE.read_text())
    triggered, scheduled = content["deployments"][1:3]
    content["deployments"] = [triggered, scheduled]

    def deploy_changed() -> dict[str, str]:
        file.write_text(yaml.safe_dump(content))
        deploy(recipe=[recipe], file=file)
        return changed(capsys.readouterr().out)

    deploy_changed()
    deployment = client.read_deployment_by_name("scheduled-retrain/other")
    weekly = {each.slug: each for each in deployment.schedules}["weekly"]
    client.update_deployment_schedule(deployment.id, weekly.id, active=False)

    scheduled["schedules"][0]["cron"] = "0 5 * * 0"
    del scheduled["schedules"][1]
    triggered["triggers"][0]["within"] = 90
    content["work_pools"][0]["queues"][1]["concurrency_limit"] = 3
    assert deploy_changed() == {
        "alignflow/pipelines": "updated",
        "scheduled-retrain/other": "updated",
        "align-on-new-preferences/other: landed": "updated",
    }
    (left,) = client.read_deployment_by_name("scheduled-retrain/other").schedules
    assert isinstance(left.schedule, CronSchedule)
    # Somebody had switched it off, which a new time doesn't undo.
    assert (left.slug, left.schedule.cron, left.active) == ("weekly", "0 5 * * 0", False)
    assert deploy_changed() == {}
    triggered["triggers"] = []
    content["work_pools"][0]["queues"][1]["concurrency_limit"] = 2
    assert deploy_changed() == {
        "alignflow/pipelines": "updated",
        "align-on-new-preferences/other: landed": "removed",
    }


@pytest.mark.slow
def test_server_schedules_runs(deployed: Deployed, client: SyncPrefectClient) -> None:
    # It doesn't beside SQLAlchemy 2.1, and says so in its log alone.
    name = FlowFilterName(any_=["janitor"])

    def scheduled() -> list[FlowRun]:
        found = client.read_flow_runs(flow_filter=FlowFilter(name=name))
        return [run for run in found if run.auto_scheduled]

    assert wait_for(scheduled, 90)[0].state_name == "Scheduled"


def test_deployed_paths_hold_in_any_folder(deployed: Deployed) -> None:
    recipe = Recipe.model_validate(deployed_recipes()["assistant"])
    folder = deployed.recipe_file.parent
    assert recipe.workspace == str(folder / "work")
    assert recipe.model.source == str(folder / "model")
    assert recipe.data.preferences.sources == [str(folder / "incoming")]


def test_wrong_recipe_is_refused_before_anything_is_made(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, "wrong")
    with pytest.raises(ConfigError, match=r"dpo\.bta: unknown key; did you mean"):
        deploy(recipe=[path], overrides=["dpo.bta=1"])
    with pytest.raises(DataError, match="no such file"):
        deploy(recipe=[path], overrides=["data.preferences.sources=[nowhere.jsonl]"])
    assert "wrong" not in deployed_recipes()


def test_server_that_is_away_is_told_in_a_sentence() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ConfigError, match="Prefect doesn't answer at http://127"),
    ):
        deploy(recipe=[])


# Notifications ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_webhook_is_told_of_a_refusal(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secret = f"http://127.0.0.1:{server.server_port}/secret-path"
    monkeypatch.setenv("ALIGNFLOW_NOTIFY_WEBHOOK_URL", secret)
    deploy(recipe=[])
    deploy(recipe=[])
    assert capsys.readouterr().out.endswith("nothing changed\n")
    for event, payload in {
        "alignflow.gate.refused": {"model": "m", "run": "run-1", "reasons": "mc2 is 0.1"},
        "alignflow.job.lost": {"job": "123", "stage": "dpo", "run": "run-1", "message": "node"},
    }.items():
        assert emit(event, "alignflow.model.m", payload, key=uuid4().hex)
    wait_for(lambda: len(told) == 2, 20)
    server.shutdown()
    server.server_close()
    assert {each["subject"]: each["body"] for each in told} == {
        "The gate refused m": "Run run-1: mc2 is 0.1",
        "Job 123 was lost": "Stage dpo of run run-1: node",
    }
    with get_client(sync_client=True) as client:
        (block,) = client.read_block_documents_by_type("custom-webhook", include_secrets=False)
    assert "secret-path" not in json.dumps(block.data, default=str)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # by a library that Apprise looks for
def test_mail_server_gets_a_message_for_everybody(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Envelope] = []

    class Receiver:
        async def handle_DATA(  # noqa: N802 - aiosmtpd calls it so
            self, server: SMTP, session: Session, envelope: Envelope
        ) -> str:
            received.append(envelope)
            return "250 OK"

    def authenticate(
        server: SMTP, session: Session, envelope: Envelope, mechanism: str, auth: LoginPassword
    ) -> AuthResult:
        return AuthResult(success=(auth.login, auth.password) == (b"ada", b"p@ss/word"))

    mail = Controller(
        Receiver(),
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=authenticate,
        auth_required=True,
        auth_require_tls=False,
    )
    monkeypatch.setenv("ALIGNFLOW_NOTIFY_EMAIL_TO", "ada@example.org, ben@example.org")
    monkeypatch.setenv("ALIGNFLOW_NOTIFY_EMAIL_FROM", "align@example.org")
    smtp = f"smtp://ada:p%40ss%2Fword@127.0.0.1:{mail.port}"
    monkeypatch.setenv("ALIGNFLOW_NOTIFY_SMTP_URL", smtp)
    mail.start()
    try:
        deploy(recipe=[])
        payload = {"model": "m", "run": "run-1", "reasons": "mc2 is <0.1"}
        assert emit("alignflow.gate.refused", "alignflow.model.m", payload, key=uuid4().hex)
        wait_for(lambda: len(received) == 2, 20)
    finally:
        mail.stop()
    assert {each.mail_from for each in received} == {"align@example.org"}
    assert {to for each in received for to in each.rcpt_tos} == {
        "ada@example.org",
        "ben@example.org",
    }
    for each in received:
        assert isinstance(each.content, bytes)
        message = message_from_bytes(each.content, policy=policy.default)
        assert message["Subject"] == "The gate refused m"
        assert message.get_content().strip() == "Run run-1: mc2 is <0.1"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"SLACK_URL": "hooks.slack.com/hush"}, "ALIGNFLOW_NOTIFY_SLACK_URL: not a URL"),
        (
            {"EMAIL_TO": "a@b.org", "EMAIL_FROM": "c@b.org", "SMTP_URL": "host:25/hush"},
            "ALIGNFLOW_NOTIFY_SMTP_URL: not a URL",
        ),
        (
            {"EMAIL_TO": "a@b.org", "EMAIL_FROM": "c@b.org", "SMTP_URL": "smtp://u:hush@host:no"},
            "ALIGNFLOW_NOTIFY_SMTP_URL: not a URL",
        ),
        (
            {"EMAIL_TO": "a@b.org", "EMAIL_FROM": "c@b.org"},
            "goes with ALIGNFLOW_NOTIFY_EMAIL_FROM and with one of ALIGNFLOW_NOTIFY_SMTP_URL and",
        ),
        (
            {"EMAIL_TO": "a@b.org", "SMTP_URL": "smtp://u:hush@host"},
            "goes with ALIGNFLOW_NOTIFY_EMAIL_FROM",
        ),
    ],
)
def test_address_that_is_no_url_or_half_said_is_refused_without_being_shown(
    api: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ALIGNFLOW_NOTIFY_{name}", value)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        deploy(recipe=[])
    assert "hush" not in str(refusal.value)


# Watching --------------------------------------------------------------------------------------


def see(recipe: Recipe, *, min_new_pairs: int = 1, quiet_s: float = 0.0) -> Sighting:
    """Look as a new process does: nothing is remembered but what the store holds."""
    return look(
        recipe,
        watched_sources(recipe),
        WatchRules(min_new_pairs=min_new_pairs, quiet_s=quiet_s),
    )


def test_landing_starts_one_run_whatever_is_repeated(
    recipe: Recipe, client: SyncPrefectClient
) -> None:
    sighting = see(recipe)
    assert sighting.what == "landed"
    digest = str(sighting.digest)
    # The server's automation starts the deployment; here is what its run does, twice.
    (triggered,) = wait_for(lambda: runs(client, TRIGGERED, digest=digest), 20)
    align_on_new_preferences(recipe, digest, triggered.parameters["source"])
    align_on_new_preferences(recipe, digest)
    (run,) = started(client, recipe)
    files = DataVersions(recipe).find(digest[:8]).files
    assert run.parameters["recipe"]["data"]["preferences"]["sources"] == [files[0].uri]
    # The same content again, under another name and a second time.
    incoming = Path(recipe.data.preferences.sources[0])
    (incoming / "copy.jsonl").write_bytes((incoming / "a.jsonl").read_bytes())
    again = see(recipe)
    assert (again.what, again.digest) == ("known", digest)
    assert str(run.id) in again.sentence
    assert len(started(client, recipe)) == 1
    by_event = [each for each in runs(client, TRIGGERED, digest=digest) if each.deployment_id]
    assert len(by_event) == 1


@pytest.mark.slow
def test_event_that_came_to_nothing_is_told_again(recipe: Recipe) -> None:
    digest = str(see(recipe).digest)
    versions = DataVersions(recipe)
    version = versions.find(digest)
    assert version.told == 1
    # Nothing came of it for an hour.
    versions.write(version.replaced(told_at=datetime.now(UTC) - timedelta(hours=1)))
    see(recipe)
    assert versions.find(digest).told == 2


@pytest.mark.slow
def test_run_is_found_though_nobody_noted_it(recipe: Recipe, client: SyncPrefectClient) -> None:
    digest = str(see(recipe).digest)
    align_on_new_preferences(recipe, digest)
    versions = DataVersions(recipe)
    versions.write(versions.find(digest).replaced(flow_run=None))
    see(recipe)
    (run,) = started(client, recipe)
    assert versions.find(digest).flow_run == str(run.id)


def test_file_on_its_way_lands_when_it_is_whole_and_quiet(recipe: Recipe) -> None:
    incoming = Path(recipe.data.preferences.sources[0])
    assert see(recipe).what == "landed"
    # Names under which files are written, and a library's hidden one.
    for name in ("b.jsonl.part", "b.tmp.jsonl", ".b.jsonl.x7Gh2"):
        write_pairs(incoming / name, range(4, 6))
        assert see(recipe).what == "known"
    (incoming / "b.jsonl.part").rename(incoming / "b.jsonl")
    assert see(recipe, quiet_s=0.5).what == "waiting"
    with (incoming / "b.jsonl").open("a") as file:
        file.write('{"prompt": "Half')
    time.sleep(0.5)
    # It was quiet long enough since the first look, but not since it grew.
    assert see(recipe, quiet_s=0.5).what == "waiting"
    write_pairs(incoming / "b.jsonl", range(4, 8))
    assert see(recipe, quiet_s=0.5).what == "waiting"
    time.sleep(0.5)
    sighting = see(recipe, quiet_s=0.5)
    assert sighting.what == "landed"
    assert "4 new pairs" in sighting.sentence


def test_fewer_new_pairs_than_asked_for_wait_for_more(recipe: Recipe) -> None:
    incoming = Path(recipe.data.preferences.sources[0])
    assert see(recipe).what == "landed"
    # Two that are there already, one that no check passes, two that are new.
    write_pairs(incoming / "b.jsonl", range(2, 6))
    with (incoming / "b.jsonl").open("a") as file:
        file.write('{"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."}\n')
    sighting = see(recipe, min_new_pairs=3)
    assert (sighting.what, sighting.sentence.split(" have ")[1]) == (
        "too few",
        "2 new pairs, 3 are waited for",
    )
    assert see(recipe, min_new_pairs=3).what == "too few"
    write_pairs(incoming / "c.jsonl", range(10, 11))
    assert "with 3 new pairs" in see(recipe, min_new_pairs=3).sentence


@pytest.mark.slow
def test_set_that_cannot_be_read_is_refused_until_it_changes(recipe: Recipe) -> None:
    incoming = Path(recipe.data.preferences.sources[0])
    (incoming / "b.jsonl.gz").write_bytes(b"no archive")
    assert see(recipe).what == "refused"
    assert see(recipe).what == "refused"
    (incoming / "b.jsonl.gz").unlink()
    assert see(recipe).what == "landed"


@pytest.mark.slow
def test_command_looks_at_a_folder_beside_those_of_the_recipe(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    write_pairs(tmp_path / "more" / "x.jsonl", range(20, 23))
    capsys.readouterr()
    watch([str(tmp_path / "more")], recipe=recipe.name, quiet_s=0, once=True)
    assert "have landed with 7 new pairs" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no such recipe is deployed"):
        watch([str(tmp_path / "more")], recipe="nobody", once=True)


# Schedules and backfills -----------------------------------------------------------------------


@pytest.mark.slow
def test_schedule_starts_a_run_where_there_was_none(
    recipe: Recipe, client: SyncPrefectClient
) -> None:
    state = scheduled_retrain(recipe, return_state=True)
    assert state.name == "Completed"
    assert "no run has come to a verdict yet" in str(state.message)
    assert len(started(client, recipe)) == 1


@pytest.mark.slow
def test_backfill_runs_each_version_by_each_method_once(
    recipe: Recipe, client: SyncPrefectClient
) -> None:
    incoming = Path(recipe.data.preferences.sources[0])
    see(recipe)
    write_pairs(incoming / "b.jsonl", range(4, 6))
    see(recipe)
    for _ in range(2):
        assert len(backfill(recipe, methods=["dpo", "ppo"])) == 4
    recipes = [run.parameters["recipe"] for run in started(client, recipe)]
    found = {(each["method"], len(each["data"]["preferences"]["sources"])) for each in recipes}
    assert len(recipes) == 4
    assert found == {("dpo", 1), ("dpo", 2), ("ppo", 1), ("ppo", 2)}
    write_pairs(incoming / "a.jsonl", range(9))
    with pytest.raises(ValueError, match="the file changed"):
        backfill(recipe)


# The janitor -----------------------------------------------------------------------------------

_LEFT_RUNNING = """
import sys, time
from pathlib import Path
from prefect import flow, runtime
from alignflow.tasks.liveness import marked_process

@flow(name="align")
def align(recipe):
    with marked_process(Path(recipe["workspace"]), str(runtime.flow_run.id)):
        print(runtime.flow_run.id, flush=True)
        time.sleep(600)

align({"name": "killed", "workspace": sys.argv[1]})
"""


def test_janitor_ends_what_a_killed_process_left_running(
    api: str, client: SyncPrefectClient, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _LEFT_RUNNING, str(tmp_path)],
        env={**os.environ, "PREFECT_API_URL": api},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    flow_run = next(line.strip() for line in process.stdout if line.strip())
    sweep(silent_s=600, max_runs=5, settle_s=0)
    assert client.read_flow_run(flow_run).state_name == "Running"  # type: ignore[arg-type]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    sweep(silent_s=600, max_runs=5, settle_s=0)
    run = client.read_flow_run(flow_run)  # type: ignore[arg-type]
    assert run.state is not None
    assert run.state.is_crashed()
    assert "Run the recipe again" in str(run.state.message)
    assert not list(tmp_path.glob("flow-runs/*"))


@pytest.mark.slow
def test_janitor_has_a_deployed_run_go_on(recipe: Recipe, client: SyncPrefectClient) -> None:
    scheduled_retrain(recipe)
    (run,) = started(client, recipe)
    client.set_flow_run_state(run.id, Running(), force=True)
    # Without a mark, only silence tells.
    assert not any(run.name in each for each in sweep(silent_s=600, max_runs=5, settle_s=0))
    with marked_process(Path(recipe.workspace), str(run.id)):
        assert not any(run.name in each for each in sweep(silent_s=0, max_runs=5, settle_s=0))
    told = sweep(silent_s=0, max_runs=5, settle_s=0)
    assert f"{run.name} is started again" in told
    assert client.read_flow_run(run.id).state_name == "AwaitingRetry"
    client.set_flow_run_state(run.id, Running(), force=True)
    told = sweep(silent_s=0, max_runs=1, settle_s=0)
    assert any(each.startswith(f"{run.name} crashed") and "not started" in each for each in told)
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_crashed()


def test_janitor_ends_tasks_that_a_completed_run_seems_to_be_at(
    recipe: Recipe, client: SyncPrefectClient
) -> None:
    scheduled_retrain(recipe)
    (run,) = started(client, recipe)
    task_run = client.create_task_run(
        train_stage, run.id, dynamic_key="0", name="dpo", state=Running()
    )
    client.set_flow_run_state(run.id, Completed(), force=True)
    told = sweep(silent_s=600, max_runs=5, settle_s=0)
    assert "dpo was at work in a run that has completed: completed" in told
    state = client.read_task_run(task_run.id).state
    assert state is not None
    assert state.is_completed()


@pytest.mark.slow
def test_janitor_closes_what_a_crash_that_a_worker_reported_left_open(
    recipe: Recipe, client: SyncPrefectClient
) -> None:
    scheduled_retrain(recipe)
    (run,) = started(client, recipe)
    uri = tracking_uri(Path(recipe.workspace))
    tracker = Tracker(uri=uri, experiment="dead", artifact_root=Path(recipe.workspace))
    parent = tracker.start_pipeline("dead", {"prefect.flow_run_id": str(run.id)})
    stage = tracker.start_stage("dpo", {})
    task_run = client.create_task_run(
        train_stage, run.id, dynamic_key="0", name="dpo", state=Running()
    )
    client.set_flow_run_state(run.id, Crashed(), force=True)
    assert f"{run.name} is started again" in sweep(silent_s=600, max_runs=5, settle_s=0)
    for each in (parent, stage):
        assert MlflowClient(uri).get_run(each.run_id).info.status == "KILLED"
    state = client.read_task_run(task_run.id).state
    assert state is not None
    assert state.is_crashed()
