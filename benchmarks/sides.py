"""The two processes of a comparison, and how they are started alike."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from trl_environment import trl_python
from trl_settings import TrlOptions, requirement, trl_row, trl_script, trl_settings
from workload import Workload

from alignflow.config import Config
from alignflow.jobs.attempt import CPU_ENVIRONMENT
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.training.config import StageConfig, TrainingJob

_HERE = Path(__file__).parent


class RunReport(Config):
    """What a side says of a run."""

    steps: list[dict[str, float]]
    """Of each step what the side says of it, `loss` among it: means over the global batch."""
    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of all cores together: what the run takes of a machine that it shares."""
    peak_bytes: int
    """The most memory that the process has held since it was started."""

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [step["loss"] for step in self.steps]


class Side:
    """A process that trains, a run at a time."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        environment = {
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        }
        self._command, self._log = " ".join(command), log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env={**environment, **os.environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._is_first = True

    def run(self) -> RunReport:
        """Do the next run; the first one takes the start of the process along.

        Raises:
            SystemExit: The process failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._is_first:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        self._is_first = False
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{self._command} failed:\n{tail}")
        return RunReport.model_validate_json(line)

    def __enter__(self) -> Self:
        """Return the side itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def our_side(
    config: StageConfig,
    workload: Workload,
    folder: Path,
    *,
    steps_per_run: int,
    script: str = "our_side.py",
) -> Side:
    """Start our training job on the workload, by a script that holds it up between runs."""
    run_folder = RunFolder(folder)
    run_folder.create()
    job = TrainingJob(
        stage=_repeated(config, workload),
        model=workload.model,
        dataset=workload.dataset,
        # Its head and scale lie beside the weights.
        reward_model=workload.model if config.stage == "ppo" else None,
    )
    run_folder.begin_attempt(
        JobSpec(name="comparison", module="alignflow.training", config=job.model_dump(mode="json"))
    )
    command = [sys.executable, str(_HERE / script), str(folder), str(steps_per_run)]
    # As a job starts, but that threads wait as long as OpenMP has them by itself, as TRL's do: the
    # cores are for nothing else.
    environment = {k: v for k, v in CPU_ENVIRONMENT.items() if k != "GOMP_SPINCOUNT"}
    return Side(command, folder / "log.txt", environment)


def trl_side(
    config: StageConfig,
    options: TrlOptions,
    workload: Workload,
    folder: Path,
    *,
    steps_per_run: int,
) -> Side:
    """Start TRL on the workload."""
    folder.mkdir(parents=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for step in workload.steps:
            for record in step:
                print(json.dumps(trl_row(config, record)), file=file)
    settings = {
        "stage": config.stage,
        "model": str(workload.model),
        "rows": str(folder / "rows.jsonl"),
        "steps_per_run": steps_per_run,
        "config": trl_settings(config, options, folder),
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    python = trl_python(requirement(config))
    command = [str(python), str(_HERE / trl_script(config)), str(folder / "settings.json")]
    return Side(command, folder / "log.txt")


def _repeated(config: StageConfig, workload: Workload) -> StageConfig:
    """Return the config with as many steps as the workload has."""
    return config.replaced(num_epochs=len(workload.steps), max_steps=len(workload.steps))
