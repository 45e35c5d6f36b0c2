"""Whether the process that works on a flow run lives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignflow.jobs.processes import read_process
from alignflow.tasks.liveness import liveness, marked_process

_KILLED = """
import os, signal, sys
from pathlib import Path
from alignflow.tasks.liveness import marked_process
with marked_process(Path(sys.argv[1]), "run"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_own_process_lives_and_leaves_no_mark(tmp_path: Path) -> None:
    assert liveness(tmp_path, "run") == "unknown"
    with marked_process(tmp_path, "run"):
        assert liveness(tmp_path, "run") == "alive"
        assert liveness(tmp_path, "other") == "unknown"
    assert liveness(tmp_path, "run") == "unknown"


def test_process_that_was_killed_is_dead(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert liveness(tmp_path, "run") == "dead"


@pytest.mark.parametrize("key", ["host", "boot_id", "pid_namespace"])
def test_pids_of_another_machine_tell_nothing(tmp_path: Path, key: str) -> None:
    with marked_process(tmp_path, "run"):
        (path,) = (tmp_path / "flow-runs").iterdir()
        mark = json.loads(path.read_text())
        assert mark["pid"] == os.getpid()
        path.write_text(json.dumps({**mark, key: "elsewhere"}))
        assert liveness(tmp_path, "run") == "unknown"
        # A pid that another process has by now.
        process = read_process(os.getpid())
        assert process is not None
        path.write_text(json.dumps({**mark, "start_ticks": process.start_ticks + 1}))
        assert liveness(tmp_path, "run") == "dead"
