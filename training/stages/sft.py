"""Supervised fine-tuning: next-token loss on assistant turns."""

from torch import Tensor

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.batch import PackedBatch
from alignflow.training.config import SFTConfig, SteerLMConfig, TrainingJob
from alignflow.training.loop import Objective, Trainer
from alignflow.training.losses import SummedLoss, sft_loss
from alignflow.training.megatron.run import build_run
from alignflow.training.packing import pack
from alignflow.training.stages.data import StageData, load_stage_data


def run(config: SFTConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Fine-tune the model on demonstrations and write it to the output folder."""
    return fine_tune(config, job, folder, load_stage_data(config, job, folder))


def fine_tune(
    config: SFTConfig | SteerLMConfig, job: TrainingJob, folder: RunFolder, data: StageData
) -> JobResult:
    """Fine-tune the model on rows and write it to the output folder."""
    with build_run(config, job.model, head="lm", num_steps=data.order.num_steps) as policy:
        trainer = Trainer(
            policy,
            folder,
            config,
            Objective(_loss),
            order=data.order,
            train=data.feed(policy, data.train, pack),
            held_out=data.feed(policy, data.held_out, pack),
            validation_batches=data.validation_batches,
        )
        metrics = trainer.train()
        policy.export(folder.output)
    return JobResult(metrics=metrics, details=data.details(trainer.tokens_processed))


def _loss(logps_N: Tensor, batch: PackedBatch) -> SummedLoss:
    return sft_loss(logps_N)
