"""The whole story on servers of its own, by the commands that a team uses.

A file lands on S3 and a run starts by itself, passes the gate, and is approved in a browser; the
champion moves, and back again; a worse file is refused; the champion leads back to its file.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import s3fs
import yaml
from browser import CHROMIUM
from prefect_page import approve_in_browser
from prefect_server import wait_for
from tiny_recipe import WORDS, write_lines, write_tiny_recipe

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

MODEL = "tiny-assistant"
INCOMING = "s3://alignflow/incoming"
HTTP_TIMEOUT_S = 120
ALIGNFLOW = str(Path(sys.executable).with_name("alignflow"))


@dataclass(frozen=True)
class Team:
    """A shell that has the addresses and passwords of a stack."""

    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str, expected: int = 0) -> str:
        done = subprocess.run(
            [ALIGNFLOW, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == expected, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """Keep a command going in the background."""
        with (self.folder / "background.log").open("ab") as log:
            process = subprocess.Popen(
                [ALIGNFLOW, *arguments],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)

    def upload(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_lines(self.folder / name, rows)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
        key, secret, endpoint = (self.environment[name] for name in names)
        s3 = s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=endpoint)
        s3.put_file(str(self.folder / name), f"{INCOMING}/{name}")

    def prefect(self, path: str, body: dict[str, Any]) -> Any:
        account = httpx.BasicAuth(*self.environment["PREFECT_API_AUTH_STRING"].split(":"))
        url = f"{self.environment['PREFECT_API_URL']}{path}"
        return (
            httpx.post(url, json=body, auth=account, timeout=HTTP_TIMEOUT_S)
            .raise_for_status()
            .json()
        )

    def runs(self, *states: str) -> list[str]:
        """The ids of the pipeline's runs that are in one of the states."""
        found = self.prefect(
            "/flow_runs/filter",
            {
                "flows": {"name": {"any_": ["align"]}},
                "flow_runs": {"state": {"name": {"any_": states}}},
            },
        )
        return [run["id"] for run in found]

    def champion(self) -> str | None:
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        account = httpx.BasicAuth(*(self.environment[name] for name in names))
        answer = httpx.get(
            f"{self.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/get",
            params={"name": MODEL},
            auth=account,
            timeout=HTTP_TIMEOUT_S,
        )
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        aliases = answer.raise_for_status().json()["registered_model"].get("aliases", [])
        return {alias["alias"]: alias["version"] for alias in aliases}.get("champion")


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with tempfile.TemporaryDirectory() as scratch:
        # PostgreSQL isn't run by root, and the user that runs it then has to get there.
        Path(scratch).chmod(0o755)
        with started(Path(scratch)) as team:
            yield team


@contextmanager
def started(folder: Path) -> Iterator[Team]:
    shell = Team(folder, {})
    prefect, mlflow, postgres = free_ports(3)
    ports = {"prefect": prefect, "mlflow": mlflow, "postgres": postgres, "s3": free_s3_port()}
    options = [f"--{name}-port={port}" for name, port in ports.items()]
    try:
        shell.run("up", "--full", *options)
        lines = shell.run("env").splitlines()
        pairs = (line.removeprefix("export ").split("=", 1) for line in lines)
        yield Team(folder, {name: value.strip("'") for name, value in pairs})
    finally:
        shell.run("down")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_s3_port() -> int:
    """The first of four ports that are free, with those 10000 above them."""
    for first in range(8400, 9000, 4):
        ports = [first + n + above for n in range(4) for above in (0, 10_000)]
        if all(map(is_free, ports)):
            return first
    raise AssertionError("no port for S3 is free")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def pairs(seed: int, count: int, *, share_right: float) -> list[dict[str, Any]]:
    """Pairs of which a share prefers the answer that ends with a full stop, the others not."""
    pick = random.Random(seed)

    def text(number: int) -> str:
        return " ".join(pick.choices(WORDS, k=number))

    rows = []
    for number in range(count):
        ends = (".", "!") if pick.random() < share_right else ("!", ".")
        chosen, rejected = (f"{text(5)}{end}" for end in ends)
        prompt = f"request {seed} {number} {text(3)}?"
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def recipe(folder: Path, model: Path) -> Path:
    """The tiny recipe on S3, whose gate wants the preference learned, and asks a person."""
    folder.mkdir()
    path = write_tiny_recipe(folder, model)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["store"] = "s3://alignflow/store"
    settings["data"]["preferences"] = {"sources": [f"{INCOMING}/*.jsonl"], "held_out_share": 0.25}
    settings["dpo"] |= {"num_epochs": 10, "learning_rate": 3e-3}
    settings["gate"]["rules"]["learned"] = {
        "score": "preference/implicit_accuracy",
        "at_least": 0.8,
    }
    settings["registry"] |= {"promotion": "approval"}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def asking(team: Team, *, known: Collection[str] = ()) -> str:
    """Wait for a further run that asks a person, and return its id."""

    def look() -> str | None:
        assert not team.runs("Failed", "Crashed")
        return next((run for run in team.runs("Suspended") if run not in known), None)

    return wait_for(look, 900)


def test_from_a_file_on_s3_to_a_champion_and_back(
    team: Team, tiny_model: Path, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("ALIGNFLOW_PICTURES", tmp_path))
    path = recipe(team.folder / "recipe", tiny_model)
    team.upload("good.jsonl", pairs(1, 64, share_right=1.0))
    team.run("deploy", "--recipe", str(path))
    with team.running("watch", "--recipe", "tiny", "--quiet-s", "1", "--every-s", "1"):
        # A run starts by itself on what is there, passes the gate, and asks a person.
        first = asking(team)
        assert team.champion() is None
        server = team.environment["PREFECT_API_URL"].removesuffix("/api")
        account = team.environment["PREFECT_API_AUTH_STRING"]
        approve_in_browser(
            server, account, first, by="ada", note="read fifty answers", pictures=pictures
        )
        wait_for(lambda: team.champion() == "1", 300)

        # More of the same lands; this time the answer is given at a terminal.
        team.upload("more.jsonl", pairs(2, 64, share_right=1.0))
        second = asking(team, known=[first])
        team.run("approve", second, "--note", "as good", "--by", "grace")
        assert team.champion() == "2"
        wait_for(lambda: second in team.runs("Completed"), 300)
        team.run("rollback", MODEL, "--note", "it rambles")
        assert team.champion() == "1"

        # A worse file: its pairs contradict what was preferred before.
        team.upload("worse.jsonl", pairs(3, 384, share_right=0.5))
        (refused,) = wait_for(lambda: team.runs("Failed", "Crashed"), 900)
        assert refused not in (first, second)
    assert team.champion() == "1"
    assert len(team.runs("Completed")) == 2
    shown = team.run("lineage", f"models:/{MODEL}@champion", "--store", "s3://alignflow/store")
    assert f"{INCOMING}/good.jsonl" in shown
    assert "worse.jsonl" not in shown
    decisions = json.loads(team.run("decisions", MODEL, "--format", "json"))
    assert [(each["action"], each["version"], each["by"]) for each in decisions[:2]] == [
        ("promoted", "1", "ada"),
        ("promoted", "2", "grace"),
    ]
