"""What stands by a job's processes on one node: `python -m alignflow.jobs.slurm.node …`.

    python -m alignflow.jobs.slurm.node RUN_FOLDER ATTEMPT ADDRESS PORT

srun starts one on each node of the job; `ADDRESS` and `PORT` are where rank 0 will listen.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from alignflow.jobs.attempt import (
    Stop,
    environment_of_ranks,
    job_command,
    record_end,
    run_processes,
    say,
)
from alignflow.jobs.base import CANCEL_GRACE_S
from alignflow.jobs.processes import adopt_orphans
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.handle import SlurmHandle
from alignflow.jobs.spec import FailureKind

_LOOK_EVERY_S = 2.0


def main() -> None:
    """Run this node's processes of one attempt to their end."""
    path, attempt, address, port = sys.argv[1:]
    folder = RunFolder(Path(path))
    spec = folder.read_spec()
    node_rank = int(os.environ["SLURM_NODEID"])
    stop = Stop()
    fence = _Fence(folder, int(attempt), stop)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        _request_stop(folder, stop)

    signal.signal(signal.SIGTERM, on_sigterm)
    if folder.requested_stop() is not None:  # before there was anybody to signal
        _request_stop(folder, stop)
    adopt_orphans()
    cores = len(os.sched_getaffinity(0)) // spec.processes_per_node
    end = run_processes(
        folder,
        spec,
        job_command(spec, folder, _rendezvous(spec.nodes, node_rank, address, port)),
        environment_of_ranks(spec, folder, int(attempt), cores_per_process=cores),
        stop,
        look=fence.look,
    )
    if fence.is_superseded:
        say(f"attempt {attempt} on {os.environ['SLURMD_NODENAME']} gives way to a later one")
        raise SystemExit(1)
    has_failed = end.code != 0 or stop.kind is not None
    if has_failed or node_rank == 0:  # where rank 0 is, which may not have written its result yet
        record_end(folder, spec, end, stop)
    raise SystemExit(1 if end.code else 0)


def _request_stop(folder: RunFolder, stop: Stop) -> None:
    request = folder.requested_stop()
    if request is None:
        stop.request(FailureKind.PREEMPTED, CANCEL_GRACE_S)
    else:
        stop.request(request.kind, request.grace_s)


def _rendezvous(nodes: int, node_rank: int, address: str, port: str) -> list[str]:
    if nodes == 1:
        return ["--standalone"]
    # Ranks are numbered by node, so that rank 0 is where it is waited for.
    return [
        f"--nnodes={nodes}",
        f"--node-rank={node_rank}",
        f"--master-addr={address}",
        f"--master-port={port}",
    ]


class _Fence:
    """Stops processes of a node that Slurm has lost, once their job runs elsewhere."""

    def __init__(self, folder: RunFolder, attempt: int, stop: Stop) -> None:
        self.is_superseded = False
        self._folder = folder
        self._attempt = attempt
        self._stop = stop
        self._next_look_s = 0.0

    def look(self, running_s: float) -> None:
        """Stop the processes at once if a later attempt has begun."""
        if running_s < self._next_look_s:
            return
        self._next_look_s = running_s + _LOOK_EVERY_S
        handle = SlurmHandle.read(self._folder)
        if handle is not None and handle.attempt > self._attempt:
            self.is_superseded = True
            self._stop.request(FailureKind.NODE_LOST, grace_s=0)


if __name__ == "__main__":
    main()
