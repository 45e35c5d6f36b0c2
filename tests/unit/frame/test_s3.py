import signal
import subprocess
import sys
import time

import pytest

from alignflow.errors import ConfigError
from alignflow.s3 import S3Path


def test_a_path_is_a_bucket_and_a_key() -> None:
    path = S3Path.parse("s3://bucket/a/b/")
    assert (path.bucket, path.key) == ("bucket", "a/b")
    assert str(path / "c.txt") == "s3://bucket/a/b/c.txt"
    assert str(S3Path.parse("s3://bucket") / "c.txt") == "s3://bucket/c.txt"


@pytest.mark.parametrize("url", ["bucket/a", "s3:/bucket/a", "s3://", "s3://b ad/x"])
def test_what_is_no_s3_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="it looks like s3://bucket/folder"):
        S3Path.parse(url)


TRANSFER = """
import asyncio
from alignflow import s3

async def last_long(fs):
    print("begun", flush=True)
    await asyncio.sleep(60)

s3.run_parallel([last_long])
"""


def test_ctrl_c_does_not_wait_for_a_transfer() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRANSFER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - begun < 15
