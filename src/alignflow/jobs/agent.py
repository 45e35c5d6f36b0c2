"""What stands by a job's processes on one node of a cluster, started by what runs there first.

It ends them where it is told to by SIGTERM or by the run folder, and where a later attempt of the
job has begun, so that a node that was only taken for lost does no harm.
"""

import os
import signal
from dataclasses import dataclass
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
from alignflow.jobs.handle import JobHandle
from alignflow.jobs.processes import adopt_orphans
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind

_LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Node:
    """One node of an attempt, and how its processes find those of the others."""

    attempt: int
    rank: int
    """From 0, which is where rank 0 of the job is."""
    name: str
    address: str
    """Where rank 0 will listen, and at which port."""
    port: int
    grace_s: float = CANCEL_GRACE_S
    """Seconds that the job has after a SIGTERM for which the run folder gives no reason."""


def run_agent(folder: RunFolder, handle: type[JobHandle], node: Node) -> int:
    """Run this node's processes of one attempt to their end; returns the exit status to leave with.

    Args:
        folder: The run folder.
        handle: What the launcher has written about the job.
        node: This one.
    """
    spec = folder.read_spec()
    stop = Stop()
    watch = _Watch(folder, handle, node, stop)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        watch.request_stop()

    signal.signal(signal.SIGTERM, on_sigterm)
    if folder.requested_stop() is not None:  # before there was anybody to signal
        watch.request_stop()
    adopt_orphans()
    cores = len(os.sched_getaffinity(0)) // spec.processes_per_node
    end = run_processes(
        folder,
        spec,
        job_command(spec, folder, _rendezvous(spec.nodes, node)),
        environment_of_ranks(spec, folder, node.attempt, cores_per_process=cores),
        stop,
        look=watch.look,
    )
    if watch.is_superseded:
        say(f"attempt {node.attempt} on {node.name} gives way to a later one")
        return 1
    has_failed = end.code != 0 or stop.kind is not None
    if has_failed or node.rank == 0:  # where rank 0 is, which may not have written its result yet
        record_end(folder, spec, end, stop)
    return 1 if end.code else 0


def _rendezvous(num_nodes: int, node: Node) -> list[str]:
    if num_nodes == 1:
        return ["--standalone"]
    # Ranks are numbered by node, so that rank 0 is where it is waited for.
    return [
        f"--nnodes={num_nodes}",
        f"--node-rank={node.rank}",
        f"--master-addr={node.address}",
        f"--master-port={node.port}",
    ]


class _Watch:
    """Looks whether the job has to stop: somebody asks for it, or it already runs elsewhere."""

    def __init__(self, folder: RunFolder, handle: type[JobHandle], node: Node, stop: Stop) -> None:
        self.is_superseded = False
        self._folder = folder
        self._handle = handle
        self._node = node
        self._stop = stop
        self._next_look_s = 0.0

    def request_stop(self) -> None:
        """Stop the processes, as the run folder says or else as preempted."""
        request = self._folder.requested_stop()
        if request is None:
            self._stop.request(FailureKind.PREEMPTED, self._node.grace_s)
        else:
            self._stop.request(request.kind, request.grace_s)

    def look(self, running_s: float) -> None:
        """Stop the processes if that is asked for; at once if a later attempt has begun."""
        if running_s < self._next_look_s:
            return
        self._next_look_s = running_s + _LOOK_EVERY_S
        handle = self._handle.read(self._folder)
        if handle is not None and handle.attempt > self._node.attempt:
            self.is_superseded = True
            self._stop.request(FailureKind.NODE_LOST, grace_s=0)
        elif self._folder.requested_stop() is not None:
            self.request_stop()
