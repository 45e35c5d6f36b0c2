"""Bradley-Terry reward model: a scalar head on the last token of an answer."""

import json
import math

from torch import Tensor

from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.jobs.spec import JobResult
from alignflow.training.config import RewardModelConfig, TrainingJob
from alignflow.training.data import PREFERENCES
from alignflow.training.errors import DivergedError
from alignflow.training.feed import Feed
from alignflow.training.forward import row_values
from alignflow.training.loop import Objective, Trainer
from alignflow.training.losses import SummedLoss, reward_loss
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.pairs import PairBatch, pack_pairs
from alignflow.training.stages.data import StageData, load_data


def run(config: RewardModelConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train a reward model on preference pairs; write it and its scale to the output folder."""
    data = load_data(job, folder, PREFERENCES)
    with build_run(config, job.model, head="reward", num_steps=data.order.num_steps) as model:
        train = data.feed(model, data.train, pack_pairs)
        held_out = data.feed(model, data.held_out, pack_pairs)
        trainer = Trainer(
            model,
            folder,
            config,
            Objective(_loss),
            order=data.order,
            train=train,
            held_out=held_out,
            validation_batches=data.validation_batches,
        )
        metrics = trainer.train()
        scale = _score_scale(model, held_out if data.validation_batches else train, data)
        model.export(folder.output)
        if model.is_main:
            write_atomically(folder.output / "reward_scale.json", json.dumps(scale) + "\n")
    return JobResult(
        metrics=metrics, details={**data.details(trainer.tokens_processed), "reward_scale": scale}
    )


def _loss(scores_R: Tensor, batch: PairBatch) -> SummedLoss:
    return reward_loss(scores_R[batch.chosen_rows_B], scores_R[batch.rejected_rows_B])


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
