"""A job that counts: one step after the other, resuming behind the last one it saved."""

import os
import signal
import subprocess
import sys
import time

from alignflow.errors import DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobResult, JobSpec
from alignflow.jobs.worker import JobStoppedError, run_job, stop_requested


class DivergedError(RuntimeError):
    kind = FailureKind.DIVERGED


FAILURES = {
    "error": ValueError("the cat sat on the keyboard"),
    "data": DataError("train/part-00000.parquet: no rows; give a set that holds some."),
    "diverged": DivergedError("The loss is NaN at step 2."),
    "connection": RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
}


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    rank = os.environ["RANK"]
    print(f"rank {rank} of {os.environ['WORLD_SIZE']}")
    if spec.config.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # A helper in a session of its own, as deaf as this process.
        helper = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
        )
        subprocess.Popen([sys.executable, "-c", helper], start_new_session=True)
    saved = folder.checkpoints / f"rank-{rank}"
    first = int(saved.read_text()) + 1 if saved.exists() else 0
    step_s = spec.config.get("resumed_step_s" if first else "step_s", 0.02)
    for step in range(first, spec.config["num_steps"]):
        if rank == "0":
            folder.append_metrics({"step": step, "attempt": os.environ["ALIGNFLOW_JOB_ATTEMPT"]})
        unfinished = folder.path / f"rank-{rank}.unfinished"  # a kill leaves the last one whole
        unfinished.write_text(str(step))
        unfinished.replace(saved)
        time.sleep(step_s)
        if stop_requested():
            raise JobStoppedError(f"Stopped after step {step}.")
    while len(list(folder.checkpoints.iterdir())) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.02)  # a rank that ends stops those that have just started
    time.sleep(spec.config.get("delay_s", {}).get(rank, 0))
    if name := spec.config.get("fail", {}).get(rank):
        raise FAILURES[name]
    return JobResult(
        metrics={"count": float(spec.config["num_steps"])},
        details={
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES")
            if name in os.environ
        },
    )


if __name__ == "__main__":
    run_job(main)
