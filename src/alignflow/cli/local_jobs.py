"""Jobs that a command runs on this machine, outside a pipeline."""

import hashlib
import json
from pathlib import Path
from typing import Any

# Raised by a commit that changes what these jobs make: `alignflow.artifacts.code_version`.
_REVISION = 5


def run_module(
    stage: str,
    module: str,
    config: dict[str, Any],
    identity: Any,
    workspace: Path,
    *,
    num_processes: int = 1,
) -> Path:
    """Run a module as a job and return its output; the same identity is not computed twice."""
    from rich.console import Console

    from alignflow.artifacts import code_version
    from alignflow.jobs.local import LocalLauncher
    from alignflow.jobs.run_folder import RunFolder
    from alignflow.jobs.slots import gpu_slots
    from alignflow.jobs.spec import JobSpec
    from alignflow.jobs.wait import cancel_on_exit, wait_for
    from alignflow.terminal import make_display

    determines = [identity, module, code_version(_REVISION)]
    digest = hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()
    folder = RunFolder(workspace / "jobs" / f"{stage}-{digest[:12]}")
    spec = JobSpec(
        name=folder.path.name,
        module=module,
        config=config,
        processes_per_node=num_processes,
        gpus_per_node=num_processes if gpu_slots() else 0,
        env={"HF_HUB_OFFLINE": "1"},
    )
    with make_display(False, Console(stderr=True)) as display:
        display.plan([stage])
        display.started(stage)
        job = LocalLauncher().submit(spec, folder)

        def follow(lines: list[dict[str, Any]]) -> None:
            for line in lines:
                display.progress(stage, line)

        try:
            with cancel_on_exit(job):
                wait_for(job, folder, on_metrics=follow)
        except BaseException:
            display.finished(stage, "failed")
            raise
        display.finished(stage, "done")
    return folder.output
