"""What stands by a job's processes on one node: `python -m alignflow.jobs.slurm.node …`.

    python -m alignflow.jobs.slurm.node RUN_FOLDER ATTEMPT ADDRESS PORT

srun starts one on each node of the job; `ADDRESS` and `PORT` are where rank 0 will listen.
"""

import os
import sys
from pathlib import Path

from alignflow.jobs.agent import Node, run_agent
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.handle import SlurmHandle


def main() -> None:
    """Run this node's processes of one attempt to their end."""
    path, attempt, address, port = sys.argv[1:]
    node = Node(
        attempt=int(attempt),
        rank=int(os.environ["SLURM_NODEID"]),
        name=os.environ["SLURMD_NODENAME"],
        address=address,
        port=int(port),
    )
    raise SystemExit(run_agent(RunFolder(Path(path)), SlurmHandle, node))


if __name__ == "__main__":
    main()
