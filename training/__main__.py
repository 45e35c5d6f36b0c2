"""What torchrun starts: `python -m alignflow.training RUN_FOLDER` trains one stage."""

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import read_config, run_job
from alignflow.training.config import (
    AttributeModelConfig,
    DPOConfig,
    PPOConfig,
    RewardModelConfig,
    SFTConfig,
    SteerLM2Config,
    SteerLMConfig,
    TrainingJob,
)


def train(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Run the stage that the job's config names.

    Raises:
        ConfigError: The config is no TrainingJob.
    """
    job = read_config(folder, spec, TrainingJob)
    # Imported here: they load torch and megatron, which a bad config needn't wait for.
    match job.stage:
        case SFTConfig() as config:
            from alignflow.training.stages import sft

            return sft.run(config, job, folder)
        case RewardModelConfig() as config:
            from alignflow.training.stages import reward_model

            return reward_model.run(config, job, folder)
        case DPOConfig() as config:
            from alignflow.training.stages import dpo

            return dpo.run(config, job, folder)
        case PPOConfig() as config:
            from alignflow.training.stages import ppo

            return ppo.run(config, job, folder)
        case AttributeModelConfig() as config:
            from alignflow.training.stages import attribute_model

            return attribute_model.run(config, job, folder)
        case SteerLMConfig() as config:
            from alignflow.training.stages import steerlm

            return steerlm.run(config, job, folder)
        case SteerLM2Config() as config:
            from alignflow.training.stages import steerlm2

            return steerlm2.run(config, job, folder)


if __name__ == "__main__":
    run_job(train)
