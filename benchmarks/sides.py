"""The two processes of a comparison, and how they are started alike."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from trl_environment import trl_python
from workload import Workload

from alignflow.config import Config
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.training.config import StageConfig, TrainingJob

_HERE = Path(__file__).parent


class RunReport(Config):
    """What a side says of a run."""

    losses: list[float]
    """Of each step, a mean over the global batch."""
    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of all cores together: what the run takes of a machine that it shares."""
    peak_bytes: int
    """The most memory that the process has held since it was started."""


class TrlOptions(Config):
    """How TRL is to compute a step; what it computes is the stage's config."""

    batch: int
    """Rows (SFT) or pairs at a time; a step takes as many parts as it needs."""
    padding_free: bool = False
    """Flatten the rows of a part into one, SFT only."""

    def __str__(self) -> str:
        """Name the options in a table."""
        return f"{self.batch} at a time" + (", padding-free" if self.padding_free else "")


class Side:
    """A process that trains, a run at a time."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        environment = {
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
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
    return Side(command, folder / "log.txt")


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
                print(json.dumps(_as_trl_takes_it(record)), file=file)
    settings = {
        "stage": config.stage,
        "model": str(workload.model),
        "rows": str(folder / "rows.jsonl"),
        "steps_per_run": steps_per_run,
        "config": _trl_config(config, options, folder),
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    command = [str(trl_python()), str(_HERE / "trl_side.py"), str(folder / "settings.json")]
    return Side(command, folder / "log.txt")


def _repeated(config: StageConfig, workload: Workload) -> StageConfig:
    """Return the config with as many steps as the workload has."""
    return config.replaced(num_epochs=len(workload.steps), max_steps=len(workload.steps))


def _trl_config(config: StageConfig, options: TrlOptions, folder: Path) -> dict[str, Any]:
    """Return TRL's name for everything in the config of a stage."""
    common = {
        "output_dir": str(folder),
        "max_length": config.max_length,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": config.global_batch_size // options.batch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": 0,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_eps,
        "max_grad_norm": config.clip_grad,
        "optim": "adamw_torch_fused",
        "bf16": config.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if config.stage == "sft":
        return {**common, "assistant_only_loss": True, **_flattened(options)}
    if config.stage == "dpo":
        return {**common, "beta": config.beta, "precompute_ref_log_probs": True}
    return common


def _flattened(options: TrlOptions) -> dict[str, Any]:
    # Without packing TRL takes padding-free rows only if nothing has to be cut.
    return {"padding_free": True, "max_length": None} if options.padding_free else {}


def _as_trl_takes_it(record: dict[str, Any]) -> dict[str, Any]:
    if "messages" in record:
        return {"messages": record["messages"]}
    answers = {
        name: [{"role": "assistant", "content": record[name]}] for name in ("chosen", "rejected")
    }
    return {"prompt": record["prompt"], **answers}
