import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignflow.artifacts import ArtifactStore
from alignflow.errors import StoreError
from alignflow.locks import FileLock

HOLD = """
import sys, time
from alignflow.artifacts import ArtifactStore

with ArtifactStore(sys.argv[1]).lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""

COMPUTE_ONCE = """
import sys, time
from pathlib import Path
from alignflow.artifacts import ArtifactStore

store, key, folder = ArtifactStore(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
while not (folder / "go").exists():
    time.sleep(0.01)
with store.lock(key):
    if store.find(key) is None:
        print("computed", flush=True)
        time.sleep(0.5)
        store.publish(folder / "output", kind="sft", key=key, code_version="v")
    else:
        print("reused", flush=True)
"""

WAIT = """
import sys
from alignflow.artifacts import ArtifactStore

with ArtifactStore(sys.argv[1]).lock(sys.argv[2], on_wait=lambda who: print(who, flush=True)):
    pass
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def holder(root: Path, key: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock until it is killed."""
    with python(HOLD, str(root), key, "60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_that_want_one_key_compute_it_once(
    tmp_path: Path, key: Callable[[str], str]
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output/a.txt").write_text("a")
    arguments = str(tmp_path / "store"), key("x"), str(tmp_path)
    racers = [python(COMPUTE_ONCE, *arguments) for _ in range(2)]
    (tmp_path / "go").touch()
    outcomes = [racer.communicate(timeout=60) for racer in racers]
    assert sorted(stdout for stdout, _ in outcomes) == ["computed\n", "reused\n"], outcomes


def test_a_waiter_is_told_who_holds_the_lock(
    store: ArtifactStore, tmp_path: Path, key: Callable[[str], str]
) -> None:
    told: list[str] = []
    with holder(tmp_path / "store", key("x")) as process:
        threading.Timer(0.5, process.kill).start()
        with store.lock(key("x"), on_wait=told.append):
            pass
    assert told
    assert told[0].startswith(f"process {process.pid} on ")


def test_the_lock_of_a_killed_process_is_free_at_once(
    store: ArtifactStore, tmp_path: Path, key: Callable[[str], str]
) -> None:
    with holder(tmp_path / "store", key("x")) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = time.monotonic()
        with store.lock(key("x")):
            assert time.monotonic() - begun < 5


def test_what_the_waiter_raises_ends_the_wait(
    store: ArtifactStore, tmp_path: Path, key: Callable[[str], str]
) -> None:
    def give_up(_holder: str) -> None:
        raise RuntimeError("stopped")

    with (
        holder(tmp_path / "store", key("x")),
        pytest.raises(RuntimeError, match="stopped"),
        store.lock(key("x"), on_wait=give_up),
    ):
        pytest.fail("the lock of another process was taken")


def test_locks_of_two_keys_do_not_meet(store: ArtifactStore, key: Callable[[str], str]) -> None:
    waited: list[str] = []
    with store.lock(key("x")), store.lock(key("y"), on_wait=waited.append):
        pass
    assert waited == []


def test_ctrl_c_ends_the_wait(tmp_path: Path, key: Callable[[str], str]) -> None:
    lock = ArtifactStore(str(tmp_path / "store")).lock(key("x"))
    with lock, python(WAIT, str(tmp_path / "store"), key("x")) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline().startswith("process ")
        waiter.send_signal(signal.SIGINT)
        _, errors = waiter.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors


def test_threads_of_one_process_exclude_each_other(
    store: ArtifactStore, key: Callable[[str], str]
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with store.lock(key("x")):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_the_lock_is_free_after_an_error_inside(
    store: ArtifactStore, key: Callable[[str], str]
) -> None:
    with pytest.raises(RuntimeError), store.lock(key("x")):
        raise RuntimeError
    waited: list[str] = []
    with store.lock(key("x"), on_wait=waited.append):
        pass
    assert waited == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        lock.release()
        assert FileLock(tmp_path / "lock").try_acquire()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_in_a_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be locked"):
        FileLock(tmp_path / "none/lock").acquire()
