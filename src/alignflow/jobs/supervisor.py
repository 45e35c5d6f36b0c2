"""The process that stands by a local job: `python -m alignflow.jobs.supervisor RUN_FOLDER`.

It detaches from whoever started it, writes `handle.json`, waits for the job's slots, starts the
job's processes, and leaves a record of the end even where they could not. None of the processes
outlives it. It imports no torch: it is small, and there as fast as Python.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from alignflow.jobs.attempt import (
    End,
    Stop,
    environment_of_ranks,
    job_command,
    now,
    record_end,
    run_processes,
    say,
)
from alignflow.jobs.base import CANCEL_GRACE_S
from alignflow.jobs.failures import failure_of
from alignflow.jobs.local import Handle
from alignflow.jobs.processes import adopt_orphans, processes_of_job
from alignflow.jobs.run_folder import ATTEMPT_MARK, RunFolder
from alignflow.jobs.slots import Holder, Slot, cpu_slots, gpu_slots, held_slots, num_cpu_slots
from alignflow.jobs.spec import FailureKind, JobSpec


def main() -> None:
    """Supervise one attempt of the job whose run folder is the only argument."""
    folder = RunFolder(Path(sys.argv[1]))
    stop = Stop()

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        request = folder.requested_stop()
        stop.request(FailureKind.CANCELLED, request.grace_s if request else CANCEL_GRACE_S)

    signal.signal(signal.SIGTERM, on_sigterm)
    handle = _detach(folder)
    try:
        _supervise(folder, handle, stop)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        folder.write_failure(failure_of(error, folder.log_tail(folder.launcher_log)))


def _detach(folder: RunFolder) -> Handle:
    """Go on in a child of init, in a session of its own, with the handle on disk.

    The process that was started exits when that is done: its exit code tells the submitter, and
    leaves nobody a zombie to reap.
    """
    is_ready, ready = os.pipe()
    if os.fork() > 0:
        os.close(ready)
        os._exit(0 if os.read(is_ready, 1) else 1)
    os.setsid()
    before = Handle.read(folder)
    handle = Handle.of_this_process(attempt=before.attempt + 1 if before else 1)
    handle.write(folder)
    say(f"{ATTEMPT_MARK}{handle.attempt}, {now()}, pid {handle.pid} on {handle.host}")
    os.write(ready, b"1")
    _close_inherited_files()
    return handle


def _close_inherited_files() -> None:
    """Close all but stdin, stdout and stderr; the lock of the submission is among the rest."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):  # the descriptor that listed the folder is closed by now
                os.close(int(name))


def _supervise(folder: RunFolder, handle: Handle, stop: Stop) -> None:
    spec = folder.read_spec()
    adopt_orphans()
    slots, count = (gpu_slots(), spec.gpus_per_node) if spec.gpus_per_node else (cpu_slots(), 1)

    def on_wait(what: str) -> None:
        nonlocal handle
        folder.beat()
        if handle.note != (note := f"waiting for {what}"):
            handle = handle.replaced(note=note)
            handle.write(folder)
            say(note)

    holder = Holder(spec.name, handle.pid, handle.start_ticks)
    with held_slots(
        slots, count, holder, on_wait=on_wait, is_stopped=lambda: stop.kind is not None
    ) as held:
        if held is None:
            record_end(folder, spec, End(), stop)
            return
        note = f"running as attempt {handle.attempt} on {', '.join(slot.name for slot in held)}"
        handle = handle.replaced(is_pending=False, note=note)
        handle.write(folder)
        end = run_processes(
            folder,
            spec,
            job_command(spec, folder),
            job_environment(spec, folder, handle, held),
            stop,
            look=lambda running_s: _keep_to_time_limit(spec, stop, running_s),
            others=lambda: processes_of_job(folder.path),
        )
        record_end(folder, spec, end, stop)


def _keep_to_time_limit(spec: JobSpec, stop: Stop, running_s: float) -> None:
    if spec.time_limit_s is not None and running_s > spec.time_limit_s:
        stop.request(FailureKind.TIME_LIMIT, CANCEL_GRACE_S)


def job_environment(
    spec: JobSpec, folder: RunFolder, handle: Handle, held: Sequence[Slot]
) -> dict[str, str]:
    """Return the environment of the job's processes, which have the slots to themselves."""
    sharers = spec.processes_per_node * num_cpu_slots()
    cores_per_process = len(os.sched_getaffinity(0)) // sharers
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of nvidia-smi, by which slots are numbered
        **environment_of_ranks(spec, folder, handle.attempt, cores_per_process=cores_per_process),
        "CUDA_VISIBLE_DEVICES": ",".join(slot.device for slot in held if slot.kind == "gpu"),
    }


if __name__ == "__main__":
    main()
