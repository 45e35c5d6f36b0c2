"""Direct preference optimization against the model that training starts from."""

import math
from functools import partial

from torch import Tensor

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.config import DPOConfig, Precision, TrainingJob
from alignflow.training.data import PREFERENCES
from alignflow.training.errors import ReferenceMismatchError
from alignflow.training.loop import Metrics, Objective, Trainer
from alignflow.training.losses import PairLogps, SummedLoss, dpo_loss
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.pairs import ReferencedPairBatch, pack_pairs, pack_referenced_pairs
from alignflow.training.reference import ReferencePass, answer_logps, reference_logps
from alignflow.training.stages.data import StageData, load_data
from alignflow.training.watch import check_reward_hacking

_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}
"""How far the first loss may be from ln 2."""


def run(config: DPOConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train the policy on preference pairs and write it to the output folder."""
    data = load_data(job, folder, PREFERENCES)
    with build_run(config, job.model, head="lm", num_steps=data.order.num_steps) as policy:
        reference = _reference(policy, data, folder)
        trainer = Trainer(
            policy,
            folder,
            config,
            Objective(
                partial(pair_loss, beta=config.beta),
                check_first_step=partial(check_first_loss, precision=config.precision),
                check_validations=partial(
                    check_reward_hacking,
                    max_accuracy_drop=config.max_accuracy_drop,
                    patience=config.accuracy_drop_validations,
                ),
            ),
            order=data.order,
            train=data.feed(
                policy,
                data.train,
                partial(pack_referenced_pairs, reference_logps=reference["train"]),
            ),
            held_out=data.feed(
                policy,
                data.held_out,
                partial(pack_referenced_pairs, reference_logps=reference["held_out"]),
            ),
            validation_batches=data.validation_batches,
        )
        metrics = trainer.train()
        policy.export(folder.output)
    return JobResult(metrics=metrics, details=data.details(trainer.tokens_processed))


def pair_loss(logps_N: Tensor, batch: ReferencedPairBatch, *, beta: float) -> SummedLoss:
    """Return the DPO loss of a microbatch.

    Args:
        logps_N: [N] float32, the policy's log-probabilities of the scored tokens.
        batch: The pairs, with the reference's log-probabilities.
        beta: Pull towards the reference.
    """
    logps_R = answer_logps(logps_N, batch)
    return dpo_loss(
        PairLogps(logps_R[batch.chosen_rows_B], logps_R[batch.rejected_rows_B]),
        PairLogps(batch.reference_chosen_B, batch.reference_rejected_B),
        beta=beta,
    )


def check_first_loss(metrics: Metrics, *, precision: Precision) -> None:
    """Stop unless the loss before the first update is ln 2, as equal models have it.

    Raises:
        ReferenceMismatchError: It isn't.
    """
    if abs(metrics["loss"] - math.log(2)) > _TOLERANCE[precision]:
        raise ReferenceMismatchError(
            f"The first DPO loss is {metrics['loss']:.6f}, not ln 2: policy and reference differ."
        )


def _reference(policy: Run, data: StageData, folder: RunFolder) -> dict[str, Tensor]:
    """Return the log-probabilities under the policy as it is before training, by split."""
    # Every epoch visits the same pairs.
    steps = range(min(data.order.num_steps, data.order.steps_per_epoch))
    passes = {
        "train": ReferencePass(
            data.feed(policy, data.train, pack_pairs), [data.order.items(step) for step in steps]
        ),
        "held_out": ReferencePass(
            data.feed(policy, data.held_out, pack_pairs), data.validation_batches
        ),
    }
    return reference_logps(policy, folder, passes, identity=data.identity)
