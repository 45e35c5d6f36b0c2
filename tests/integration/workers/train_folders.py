"""Trains the run folders given on the command line, one after another, in the same processes."""

import os
import sys
from pathlib import Path

import torch.distributed as dist

from alignflow.jobs.run_folder import RunFolder
from alignflow.training.__main__ import train

if __name__ == "__main__":
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for path in sys.argv[1:]:
        folder = RunFolder(Path(path))
        # Each run leaves its process group, and the store of torchrun can't make a second one.
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder.path}/rendezvous",
            rank=rank,
            world_size=world_size,
        )
        result = train(folder, folder.read_spec())
        if rank == 0:
            folder.write_result(result)
