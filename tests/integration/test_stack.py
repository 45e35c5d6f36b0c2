"""`alignflow up`, `down`, `status`, `env` with the servers that they start."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from alignflow.errors import ConfigError
from alignflow.jobs.processes import all_processes
from alignflow.stack.credentials import read_credentials
from alignflow.stack.postgres import programs

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from alignflow.cli import main; main()"]
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
PREFECT_COUNT = "/flows/count"
MLFLOW_EXPERIMENTS = "/api/2.0/mlflow/experiments/search"


def free_ports(count: int, *, room: int = 1) -> list[int]:
    """Return ports of which each is free with those above it, and those 10000 above."""
    found: list[int] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        start = probe.getsockname()[1] % 10000 + 20000
    for port in range(start, 45000, room):
        if all(is_free(each) and is_free(each + 10000) for each in range(port, port + room)):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("there are no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True)
class Commands:
    """The command line on a stack of the test's own."""

    workspace: Path
    ports: list[str]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            [*COMMAND, *arguments, "--workspace", str(self.workspace)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout + done.stderr

    def up(self, *more: str) -> str:
        return self.run("up", *self.ports, *more)

    def states(self, code: int = 0) -> dict[str, dict[str, Any]]:
        """Return what `status` says of each service."""
        states = json.loads(self.run("status", "--format", "json", code=code))
        return {state["service"]: state for state in states}

    def environment(self) -> dict[str, str]:
        """Return what a shell has after `eval "$(alignflow env)"`."""
        shell = 'eval "$1"; env -0'
        told = subprocess.run(
            ["sh", "-c", shell, "sh", self.run("env")], capture_output=True, check=True
        )
        pairs = (line.partition("=") for line in told.stdout.decode().split("\0"))
        return {name: value for name, _, value in pairs}

    def pid_files(self) -> dict[str, str]:
        return {path.stem: path.read_text() for path in (self.workspace / "stack").glob("*.pid")}

    def logs(self) -> str:
        files = sorted((self.workspace / "stack" / "log").glob("*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in files)

    def secrets(self) -> list[str]:
        """Return every password and key."""
        values = read_credentials(self.workspace / "stack" / "credentials.env").values()
        return [value.rpartition(":")[2] for value in values if value != "alignflow"]

    def processes(self) -> list[str]:
        """Return the command lines of what runs in this workspace, or names one of its secrets."""
        marks = [str(self.workspace), *self.secrets()]
        lines = [Path(f"/proc/{each.pid}/cmdline") for each in all_processes()]
        texts = [path.read_bytes().replace(b"\0", b" ").decode() for path in lines if path.exists()]
        return [text for text in texts if any(mark in text for mark in marks)]


def prefect_and_mlflow_ports() -> list[str]:
    prefect, mlflow = free_ports(2)
    return ["--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A stack that is up."""
    commands = Commands(tmp_path_factory.mktemp("stack") / "work space", prefect_and_mlflow_ports())
    try:
        commands.up()
        yield commands
    finally:
        commands.run("down")


def status_of(url: str, login: str = "", data: dict[str, Any] | None = None) -> int:
    """Return the status with which a server answers a request, asked with a login or without."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with urlopen(Request(url, json.dumps(data or {}).encode(), headers)) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def mlflow_login(environment: dict[str, str]) -> str:
    return f"{environment['MLFLOW_TRACKING_USERNAME']}:{environment['MLFLOW_TRACKING_PASSWORD']}"


def test_servers_ask_for_a_password(stack: Commands) -> None:
    environment = stack.environment()
    prefect = environment["PREFECT_API_URL"] + PREFECT_COUNT
    mlflow = environment["MLFLOW_TRACKING_URI"] + MLFLOW_EXPERIMENTS
    one = {"max_results": 1}
    assert (status_of(prefect), status_of(mlflow, data=one)) == (401, 401)
    assert status_of(prefect, "alignflow:no") == status_of(mlflow, "alignflow:no", one) == 401
    assert status_of(prefect, environment["PREFECT_API_AUTH_STRING"]) == 200
    assert status_of(mlflow, mlflow_login(environment), one) == 200


def test_clients_of_alignflow_get_in(
    stack: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from alignflow.tasks.prefect_api import prefect_client
    from alignflow.tasks.tracking import Tracker

    environment = stack.environment()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, environment[name])
    uri = environment["MLFLOW_TRACKING_URI"]
    run = Tracker(uri=uri, experiment="clients", artifact_root=tmp_path).start_pipeline("a run", {})
    assert run.run_id
    settings = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(settings), prefect_client() as client:
        # The worker has made it.
        assert client.read_work_pool("alignflow").type == "process"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    with pytest.raises(ConfigError, match="it asks for a password; set MLFLOW_TRACKING_USERNAME"):
        Tracker(uri=uri, experiment="clients", artifact_root=tmp_path)


def test_secrets_are_in_no_command_line_and_no_log(stack: Commands) -> None:
    logs = stack.logs()
    assert "Uvicorn running" in logs
    lines = stack.processes()
    for secret in stack.secrets():
        assert secret not in logs
        assert not any(secret in line for line in lines)


def test_second_up_changes_nothing(stack: Commands) -> None:
    before = stack.pid_files()
    assert set(before) == {"prefect", "mlflow", "worker"}
    told = stack.run("up")
    assert told.count("runs already") == 3
    assert stack.pid_files() == before
    assert "Port" not in stack.run("up", *stack.ports)
    other = stack.run("up", "--mlflow-port", "1", code=2)
    assert "say alignflow down before" in other


def test_killed_server_is_told_and_nothing_is_left_after_down(stack: Commands) -> None:
    pid = stack.states()["mlflow"]["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    states = stack.states(code=1)
    assert {name: state["state"] for name, state in states.items()} == {
        "prefect": "healthy",
        "mlflow": "dead",
        "worker": "healthy",
    }
    table = stack.run("status", code=1)
    assert re.search(rf"^mlflow +dead +http://127\.0\.0\.1:\d+ +{pid} ", table, re.MULTILINE)
    stack.run("down")
    assert stack.processes() == []
    assert stack.pid_files() == {}
    for url in (states["prefect"]["address"], states["mlflow"]["address"]):
        with pytest.raises(OSError, match="refused"):
            urlopen(url)
    assert {state["state"] for state in stack.states(code=1).values()} == {"stopped"}


def test_interrupted_up_leaves_nothing(tmp_path: Path) -> None:
    commands = Commands(tmp_path / "work", prefect_and_mlflow_ports())
    line = [*COMMAND, "up", *commands.ports, "--workspace", str(commands.workspace)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not (commands.workspace / "stack" / "mlflow.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopping what was started." in told
    assert commands.processes() == []
    assert commands.pid_files() == {}


@pytest.mark.slow
def test_server_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    commands = Commands(tmp_path / "work", prefect_and_mlflow_ports())
    commands.workspace.mkdir()
    (commands.workspace / "mlflow.db").write_text("no database at all, but long enough for one")
    told = commands.run("up", *commands.ports, code=1)
    assert re.search(r"MLflow ended before it answered; the end of .+/mlflow\.log:\n", told)
    assert "file is not a database" in told
    assert commands.processes() == []


@pytest.mark.slow
def test_data_is_there_after_down_and_up_elsewhere(tmp_path: Path) -> None:
    before = Commands(tmp_path / "work", prefect_and_mlflow_ports())
    after = Commands(tmp_path / "backup", [])
    try:
        before.up()
        make_experiment(before, "kept")
        before.run("down")
        before.workspace.rename(after.workspace)
        after.run("up")
        assert experiment_status(after, "kept") == 200
        assert experiment_status(after, "never made") == 404
        assert {state["state"] for state in after.states().values()} == {"healthy"}
        let_ada_read(after.environment())
    finally:
        for commands in (before, after):
            commands.run("down")


def let_ada_read(environment: dict[str, str]) -> None:
    """Make an account as docs/security.md says, and see that it can read and not promote."""
    model = {"name": "assistant"}
    ask(environment, "registered-models/create", mlflow_login(environment), model)
    source = {"name": "assistant", "source": "s3://models/1"}
    ask(environment, "model-versions/create", mlflow_login(environment), source)
    (code,) = re.findall(r"```python\n(.*?create_user.*?)```", SECURITY.read_text(), re.DOTALL)
    subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PASSWORD_OF_ADA": "a password of hers"},
        check=True,
    )
    ada = "ada:a password of hers"
    alias = {"name": "assistant", "alias": "champion", "version": "1"}
    latest = "registered-models/get-latest-versions"
    assert ask(environment, latest, ada, model) == 200
    assert ask(environment, "registered-models/alias", ada, alias) == 403
    assert ask(environment, "registered-models/alias", mlflow_login(environment), alias) == 200


def ask(environment: dict[str, str], path: str, login: str, data: dict[str, Any]) -> int:
    url = f"{environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
    return status_of(url, login, data)


def make_experiment(commands: Commands, name: str) -> None:
    environment = commands.environment()
    login = mlflow_login(environment)
    assert ask(environment, "experiments/create", login, {"name": name}) == 200


def experiment_status(commands: Commands, name: str) -> int:
    environment = commands.environment()
    path = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name.replace(' ', '+')}"
    login = base64.b64encode(mlflow_login(environment).encode()).decode()
    headers = {"Authorization": f"Basic {login}"}
    try:
        with urlopen(Request(environment["MLFLOW_TRACKING_URI"] + path, headers=headers)) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach, as PostgreSQL's is where the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="alignflow-stack-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_full_stack_keeps_runs_and_objects(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if programs(None) is None:
        pytest.skip("needs PostgreSQL (apt install postgresql)")
    from mlflow import MlflowClient

    from alignflow import s3

    prefect, mlflow, postgres, store = free_ports(4, room=4)
    ports = [
        *("--prefect-port", str(prefect), "--mlflow-port", str(mlflow)),
        *("--postgres-port", str(postgres), "--s3-port", str(store)),
    ]
    commands = Commands(open_folder / "work", ports)
    try:
        commands.up("--full")
        for name, value in commands.environment().items():
            if name.startswith(("MLFLOW_TRACKING", "AWS_")):
                monkeypatch.setenv(name, value)
        client = MlflowClient()
        run = client.create_run(client.create_experiment("kept"))
        (tmp_path / "note.txt").write_text("kept")
        client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
        s3.client().call_s3("put_object", Bucket="alignflow", Key="note", Body=b"kept")
        with pytest.raises(PermissionError):
            s3.client().call_s3("put_object", Bucket="mlflow", Key="note", Body=b"no")

        logs, lines = commands.logs(), commands.processes()
        assert set(commands.states()) == {"postgres", "seaweedfs", "prefect", "mlflow", "worker"}
        for secret in commands.secrets():
            assert secret not in logs
            assert not any(secret in line for line in lines)
        commands.run("down")
        assert commands.processes() == []

        commands.run("up")
        assert client.get_experiment_by_name("kept") is not None
        (artifact,) = client.list_artifacts(run.info.run_id)
        assert (artifact.path, artifact.file_size) == ("note.txt", 4)
        kept = s3.client().call_s3("head_object", Bucket="alignflow", Key="note")
        assert kept["ContentLength"] == 4
    finally:
        commands.run("down")
