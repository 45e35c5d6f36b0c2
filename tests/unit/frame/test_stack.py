"""Parts of `alignflow up` that need no server."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from alignflow.errors import ConfigError
from alignflow.jobs.processes import read_process
from alignflow.stack import credentials as credentials_module
from alignflow.stack.config import StackConfig, read_config, write_config
from alignflow.stack.credentials import credentials, new_credentials
from alignflow.stack.environment import allowed_hosts, clients, inherited, mlflow_accounts
from alignflow.stack.lifecycle import Stack
from alignflow.stack.objects import identities
from alignflow.stack.ports import PortClaim, check_ports
from alignflow.stack.records import Record, ask_to_stop, read_record, start, wait_until_gone

# Credentials -----------------------------------------------------------------------------------


def test_credentials_are_random_and_each_its_own() -> None:
    first, second = new_credentials(), new_credentials()
    secret = [name for name in first if name != "MLFLOW_TRACKING_USERNAME"]
    assert len({first[name] for name in secret} | {second[name] for name in secret}) == 2 * len(
        secret
    )
    assert min(len(first[name]) for name in secret) >= 20


def test_credentials_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    before = os.umask(0)
    try:
        made = credentials(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials(path) == made
    assert [each.name for each in tmp_path.iterdir()] == ["credentials.env"]


def test_credentials_of_an_older_file_are_kept_and_completed(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    path.touch(mode=0o600)
    path.write_text("# old\nPOSTGRES_PASSWORD=kept=as=it=is\nMLFLOW_TRACKING_PASSWORD=\n")
    values = credentials(path)
    assert values["POSTGRES_PASSWORD"] == "kept=as=it=is"
    assert len(values["MLFLOW_TRACKING_PASSWORD"]) == 48
    assert values.keys() == new_credentials().keys()
    assert credentials(path) == values


def test_credentials_that_others_may_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    credentials(path)
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        credentials(path)


def test_credentials_need_nothing_but_python_and_a_shell_reads_them(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    script = str(credentials_module.__file__)
    subprocess.run([sys.executable, "-I", "-S", script, str(path)], check=True)
    shell = f'set -a; . "{path}"; printf %s "$PREFECT_API_AUTH_STRING"'
    told = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert told.stdout == credentials(path)["PREFECT_API_AUTH_STRING"]


def test_each_account_of_the_object_store_may_what_it_is_for() -> None:
    accounts = {
        each["name"]: each["actions"] for each in identities(new_credentials())["identities"]
    }
    assert "Admin" in accounts["admin"]
    assert accounts["mlflow"] == ["Read:mlflow", "Write:mlflow", "List:mlflow"]
    assert all(action.endswith(":alignflow") for action in accounts["alignflow"])


# Config and environment ------------------------------------------------------------------------


def test_config_keeps_what_is_not_given(tmp_path: Path) -> None:
    config = StackConfig().changed({"mlflow_port": 5001, "full": None, "s3_port": None})
    assert config == StackConfig(mlflow_port=5001)
    write_config(config, tmp_path / "stack.json")
    assert read_config(tmp_path / "stack.json") == config
    assert read_config(tmp_path / "none.json") is None


@pytest.mark.parametrize(("option", "value"), [("prefect_port", 0), ("s3_port", 55533)])
def test_port_that_cannot_be_is_refused_by_the_name_of_its_option(option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} {value}: "):
        StackConfig().changed({option: value})


def test_object_store_takes_four_ports_and_those_far_above() -> None:
    ports = StackConfig(s3_port=8333).s3_ports
    assert ports == (8333, 8334, 8335, 8336, 18333, 18334, 18335, 18336)


def test_clients_find_an_object_store_where_there_is_one() -> None:
    values = new_credentials()
    assert "AWS_ENDPOINT_URL" not in clients(values, StackConfig())
    with_store = clients(values, StackConfig(full=True, s3_port=9000))
    assert with_store["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert with_store["AWS_SECRET_ACCESS_KEY"] == values["AWS_SECRET_ACCESS_KEY"]


def test_what_names_other_servers_is_not_handed_on() -> None:
    shell = {
        "PATH": "/bin",
        "PREFECT_API_URL": "http://other",
        "MLFLOW_TRACKING_URI": "http://other",
        "PGPASSWORD": "other",
        "AWS_PROFILE": "mine",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
    }
    assert inherited(shell).keys() == {"PATH", "AWS_PROFILE", "MLFLOW_WEBHOOK_ALLOWED_SCHEMES"}


def test_accounts_of_mlflow_see_nothing_by_themselves() -> None:
    from configparser import ConfigParser

    parser = ConfigParser()
    parser.read_string(mlflow_accounts("postgresql://a:b%20c@host/accounts"))
    assert parser["mlflow"]["database_uri"] == "postgresql://a:b%20c@host/accounts"
    assert parser["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    assert "admin_password" not in parser["mlflow"]
    assert allowed_hosts("mlflow") == "mlflow:*,localhost:*,127.0.0.1:*"


# Ports -----------------------------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_taken_port_is_told_with_who_has_it_and_what_changes_it(taken_port: int) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_ports([PortClaim(taken_port, "MLflow", "--mlflow-port")])
    assert re.fullmatch(
        rf"Port {taken_port}, which MLflow needs, is taken by process {os.getpid()} \(.+\); "
        r"give another by --mlflow-port\.",
        str(refusal.value),
    )


def test_port_that_two_services_ask_for_is_refused() -> None:
    claims = [
        PortClaim(45987, "Prefect", "--prefect-port"),
        PortClaim(45987, "MLflow", "--mlflow-port"),
    ]
    with pytest.raises(ConfigError, match="both Prefect and MLflow"):
        check_ports(claims)


def test_nothing_is_started_where_a_port_is_taken(taken_port: int, tmp_path: Path) -> None:
    stack = Stack(tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match=f"Port {taken_port}"):
        stack.up({"mlflow_port": taken_port}, timeout_s=1)
    assert not list((tmp_path / "stack").glob("*.pid"))
    with pytest.raises(ConfigError, match="There is no stack"):
        stack.states()


# What is there already -------------------------------------------------------------------------


def test_stack_on_sqlite_does_not_become_one_on_postgres(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    write_config(StackConfig(), tmp_path / "stack" / "stack.json")
    with pytest.raises(ConfigError, match="give another --workspace"):
        Stack(tmp_path, lambda _: None).up({"full": True}, timeout_s=1)


def test_workspace_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't write to the workspace"):
        Stack(tmp_path / "file", lambda _: None).up({}, timeout_s=1)


def test_stack_that_was_never_started_has_nothing_to_stop(tmp_path: Path) -> None:
    told: list[str] = []
    Stack(tmp_path, told.append).down()
    assert told == ["There is no stack here."]


# Processes -------------------------------------------------------------------------------------


def run(folder: Path, script: str) -> subprocess.Popen[bytes]:
    """Start a shell that says `ready` once it is what the test is about."""
    process = start(
        ["sh", "-c", script],
        environment=dict(os.environ),
        folder=folder,
        log=folder / "log",
        pid_file=folder / "pid",
    )
    deadline = time.monotonic() + 10
    while b"ready" not in (folder / "log").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def record_of(folder: Path) -> Record:
    record = read_record(folder / "pid")
    assert record is not None
    return record


def test_pid_file_tells_a_process_from_a_later_one_with_its_pid(tmp_path: Path) -> None:
    process = run(tmp_path, "echo ready; sleep 60")
    record = record_of(tmp_path)
    assert record.process() is not None
    assert replace(record, start_ticks=record.start_ticks - 1).process() is None
    assert replace(record, start_ticks=record.start_ticks - 1).leftovers() == []
    assert replace(record, boot_id="another boot").process() is None
    process.kill()
    process.wait()
    assert record.process() is None


def test_file_that_is_no_record_counts_as_none(tmp_path: Path) -> None:
    for text in ("", "123", "{}", '{"pid": 1}'):
        (tmp_path / "pid").write_text(text)
        assert read_record(tmp_path / "pid") is None


def test_process_that_ends_when_asked_is_not_killed(tmp_path: Path) -> None:
    process = run(tmp_path, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    ask_to_stop(record_of(tmp_path), signal.SIGTERM)
    assert wait_until_gone(record_of(tmp_path), tmp_path / "pid", grace_s=10)
    assert process.wait() == 7
    assert not (tmp_path / "pid").exists()


def test_process_that_will_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo $! > child; echo ready; while :; do sleep 0.05; done"
    process = run(tmp_path, script)
    ask_to_stop(record_of(tmp_path), signal.SIGTERM)
    assert not wait_until_gone(record_of(tmp_path), tmp_path / "pid", grace_s=0.3)
    assert process.wait() == -signal.SIGKILL
    assert read_process(int((tmp_path / "child").read_text())) is None


def test_children_of_a_killed_process_are_found(tmp_path: Path) -> None:
    process = run(tmp_path, "sleep 60 & echo $! > child; echo ready; wait")
    record = record_of(tmp_path)
    process.kill()
    process.wait()
    child = int((tmp_path / "child").read_text())
    assert [left.pid for left in record.leftovers()] == [child]
    wait_until_gone(record, tmp_path / "pid", grace_s=0)
    assert read_process(child) is None


def test_process_hears_ctrl_c_though_its_parent_ignores_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = run(tmp_path, "grep -E 'Sig(Blk|Ign)' /proc/self/status; echo ready")
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.wait() == 0
    masks = [
        int(mask, 16) for mask in re.findall(r"Sig\w+:\t(\w+)", (tmp_path / "log").read_text())
    ]
    assert len(masks) == 2  # blocked, ignored
    assert not any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)
