"""The server that a run brings where the settings name none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

_USE = """
import os
from alignflow.tasks.prefect_server import is_temporary, start_prefect
server = start_prefect()
server.use()
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
with get_client(sync_client=True) as client:
    assert client.api_healthcheck() is None
assert str(client.api_url).rstrip("/") == PREFECT_API_URL.value()
assert is_temporary(PREFECT_API_URL.value())
print(server._process.pid)
"""
_NAMED = """
from alignflow.tasks.prefect_server import is_temporary, start_prefect
assert start_prefect() is None
assert not is_temporary("http://somewhere/api")
"""
_FAIL = """
from alignflow.errors import ConfigError
from alignflow.tasks.prefect_server import start_prefect
try:
    start_prefect().use()
except ConfigError as error:
    print(error)
"""


def run(code: str, home: Path, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_clients_use_the_server_and_it_ends_with_the_process(tmp_path: Path) -> None:
    pid = run(_USE, tmp_path)
    assert not Path("/proc", pid).exists()


def test_a_server_of_the_settings_is_enough(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(
        'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "http://somewhere/api"\n'
    )
    run(_NAMED, tmp_path)


def test_why_a_server_does_not_start_is_told_in_a_sentence(tmp_path: Path) -> None:
    told = run(
        _FAIL,
        tmp_path,
        PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/at/all.db",
    )
    assert told.startswith("Prefect's temporary server did not start (")
    assert "unable to open database file" in told
    assert "\n" not in told
