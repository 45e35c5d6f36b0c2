"""A real S3 server (SeaweedFS) on this machine."""

import json
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from server_process import ServerProcess

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


def find_weed() -> str | None:
    """Return the server's program, where it is installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def s3_process(folder: Path, weed: str) -> tuple[S3Server, ServerProcess]:
    """Return a server and its process; admins may do all, readers may read `data`."""
    (folder / "s3.json").write_text(json.dumps({"identities": _identities()}))
    (folder / "data").mkdir()
    port = _free_ports(4)
    server = S3Server(f"http://127.0.0.1:{port[3]}")
    process = ServerProcess(
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
        health_url=f"{server.endpoint}/healthz",
        folder=folder,
    )
    return server, process


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
