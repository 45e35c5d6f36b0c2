import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from alignflow.jobs.processes import (
    JOB_VARIABLE,
    Process,
    descendants,
    kill_all,
    processes_of_job,
    read_process,
    this_machine,
)

# Starts a child in a session of its own and waits for it.
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(99)"],
    start_new_session=True)
"""


def test_own_process_is_read() -> None:
    process = read_process(os.getpid())
    assert process is not None
    assert (process.pid, process.parent) == (os.getpid(), os.getppid())
    assert process.session == os.getsid(0)
    assert process.is_alive()


def test_pid_that_was_used_again_is_another_process() -> None:
    process = read_process(os.getpid())
    assert process is not None
    before = Process(process.pid, process.parent, process.session, process.start_ticks - 1)
    assert not before.is_alive()
    before.send(signal.SIGKILL)  # would end this test run


def test_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 20
    while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert read_process(child.pid) is None
    child.wait()


def test_job_is_told_by_its_environment_across_sessions() -> None:
    folder = Path("/runs/sft-12ab")
    environment = {**os.environ, JOB_VARIABLE: str(folder)}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        found = processes_of_job(folder)
        assert len(found) == 2
        assert len({process.session for process in found}) == 2
        assert {process.pid for process in descendants(parent.pid)} < {p.pid for p in found}
        assert processes_of_job(Path("/runs/sft-12")) == []
        assert kill_all(lambda: processes_of_job(folder)) == []
        assert not any(process.is_alive() for process in found)


def test_machine_is_this_boot_and_pid_namespace() -> None:
    machine = this_machine()
    assert machine.pid_namespace.startswith("pid:[")
    assert len(machine.boot_id) == 36
