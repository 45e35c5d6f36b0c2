"""Bradley-Terry reward model: a scalar head on the last token of an answer."""

import json
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.jobs.spec import JobResult
from alignflow.training.config import Precision, RewardModelConfig, TrainingJob
from alignflow.training.errors import DivergedError, ScoreMismatchError
from alignflow.training.feed import Feed
from alignflow.training.forward import row_values
from alignflow.training.loop import Objective, Trainer
from alignflow.training.losses import SummedLoss, reward_loss
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.packing import pack
from alignflow.training.pairs import PairBatch, pack_pairs
from alignflow.training.reward_scale import REWARD_SCALE_FILE
from alignflow.training.stages.data import StageData, load_stage_data
from alignflow.training.steps import Metrics

_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2}
"""How far the first loss may be from that of the same scores computed in another way."""


def run(config: RewardModelConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train a reward model on preference pairs; write it and its scale to the output folder."""
    data = load_stage_data(config, job, folder)
    compute_loss = partial(pair_loss, margin_scale=config.margin_scale, centering=config.centering)
    with build_run(config, job.model, head="reward", num_steps=data.order.num_steps) as model:
        train = data.feed(model, data.train, pack_pairs)
        held_out = data.feed(model, data.held_out, pack_pairs)
        trainer = Trainer(
            model,
            folder,
            config,
            Objective(
                compute_loss,
                check_first_step=partial(
                    check_first_loss,
                    expected=_first_loss(model, data, compute_loss),
                    precision=config.precision,
                ),
            ),
            order=data.order,
            train=train,
            held_out=held_out,
            validation_batches=data.validation_batches,
        )
        metrics = trainer.train()
        scale = _score_scale(model, held_out if data.validation_batches else train, data)
        model.export(folder.output)
        if model.is_main:
            write_atomically(folder.output / REWARD_SCALE_FILE, json.dumps(scale) + "\n")
    return JobResult(
        metrics=metrics, details={**data.details(trainer.tokens_processed), "reward_scale": scale}
    )


def pair_loss(
    scores_R: Tensor, batch: PairBatch, *, margin_scale: float, centering: float
) -> SummedLoss:
    """Return the Bradley-Terry loss of a microbatch.

    Args:
        scores_R: [R] float32, the model's score of each answer.
        batch: The pairs; with a margin, labelled with the gap between the data's scores.
        margin_scale: Margin for each point of the gap; 0 asks for none.
        centering: Weight of the squared sum of a pair's scores.
    """
    return reward_loss(
        scores_R[batch.chosen_rows_B],
        scores_R[batch.rejected_rows_B],
        margin_B=margin_scale * batch.labels_BL[:, 0] if margin_scale else None,
        centering=centering,
    )


def check_first_loss(metrics: Metrics, *, expected: float, precision: Precision) -> None:
    """Stop unless the loss before the first update is that of each answer scored by itself.

    Raises:
        ScoreMismatchError: It isn't.
    """
    # Written so that NaN fails too.
    if not abs(metrics["loss"] - expected) <= _TOLERANCE[precision] * max(1.0, expected):
        raise ScoreMismatchError(
            f"The first reward loss is {metrics['loss']:.6f}, but {expected:.6f} where each answer "
            "is scored by itself: a score depends on the other answer or on its place in the pair."
        )


def _first_loss(
    model: Run, data: StageData, compute_loss: Callable[[Tensor, PairBatch], SummedLoss]
) -> float:
    """Return the loss of the first step's pairs, each answer scored by itself, the last one first.

    Neither packing nor shared prompts nor the place in a pair may change a score, so this is what
    the first step has to show, whatever the head.
    """
    items = data.order.items(0)
    alone = data.feed(model, data.train.singly(), pack)
    scores = row_values(
        model, alone, [data.train.rows_of(items)[::-1]], lambda scores_R, _: scores_R
    )
    rows = torch.from_numpy(data.train.rows_of(items))
    loss = compute_loss(scores[rows], pack_pairs(data.train, items))
    return float(loss.total / loss.units)


def _score_scale(model: Run, feed: Feed[PairBatch], data: StageData) -> dict[str, float]:
    """Return mean and standard deviation of the scores, by which a reward can be read.

    Both answers of every measured held-out pair count; without such, those of a training batch.

    Raises:
        DivergedError: All answers have the same score, or one has none.
    """
    batches = data.validation_batches or [data.order.items(0)]
    scores = row_values(model, feed, batches, lambda scores_R, batch: scores_R).double()
    scores = scores[~scores.isneginf()]  # rows that no batch visited
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    # Written so that NaN fails too.
    if not 0 < std < math.inf:
        raise DivergedError(
            f"The scores of {len(scores)} answers have the mean {mean:.4g} and the standard "
            f"deviation {std:.4g}: the reward model has collapsed; lower learning_rate."
        )
    return {"mean": mean, "std": std, "num_responses": len(scores)}
