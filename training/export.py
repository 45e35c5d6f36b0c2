"""`python -m alignflow.training.export RUN_FOLDER`: a checkpoint to a Hugging Face folder."""

import shutil
from pathlib import Path

from alignflow.config import Config
from alignflow.errors import DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import read_config, run_job
from alignflow.training.checkpoints import recorded_digests
from alignflow.training.config import (
    AttributeModelConfig,
    PPOConfig,
    RewardModelConfig,
    SteerLM2Config,
    SteerLMConfig,
    TrainingJob,
)


class CheckpointExport(Config):
    """Config of the job; it takes as many processes as the training job had."""

    run_folder: Path
    """Run folder of the training job."""
    checkpoint: str
    """Name of the checkpoint in it, such as `step-00000100`."""


def export(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Load the checkpoint under the layout it was trained in and write the model.

    Raises:
        DataError: The folder isn't a whole checkpoint, or is damaged.
    """
    config = read_config(folder, spec, CheckpointExport)
    trained = RunFolder(config.run_folder)
    checkpoint = trained.checkpoints / config.checkpoint
    digests = recorded_digests(checkpoint)
    job = read_config(trained, trained.read_spec(), TrainingJob)
    from alignflow.training.attributes import AttributeScale
    from alignflow.training.megatron.model import Head
    from alignflow.training.megatron.run import build_run
    from alignflow.training.shared_hashing import find_damage
    from alignflow.training.steering import STEERING_FILE

    head: Head = "reward" if isinstance(job.stage, RewardModelConfig) else "lm"
    # One of PPO holds actor and critic.
    weights = checkpoint / "actor" if isinstance(job.stage, PPOConfig) else checkpoint
    scale = None
    if isinstance(job.stage, AttributeModelConfig):
        head, scale = "attributes", AttributeScale.load(trained.path)
    num_attributes = len(scale.names) if scale else 0
    with build_run(
        job.stage, job.model, head=head, num_steps=1, num_attributes=num_attributes
    ) as run:
        if damage := find_damage(checkpoint, digests):
            raise DataError(f"{checkpoint} is damaged: {damage}; export an earlier one.")
        progress = run.load_checkpoint(weights)
        run.export(folder.output)
        if scale and run.is_main:
            scale.save(folder.output)
        if isinstance(job.stage, SteerLMConfig | SteerLM2Config) and run.is_main:
            shutil.copyfile(trained.path / STEERING_FILE, folder.output / STEERING_FILE)
    return JobResult(metrics={"export/step": float(progress["step"])})


if __name__ == "__main__":
    run_job(export)
