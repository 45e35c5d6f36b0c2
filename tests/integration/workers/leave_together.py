"""The first of two ranks is told to stop within its work, the second has done its own by then."""

import sys

import torch.distributed as dist

from alignflow.jobs import worker
from alignflow.training.collectives import rank
from alignflow.training.forward import leaving_together


def work() -> None:
    if rank() == 0:
        worker._stop.set()
        worker.raise_if_stop_requested()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    leaving_together(lambda: None)
    try:
        leaving_together(work)
    except worker.JobStoppedError:
        dist.destroy_process_group()
        sys.exit(0)
    sys.exit(1)
