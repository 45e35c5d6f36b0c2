"""Reinforcement learning from a reward model: PPO, and REINFORCE and GRPO without a critic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from alignflow.errors import ConfigError
from alignflow.fingerprints import check_same, folder_fingerprints
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.actor_critic import Critic, Models
from alignflow.training.batch import PackedBatch
from alignflow.training.chat import ChatTokenizer
from alignflow.training.checkpoints import Checkpoints, model_digest
from alignflow.training.config import PPOConfig, TrainingJob
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import RewardModel
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.packing import DataOrder
from alignflow.training.pairs import pack_pairs
from alignflow.training.ppo import PPOTrainer
from alignflow.training.ranked_pairs import RankedPairs
from alignflow.training.rollout import Prompts, Sampler
from alignflow.training.stages.data import StageData, load_held_out_pairs, load_stage_data


def run(config: PPOConfig, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train the policy to be rewarded and write it to the output folder.

    Raises:
        ConfigError: There is no reward model, it doesn't fit the policy or the lengths, or the
            critic warms up for longer than there are rollouts, or the reward is to be watched
            without held-out pairs.
    """
    reward_dir = job.reward_model
    if reward_dir is None:
        raise ConfigError("the stage ppo needs a reward_model.")
    check_same(
        "the model", folder_fingerprints(job.model), "reward_model", folder_fingerprints(reward_dir)
    )
    chat = ChatTokenizer.load(job.model)
    check_positions(job.model, config.max_length, "max_length")
    num_closed = config.max_length + len(chat.closing_tokens)
    check_positions(reward_dir, num_closed, "max_length and what ends a turn")
    data = load_stage_data(config, job, folder)
    train, held_out = Prompts.distinct(data.train), Prompts.distinct(data.held_out)
    order = DataOrder(
        len(train.items),
        config.rollout_prompts,
        config.num_epochs,
        config.seed,
        config.max_steps,
    )
    warmup = config.critic.critic_warmup_steps if config.critic is not None else 0
    if warmup >= order.num_steps:
        raise ConfigError(
            f"critic_warmup_steps: of {order.num_steps} rollouts {warmup} leave none from which "
            "the actor learns; lower it."
        )
    with build_run(
        config,
        job.model,
        head="lm",
        num_steps=num_updates(config, order, start=warmup),
        temperature=config.temperature,
        must_generate=True,
    ) as actor:
        precision, parallel = config.precision, config.parallel
        reward = RewardModel.load(reward_dir, precision=precision, parallel=parallel)
        trainer = PPOTrainer(
            Models(
                actor,
                _reference(config, job, actor),
                _critic(config, reward_dir, reward, order),
            ),
            Sampler(actor, reward, chat, config),
            folder,
            config,
            _checkpoints(config, job, reward_dir, reward, data, folder),
            order=order,
            train=train,
            held_out=held_out,
            pairs=_held_out_pairs(config, job, folder, actor, data),
        )
        metrics = trainer.train()
        actor.export(folder.output)
    details = data.details(trainer.tokens_processed)
    # Actor and reward model; adapters spare the reference, and some estimators the critic.
    details["num_models"] = 2 + (config.lora is None) + (config.critic is not None)
    details["num_repeated_prompts"] = len(data.train) - len(train.items)
    return JobResult(metrics=metrics, details=details)


def num_updates(config: PPOConfig, order: DataOrder, *, start: int = 0) -> int:
    """Return the optimizer steps of all rollouts from `start` on; an epoch's last may be small."""
    sizes = (len(order.items(step)) for step in range(start, order.num_steps))
    return config.ppo_epochs * sum(math.ceil(size / config.global_batch_size) for size in sizes)


def _held_out_pairs(
    config: PPOConfig, job: TrainingJob, folder: RunFolder, actor: Run, prompts: StageData
) -> RankedPairs | None:
    """Return the pairs by which the reward is watched, where it is.

    Raises:
        ConfigError: There are none.
    """
    if config.max_accuracy_drop is None:
        return None
    data = replace(prompts, held_out=load_held_out_pairs(job, folder))
    if not data.validation_batches:
        raise ConfigError(
            "max_accuracy_drop goes by held-out pairs, but the dataset has none; raise "
            "held_out_share, or leave it out."
        )
    return RankedPairs(data.feed(actor, data.held_out, pack_pairs), data.validation_batches)


def _reference(
    config: PPOConfig, job: TrainingJob, actor: Run
) -> Callable[[Sequence[PackedBatch]], list[Tensor]]:
    """Return what gives log-probabilities under the policy as it was before training."""
    if config.lora is not None:
        return actor.forward_without_adapters
    model = LanguageModel.load(
        job.model,
        precision=config.precision,
        parallel=config.parallel,
        temperature=config.temperature,
        compiles=config.compile,
    )
    return model.forward


def _critic(
    config: PPOConfig, reward_dir: Path, reward: RewardModel, order: DataOrder
) -> Critic | None:
    """Return a critic that starts as the reward model, where the estimator has one."""
    if config.critic is None:
        return None
    rate = config.critic.critic_learning_rate
    share = config.min_learning_rate / config.learning_rate
    of_critic = config.replaced(learning_rate=rate, min_learning_rate=share * rate)
    run = build_run(of_critic, reward_dir, head="value", num_steps=num_updates(config, order))
    return Critic(run, reward.scale, config.critic.value_clip)


def _checkpoints(
    config: PPOConfig,
    job: TrainingJob,
    reward_dir: Path,
    reward: RewardModel,
    data: StageData,
    folder: RunFolder,
) -> Checkpoints:
    scale = f"{reward.scale.mean} {reward.scale.std}"
    return Checkpoints(
        folder.checkpoints,
        model_digest=f"{model_digest(job.model)} {model_digest(reward_dir)} {scale}",
        data_digest=f"{data.train.summary.digest} {data.held_out.summary.digest}",
        config=config.identity(),
        keep=config.keep_checkpoints,
    )
