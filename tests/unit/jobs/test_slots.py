import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from alignflow.errors import ConfigError
from alignflow.jobs.processes import JOB_VARIABLE, SUPERVISOR_VARIABLE, read_process
from alignflow.jobs.slots import Holder, Slot, cpu_slots, gpu_slots, held_slots

GPUS = [Slot("gpu", f"gpu-{index}", str(index)) for index in range(2)]


@pytest.fixture
def slots_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    return tmp_path / "slots"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\nprintf '0, GPU-aaaa\\n1, GPU-bbbb\\n'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def holder(job: str) -> Holder:
    own = read_process(os.getpid())
    assert own is not None
    return Holder(job, own.pid, own.start_ticks)


@contextmanager
def holding(job: str, count: int, *, patience_s: float = 20.0) -> Iterator[list[Slot] | None]:
    deadline = time.monotonic() + patience_s
    with held_slots(
        GPUS,
        count,
        holder(job),
        on_wait=lambda what: None,
        is_stopped=lambda: time.monotonic() > deadline,
    ) as held:
        yield held


@pytest.mark.usefixtures("slots_folder")
def test_taken_slot_is_free_again_after_the_block() -> None:
    with holding("a", 2) as all_of_them, holding("b", 1, patience_s=0) as none:
        assert all_of_them == GPUS
        assert none is None
    with holding("b", 1) as one:
        assert one == GPUS[:1]


@pytest.mark.usefixtures("slots_folder")
def test_who_waits_is_told_for_whom() -> None:
    told: list[str] = []
    with (
        holding("a", 1),
        holding("b", 1),
        held_slots(GPUS, 1, holder("c"), on_wait=told.append, is_stopped=lambda: bool(told)),
    ):
        pid = os.getpid()
        assert told == [f"a free gpu slot, held by a (pid {pid}), b (pid {pid})"]


@pytest.mark.usefixtures("slots_folder")
def test_job_that_needs_many_is_not_passed_over() -> None:
    order: list[str] = []

    def run(job: str, count: int) -> None:
        with holding(job, count) as held:
            assert held is not None
            order.append(job)

    threads = [threading.Thread(target=run, args=item) for item in (("many", 2), ("few", 1))]
    with holding("first", 1):
        for thread in threads:
            thread.start()
            time.sleep(0.3)  # "many" is in line, with the other slot in hand, before "few" comes
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["many", "few"]


def test_orphans_of_the_last_holder_are_killed_and_its_next_attempt_is_not(
    slots_folder: Path,
) -> None:
    with holding("a", 2):
        pass
    last = Holder("a", pid=2**22 + 1, start_ticks=7)  # beyond the largest pid: long gone
    (slots_folder / "gpu-0").write_text(json.dumps(asdict(last)))
    job = {**os.environ, JOB_VARIABLE: "/runs/a"}
    of_last = {**job, SUPERVISOR_VARIABLE: f"{last.pid}.{last.start_ticks}"}
    with (
        subprocess.Popen(["sleep", "99"], env=of_last) as orphan,
        subprocess.Popen(["sleep", "99"], env=job) as next_supervisor,
    ):
        with holding("b", 1) as one:
            assert one == GPUS[:1]
            assert orphan.wait() == -signal.SIGKILL
            assert next_supervisor.poll() is None
        next_supervisor.kill()


def test_number_of_cpu_slots_comes_from_the_environment() -> None:
    assert [slot.name for slot in cpu_slots({})] == ["cpu-0"]
    assert len(cpu_slots({"ALIGNFLOW_CPU_SLOTS": "3"})) == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_number_of_cpu_slots_is_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="whole number from 1"):
        cpu_slots({"ALIGNFLOW_CPU_SLOTS": text})


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ({}, [("gpu-GPU-aaaa", "0"), ("gpu-GPU-bbbb", "1")]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [("gpu-GPU-bbbb", "1")]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, [("gpu-GPU-aaaa", "GPU-aaaa")]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_gpus_are_those_that_are_visible(
    visible: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    assert [(slot.name, slot.device) for slot in gpu_slots(visible)] == expected


def test_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert gpu_slots({}) == []


def test_folder_that_others_may_write_is_refused(slots_folder: Path) -> None:
    slots_folder.mkdir()
    slots_folder.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write here"), holding("a", 1):
        pass


def test_link_in_place_of_the_folder_is_refused(slots_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    slots_folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="others may write here"), holding("a", 1):
        pass


def test_folder_is_for_its_user_alone(slots_folder: Path) -> None:
    with holding("a", 1):
        assert slots_folder.stat().st_mode & 0o777 == 0o700
        assert (slots_folder / "gpu-0").stat().st_mode & 0o777 == 0o600
