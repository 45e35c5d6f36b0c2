"""docker-compose.yml: that it holds together, and is the stack of `alignflow up` in containers."""

import json
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alignflow.stack import environment
from alignflow.stack.config import StackConfig
from alignflow.stack.credentials import credentials, new_credentials
from alignflow.stack.objects import ObjectStore, identities

ROOT = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
HADOLINT = Path(sys.executable).with_name("hadolint")
DOCKERFILES = sorted((ROOT / "deployments" / "docker").glob("Dockerfile*"))

# What only a container has, or needs.
IN_CONTAINERS = {"PREFECT_UI_STATIC_DIRECTORY", "PREFECT_WORKER_WEBSERVER_HOST"}


class Composed(NamedTuple):
    """The file as compose understands it, and the credentials that it was given."""

    file: dict[str, Any]
    values: dict[str, str]

    def names(self, service: str) -> set[str]:
        return set(self.file["services"][service]["environment"]) - IN_CONTAINERS

    def config(self, name: str) -> str:
        return str(self.file["configs"][name]["content"])


def compose(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    files = ["--project-directory", str(ROOT), "--env-file", str(env_file)]
    line = [str(COMPOSE), *files, "config", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env={})


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Composed:
    env_file = tmp_path_factory.mktemp("compose") / ".env"
    values = credentials(env_file)
    done = compose(env_file, "--format", "json")
    assert done.returncode == 0, done.stderr
    return Composed(json.loads(done.stdout), values)


@pytest.mark.parametrize("name", sorted(new_credentials()))
def test_compose_refuses_to_start_without_a_credential(name: str, tmp_path: Path) -> None:
    values = {**new_credentials(), name: ""}
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{each}={value}\n" for each, value in values.items()))
    done = compose(env_file, "--quiet")
    assert done.returncode != 0
    assert f"required variable {name} is missing a value: run make env first" in done.stderr


def test_example_names_every_credential() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines if not line.startswith("#")]
    assert names == list(new_credentials())


def test_servers_have_the_variables_of_the_native_stack(composed: Composed) -> None:
    values = composed.values
    prefect = environment.prefect_server(values, database_url="", url="")
    assert composed.names("prefect") == set(prefect)
    mlflow = environment.mlflow_server(
        values, database_url="", artifacts="", auth_config="", allowed_hosts=""
    )
    assert composed.names("mlflow") == {*mlflow, *environment.mlflow_s3(values, "")}
    clients = {*environment.QUIET, *environment.clients(values, StackConfig(full=True))}
    assert composed.names("worker") == composed.names("bootstrap") == clients


def test_servers_have_the_values_of_the_native_stack(composed: Composed) -> None:
    values = composed.values
    services = composed.file["services"]
    url = environment.postgres_url
    assert services["prefect"]["environment"] == {
        **environment.prefect_server(
            values,
            database_url=url(values, "asyncpg", "postgres", "prefect"),
            url="http://127.0.0.1:4200",
        ),
        "PREFECT_UI_STATIC_DIRECTORY": "/tmp/prefect-pages",
    }
    assert services["mlflow"]["environment"] == {
        **environment.mlflow_server(
            values,
            database_url=url(values, "psycopg2", "postgres", "mlflow"),
            artifacts="s3://mlflow/artifacts",
            auth_config="/etc/alignflow/accounts.ini",
            allowed_hosts=environment.allowed_hosts("mlflow"),
        ),
        **environment.mlflow_s3(values, "http://seaweedfs:8333"),
    }
    native = environment.clients(values, StackConfig(full=True))
    worker = services["worker"]["environment"]
    assert all(worker[name] == value for name, value in native.items() if "http:" not in value)


def test_accounts_are_those_of_the_native_stack(composed: Composed) -> None:
    assert json.loads(composed.config("s3-accounts")) == identities(composed.values)
    url = environment.postgres_url(composed.values, "psycopg2", "postgres", "mlflow_accounts")
    given, native = ConfigParser(), ConfigParser()
    given.read_string(composed.config("mlflow-accounts"))
    native.read_string(environment.mlflow_accounts(url))
    assert dict(given["mlflow"]) == dict(native["mlflow"])


def test_object_store_is_started_as_the_native_one(composed: Composed) -> None:
    native = ObjectStore(folder=Path("/native"), port=8333, credentials=composed.values).command()
    command = composed.file["services"]["seaweedfs"]["command"]
    differ = ("-dir=", "-s3.config=", "-s3.ip.bind=")
    assert set(command[1:]) >= {flag for flag in native[1:] if not flag.startswith(differ)}
    extra = set(command[1:]) - set(native[1:])
    assert extra == {"-dir=/data", "-s3.config=/etc/alignflow/s3.json", "-s3.ip.bind=0.0.0.0"}


def every_service(check: Callable[[dict[str, Any]], bool]) -> Callable[[Composed], None]:
    def test(composed: Composed) -> None:
        services = composed.file["services"]
        assert [name for name, service in services.items() if not check(service)] == []

    return test


test_ports_are_open_on_this_machine_only = every_service(
    lambda service: all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
)
test_images_are_pinned = every_service(
    lambda service: service["image"].partition(":")[2] not in ("", "latest")
)
test_no_service_gains_rights = every_service(
    lambda service: (
        service["cap_drop"] == ["ALL"]
        and service["security_opt"] == ["no-new-privileges:true"]
        and service.get("user", "alignflow") != "root"
    )
)
test_what_lives_on_is_checked_and_what_ends_is_waited_for = every_service(
    lambda service: ("healthcheck" in service) == (service["restart"] == "unless-stopped")
)


@pytest.mark.parametrize("path", DOCKERFILES, ids=[path.name for path in DOCKERFILES])
def test_dockerfile_passes_its_linter(path: Path) -> None:
    done = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=[path.name for path in DOCKERFILES])
def test_image_runs_as_a_user_without_rights(path: Path) -> None:
    users = [line for line in path.read_text().splitlines() if line.startswith("USER ")]
    assert users[-1] == "USER 10001"
