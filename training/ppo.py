"""The loop of PPO: roll out, judge, learn, a few times over, and do it again.

A step is a rollout with its updates. A run that is killed and resumed goes through the same steps
as an undisturbed one: prompts, draws and minibatches follow from the step, and a checkpoint holds
actor, critic, their optimizers and the KL coefficient together, as they are between two steps.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.jobs.run_folder import RunFolder
from alignflow.training.actor_critic import Critic, Models, policy_objective
from alignflow.training.advantages import adapted_kl_coef
from alignflow.training.checkpoints import Checkpoints
from alignflow.training.config import PPOConfig
from alignflow.training.errors import DivergedError, RewardHackingError
from alignflow.training.experience import (
    Experience,
    TokenModels,
    judged,
    pack_for_actor,
    pack_for_critic,
    rewards,
)
from alignflow.training.feed import BatchT, Feed
from alignflow.training.megatron.run import Run
from alignflow.training.packing import DataOrder, Items, pack
from alignflow.training.ranked_pairs import RankedPairs
from alignflow.training.rl_metrics import (
    Metrics,
    check_ratio,
    check_reference,
    check_rollout,
    experience_metrics,
    response_metrics,
)
from alignflow.training.rollout import Prompts, Rollout, Sampler, minibatches, token_values
from alignflow.training.rows import TokenRows
from alignflow.training.steps import Progress, StepLoop
from alignflow.training.watch import check_reward_hacking, most_accurate_step

# What the draws of a run are told apart by.
_TRAINING, _VALIDATION, _SHUFFLING = range(3)


@dataclass
class PPOProgress(Progress):
    """How far a run is; a step is a rollout that was learnt from."""

    kl_coef: float = 0.0
    """Price of a nat in the next rollout."""


class PPOTrainer(StepLoop[PPOProgress]):
    """Trains an actor, and a critic where there is one, over rollouts."""

    step_name = "rollout"

    def __init__(
        self,
        models: Models,
        sampler: Sampler,
        folder: RunFolder,
        config: PPOConfig,
        checkpoints: Checkpoints,
        *,
        order: DataOrder,
        train: Prompts,
        held_out: Prompts,
        pairs: RankedPairs | None = None,
    ) -> None:
        progress = PPOProgress(kl_coef=config.kl_coef)
        super().__init__(models.actor, folder, config, checkpoints, order, progress)
        self._config = config
        self._models = models
        self._actor = models.actor
        self._sampler = sampler
        self._train = train
        self._held_out = held_out
        self._pairs = pairs

    def train(self) -> Metrics:
        """Train from the newest checkpoint, or from the start, to the last step.

        Returns:
            Each metric's last value by `ppo/quantity`, and as `…_first` that of the first rollout;
            `held_out_…` were measured before and after training.

        Raises:
            ConfigError: The newest checkpoint was made under another config.
            DataError: The newest checkpoint was made on other data, or from other models.
            DivergedError: A bound was passed, or a loss or gradient NaN or infinite.
            JobStoppedError: The job was told to stop; a checkpoint holds what was done.
            ReferenceMismatchError: The policy isn't its reference before the first update.
            RewardHackingError: The held-out reward grew while the policy ranked pairs worse.
            RatioMismatchError: An update doesn't begin from the policy that sampled.
            SamplerMismatchError: Sampling and training disagree about the responses.
        """
        try:
            self._run_to_the_end()
        except DivergedError as error:
            last = self._checkpoints.newest()
            kept = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
            raise type(error)(f"Rollout {self._progress.step + 1}: {error} ({kept})") from None
        except RewardHackingError as error:
            since = error.since_step
            good = self._checkpoints.newest(until_step=since) or "the model that it started from"
            raise RewardHackingError(
                f"{error} The last good one is {good}.", since_step=since
            ) from None
        return self._results()

    @property
    def _has_held_out(self) -> bool:
        return len(self._held_out.items) > 0

    def _best_step(self) -> int | None:
        # What a reward that is hacked later on is gone back from.
        return most_accurate_step(self._progress.validations)

    def _step(self) -> Metrics:
        """Roll out, judge and learn once; log it."""
        progress, config = self._progress, self._config
        step = progress.step
        times = [time.perf_counter()]
        prompts = self._train.items[self._order.items(step)]
        rollout = self._sampler.rollout(
            self._train.rows, prompts, key=(config.seed, _TRAINING, step)
        )
        times.append(time.perf_counter())
        models = self._token_models(rollout)
        experience = judged(rollout, models, config, kl_coef=progress.kl_coef)
        metrics = {**experience_metrics(experience), "kl_coef": progress.kl_coef}
        if step == 0:
            check_reference(experience, config.precision)
            progress.first |= metrics
        check_rollout(metrics, config, first_response_tokens=progress.first["response_tokens"])
        times.append(time.perf_counter())
        metrics |= self._learn(experience)
        times.append(time.perf_counter())
        self._adapt_kl_coef(metrics["kl_nats"], rollout.num_responses)
        num_tokens = config.ppo_epochs * len(rollout.rows.tokens)
        progress.num_tokens += num_tokens
        generate_s, judge_s, learn_s = np.diff(times).tolist()
        self._log(
            "train",
            step + 1,
            metrics,
            tokens_per_s=num_tokens / (times[-1] - times[0]),
            generate_s=generate_s,
            judge_s=judge_s,
            learn_s=learn_s,
        )
        return metrics

    def _token_models(self, rollout: Rollout) -> TokenModels:
        """Return what the models say of a rollout, in the batches of its first epoch.

        Equal microbatches give equal rounding, so that the first ratio is 1 to the last bit.
        """
        batches = self._minibatches(rollout, epoch=0)
        actor, critic = self._actor, self._models.critic
        policy_feed = self._feed(actor, rollout.rows, pack)
        return TokenModels(
            old_logps_N=token_values(rollout, policy_feed, batches, actor.forward),
            reference_logps_N=token_values(rollout, policy_feed, batches, self._models.reference),
            values_N=None
            if critic is None
            else token_values(
                rollout, self._feed(critic.run, rollout.rows, pack), batches, critic.forward
            ),
        )

    def _learn(self, experience: Experience) -> Metrics:
        """Update critic and actor over the minibatches of every epoch.

        Returns:
            Means over the updates, those of the critic as `value_loss` and `critic_…`; the actor's
            `start_ratio` is the ratio of the first alone.
        """
        config, critic = self._config, self._models.critic
        warmup = config.critic.critic_warmup_steps if config.critic is not None else 0
        of_actor: list[Metrics] = []
        of_critic: list[Metrics] = []
        for epoch in range(config.ppo_epochs):
            for prompts in self._minibatches(experience.rollout, epoch=epoch):
                if critic is not None:
                    of_critic.append(self._update_critic(critic, experience, prompts))
                if self._progress.step < warmup or not experience.num_trained(prompts):
                    continue
                of_actor.append(self._update_actor(experience, prompts))
                if len(of_actor) == 1:
                    check_ratio(of_actor[0])
        found = _means(of_actor)
        if of_actor:
            found["start_ratio"] = of_actor[0]["ratio"]
        for name, value in _means(of_critic).items():
            found["value_loss" if name == "loss" else f"critic_{name}"] = value
        return found

    def _update_actor(self, experience: Experience, prompts: Items) -> Metrics:
        config = self._config
        feed = self._feed(
            self._actor,
            experience.rollout.rows,
            partial(pack_for_actor, experience=experience),
        )
        loss = partial(
            policy_objective,
            config=config,
            kl_coef=self._progress.kl_coef if config.kl_placement == "loss" else 0.0,
        )
        return self._actor.train_step(feed.batches(prompts), loss)

    def _update_critic(self, critic: Critic, experience: Experience, prompts: Items) -> Metrics:
        feed = self._feed(
            critic.run,
            experience.rollout.rows,
            partial(pack_for_critic, experience=experience),
        )
        return critic.run.train_step(feed.batches(prompts), critic.loss)

    def _minibatches(self, rollout: Rollout, *, epoch: int) -> list[Items]:
        config = self._config
        key = (config.seed, _SHUFFLING, self._progress.step, epoch)
        return minibatches(rollout.num_prompts, config.global_batch_size, key=key)

    def _feed(
        self, run: Run, rows: TokenRows, make_batch: Callable[[TokenRows, Items], BatchT]
    ) -> Feed[BatchT]:
        """Return this rank's share of a rollout's batches."""
        return Feed.of_run(run, rows, make_batch, max_tokens=self._config.microbatch_tokens)

    def _adapt_kl_coef(self, kl_nats: float, num_responses: int) -> None:
        adaptation = self._config.kl_adaptation
        if adaptation is not None:
            self._progress.kl_coef = adapted_kl_coef(
                self._progress.kl_coef,
                kl_nats,
                target_nats=adaptation.target_nats,
                horizon=adaptation.horizon,
                num_responses=num_responses,
            )

    def _validate(self) -> None:
        """Answer the held-out prompts, always by the same draws, and note and log what is seen."""
        progress = self._progress
        prompts = self._held_out.items[: self._config.max_validation_rows]
        rollout = self._sampler.rollout(
            self._held_out.rows, prompts, key=(self._config.seed, _VALIDATION)
        )
        found = response_metrics(rollout, rewards(rollout, self._config))
        if self._pairs is not None:
            found["accuracy"] = self._pairs.accuracy(self._actor)
        metrics = {f"held_out_{name}": value for name, value in found.items()}
        self._log("validate", progress.step, metrics)
        self._note_validation(found, metrics)
        check_reward_hacking(
            progress.validations,
            reward="reward",
            max_accuracy_drop=self._config.max_accuracy_drop,
            patience=self._config.accuracy_drop_validations,
        )

    def _write(self, path: Path, progress: dict[str, Any]) -> None:
        self._actor.save_checkpoint(path / "actor", progress)
        if self._models.critic is not None:
            self._models.critic.run.save_checkpoint(path / "critic", {})

    def _read(self, path: Path) -> PPOProgress:
        progress = PPOProgress.of(self._actor.load_checkpoint(path / "actor"))
        if self._models.critic is not None:
            self._models.critic.run.load_checkpoint(path / "critic")
        return progress


def _means(updates: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over updates, and the learning rate of the last."""
    if not updates:
        return {}
    means = {name: sum(each[name] for each in updates) / len(updates) for name in updates[0]}
    return {**means, "learning_rate": updates[-1]["learning_rate"]}
