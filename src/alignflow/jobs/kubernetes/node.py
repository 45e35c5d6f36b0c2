"""What stands by a job's processes in one pod: `python -m alignflow.jobs.kubernetes.node …`.

    python -m alignflow.jobs.kubernetes.node RUN_FOLDER ATTEMPT INDEX

The pod's first process starts it; `INDEX` is the pod's in its job.
"""

import os
import socket
import sys
from pathlib import Path

from alignflow.jobs.agent import Node, run_agent
from alignflow.jobs.kubernetes.config import KubernetesConfig
from alignflow.jobs.kubernetes.handle import KubernetesHandle
from alignflow.jobs.kubernetes.launcher import CONFIG_NAME
from alignflow.jobs.kubernetes.names import ADDRESS_VARIABLE, JOB_VARIABLE, port_of
from alignflow.jobs.run_folder import RunFolder

# Of the time that an evicted pod is given, what is left for the end of the job.
_END_S = 10.0


def main() -> None:
    """Run this pod's processes of one attempt to their end."""
    path, attempt, index = sys.argv[1:]
    folder = RunFolder(Path(path))
    config = KubernetesConfig.model_validate_json((folder.path / CONFIG_NAME).read_text())
    # What Kubeflow's runtime says to torchrun is said by the job itself.
    address = os.environ.get(ADDRESS_VARIABLE) or os.environ.get("PET_MASTER_ADDR", "127.0.0.1")
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]
    node = Node(
        attempt=int(attempt),
        rank=int(index),
        name=socket.gethostname(),
        address=address,
        port=port_of(os.environ[JOB_VARIABLE]),
        grace_s=config.termination_grace_s - _END_S,
    )
    raise SystemExit(run_agent(folder, KubernetesHandle, node))


if __name__ == "__main__":
    main()
