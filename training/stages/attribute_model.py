"""Attribute model of SteerLM: a head that predicts the ratings of an answer on its last token."""

from functools import partial
from typing import Any

from torch import Tensor

from alignflow.errors import DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.attributes import ATTRIBUTES_FILE, AttributeScale, RatedBatch, pack_rated
from alignflow.training.config import AttributeModelConfig, TrainingJob
from alignflow.training.errors import ScoreMismatchError
from alignflow.training.feed import Feed
from alignflow.training.forward import row_values
from alignflow.training.loop import Objective, Trainer
from alignflow.training.losses import SummedLoss, attribute_loss
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.stages.data import StageData, load_stage_data
from alignflow.training.steps import Metrics

_TOLERANCE = 1e-5
"""How far the first loss may be from the variance of the ratings, as a share of it."""


def run(config: AttributeModelConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train an attribute model on rated answers; write it and its scale to the output folder.

    Raises:
        DataError: The model is an attribute model already, or no training row is rated.
    """
    if (job.model / ATTRIBUTES_FILE).is_file():
        raise DataError(
            f"{job.model}: this is an attribute model already; start from the one it was made from."
        )
    data = load_stage_data(config, job, folder)
    scale = AttributeScale.of_rows(data.train)
    num_attributes = len(scale.names)
    with build_run(
        config,
        job.model,
        head="attributes",
        num_steps=data.order.num_steps,
        num_attributes=num_attributes,
    ) as model:
        if model.is_main:
            scale.save(folder.path)  # an export of a checkpoint takes it from here
        labels = {name: scale.labels_of(rows) for name, rows in data.splits.items()}
        train, held_out = (
            data.feed(model, rows, partial(pack_rated, labels_RK=labels[name]))
            for name, rows in data.splits.items()
        )
        trainer = Trainer(
            model,
            folder,
            config,
            Objective(_loss, check_first_step=check_first_loss),
            order=data.order,
            train=train,
            held_out=held_out,
            validation_batches=data.validation_batches,
        )
        metrics = trainer.train()
        errors = _held_out_errors(model, held_out, data, labels["held_out"], scale)
        model.export(folder.output)
        if model.is_main:
            scale.save(folder.output)
    details = {
        name: {"mean": mean, **errors.get(name, {})}
        for name, mean in zip(scale.names, scale.means, strict=True)
    }
    return JobResult(
        metrics=metrics,
        details={**data.details(trainer.tokens_processed), "attributes": details},
    )


def check_first_loss(metrics: Metrics) -> None:
    """Stop unless the loss before the first update is the ratings' variance, as of a new head.

    Raises:
        ScoreMismatchError: It isn't.
    """
    expected = metrics["variance"]
    # Written so that NaN fails too.
    if not abs(metrics["loss"] - expected) <= _TOLERANCE * expected:
        raise ScoreMismatchError(
            f"The first loss of the attribute model is {metrics['loss']:.6f}, not {expected:.6f}, "
            "the variance of its ratings: a new head doesn't predict their means."
        )


def _loss(predictions_RK: Tensor, batch: RatedBatch) -> SummedLoss:
    return attribute_loss(predictions_RK, batch.labels_RK)


def _held_out_errors(
    model: Run,
    held_out: Feed[RatedBatch],
    data: StageData,
    labels_RK: Tensor,
    scale: AttributeScale,
) -> dict[str, dict[str, Any]]:
    """Return for each attribute the mean error on held-out rows, and that of the mean rating.

    An attribute that no measured row has a rating of is left out.
    """
    predictions_RK = row_values(
        model,
        held_out,
        data.validation_batches,
        lambda predictions_RK, _: predictions_RK,
        width=len(scale.names),
    )
    errors = {}
    for column, name in enumerate(scale.names):
        labels_R, predictions_R = labels_RK[:, column], predictions_RK[:, column]
        is_known_R = ~labels_R.isnan() & ~predictions_R.isneginf()
        if num_ratings := int(is_known_R.sum()):
            difference_R = (predictions_R - labels_R)[is_known_R]
            errors[name] = {
                "num_held_out": num_ratings,
                "held_out_error": float(difference_R.abs().mean()),
                "held_out_error_of_mean": float(labels_R[is_known_R].abs().mean()),
            }
    return errors
