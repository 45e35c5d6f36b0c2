"""Direct preference optimization and its family against the model that training starts from."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.config import DPOConfig, Precision, TrainingJob
from alignflow.training.errors import ReferenceMismatchError
from alignflow.training.feed import BatchT, Feed
from alignflow.training.loop import Objective, Trainer
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.packing import pack
from alignflow.training.pairs import pack_referenced_pairs
from alignflow.training.preference import MismatchKL, loss_of_reference, pair_loss, response_loss
from alignflow.training.reference import ReferencePass, reference_logps
from alignflow.training.responses import pack_referenced, pack_responses
from alignflow.training.rows import TokenRows
from alignflow.training.stages.data import StageData, load_mismatched, load_stage_data
from alignflow.training.steps import Metrics
from alignflow.training.watch import check_reward_hacking

_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}
"""How far the first loss may be from that of the reference, as a share of it where that is more."""


def run(config: DPOConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train the policy on pairs, or with KTO on single responses, and write it to the output."""
    data = load_stage_data(config, job, folder)
    rows = {"train": data.train, "held_out": data.held_out}
    if config.loss == "kto":
        rows |= load_mismatched(data, folder)
    with build_run(config, job.model, head="lm", num_steps=data.order.num_steps) as policy:
        reference = _reference(policy, data, rows, folder)

        def feed(name: str, make_batch: Callable[..., BatchT]) -> Feed[BatchT]:
            packed = partial(make_batch, reference_logps=reference[name])
            return data.feed(policy, rows[name], packed)

        def train(make_batch: Callable[..., BatchT], objective: Objective[BatchT]) -> JobResult:
            trainer = Trainer(
                policy,
                folder,
                config,
                objective,
                order=data.order,
                train=feed("train", make_batch),
                held_out=feed("held_out", make_batch),
                validation_batches=data.validation_batches,
            )
            metrics = trainer.train()
            policy.export(folder.output)
            return JobResult(metrics=metrics, details=data.details(trainer.tokens_processed))

        first_labels_BL = torch.from_numpy(data.train.labels_IL[data.order.items(0)])
        expected = loss_of_reference(first_labels_BL, config=config)
        check = partial(check_first_loss, expected=expected, precision=config.precision)
        watch = partial(
            check_reward_hacking,
            reward="margin",
            max_accuracy_drop=config.max_accuracy_drop,
            patience=config.accuracy_drop_validations,
        )
        if config.loss != "kto":
            pairs_loss = partial(pair_loss, config=config)
            return train(pack_referenced_pairs, Objective(pairs_loss, check, watch))
        kl = MismatchKL(
            policy,
            train=feed("train_mismatched", pack_referenced),
            held_out=feed("held_out_mismatched", pack_referenced),
        )
        loss = partial(response_loss, kl=kl, config=config)
        return train(pack_responses, Objective(loss, check, watch, kl.measure))


def check_first_loss(metrics: Metrics, *, expected: float, precision: Precision) -> None:
    """Stop unless the loss before the first update is that of equal models, ln 2 for DPO itself.

    The KL term of KTO has to be 0 besides: good and bad responses may cancel it out in the loss.

    Raises:
        ReferenceMismatchError: It isn't.
    """
    # With an SFT term, which nobody can foresee, it is the loss without it.
    loss = metrics.get("preference_loss", metrics["loss"])
    if not abs(loss - expected) <= _TOLERANCE[precision] * max(expected, 1.0):
        raise ReferenceMismatchError(
            f"The first DPO loss is {loss:.6f}, not {expected:.6f}: policy and reference differ."
        )
    if not metrics.get("kl", 0.0) <= _TOLERANCE[precision]:
        raise ReferenceMismatchError(
            f"The first KL term is {metrics['kl']:.6f}, not 0: policy and reference differ."
        )


def _reference(
    policy: Run, data: StageData, rows: Mapping[str, TokenRows], folder: RunFolder
) -> dict[str, Tensor]:
    """Return the log-probabilities under the policy as it is before training, by name of rows."""
    # Every epoch visits the same items.
    steps = range(min(data.order.num_steps, data.order.steps_per_epoch))
    batches = {
        "train": [data.order.items(step) for step in steps],
        "held_out": data.validation_batches,
    }
    passes = {
        f"{split}{kind}": ReferencePass(
            data.feed(policy, rows[f"{split}{kind}"], pack), global_batches
        )
        for kind in ("", "_mismatched")
        for split, global_batches in batches.items()
        if f"{split}{kind}" in rows
    }
    return reference_logps(policy, folder, passes, identity=data.identity)
