"""Rollouts, what is learnt from them, and the bounds they are held to."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from alignflow.training.actor_critic import Critic, policy_objective
from alignflow.training.config import PPOConfig, TrainingJob
from alignflow.training.errors import (
    KLBoundError,
    LengthBoundError,
    RatioMismatchError,
    ReferenceMismatchError,
    SamplerMismatchError,
)
from alignflow.training.experience import (
    ActorBatch,
    Experience,
    TokenModels,
    judged,
    pack_for_actor,
    pack_for_critic,
)
from alignflow.training.megatron.run import Run
from alignflow.training.packing import DataOrder, pack
from alignflow.training.reward_scale import RewardScale
from alignflow.training.rl_metrics import (
    check_ratio,
    check_reference,
    check_rollout,
    experience_metrics,
)
from alignflow.training.rollout import Response, Rollout, minibatches
from alignflow.training.stages.ppo import num_updates

PROMPTS = [np.array([7, 8], dtype=np.int32), np.array([9], dtype=np.int32)]


def response(*tokens: int, score: float, has_ended: bool = True) -> Response:
    return Response(list(tokens), [-0.1 * token for token in tokens], has_ended, score)


def pairs() -> Rollout:
    """Two responses to each of two prompts; one of them was cut."""
    return Rollout.of(
        PROMPTS,
        [
            [response(1, 2, score=3.0), response(3, score=1.0)],
            [response(4, 5, 6, score=2.0, has_ended=False), response(2, score=0.5)],
        ],
    )


def config(**changes: Any) -> PPOConfig:
    return PPOConfig.model_validate({"stage": "ppo", "samples_per_prompt": 2, **changes})


def models(values: bool = False) -> TokenModels:
    """Old log-probabilities as sampled; the reference 0.5 nats below at the first token."""
    old_N = pairs().sampler_logps_N
    reference_N = old_N.clone()
    reference_N[0] -= 0.5
    values_N = torch.arange(7, dtype=torch.float64) / 10 if values else None
    return TokenModels(old_N, reference_N, values_N)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestRollout:
    def test_prompts_and_responses_lie_one_after_another(self) -> None:
        rollout = pairs()
        assert rollout.rows.tokens.tolist() == [7, 8, 1, 2, 7, 8, 3, 9, 4, 5, 6, 9, 2]
        assert rollout.rows.tokens[rollout.rows.is_learnt].tolist() == [1, 2, 3, 4, 5, 6, 2]
        assert rollout.rows.shared_I.tolist() == [2, 1]
        assert (rollout.num_prompts, rollout.num_responses) == (2, 4)
        assert rollout.lengths_B.tolist() == [2, 1, 3, 1]
        assert rollout.has_ended_B.tolist() == [True, True, False, True]

    def test_places_are_those_that_a_batch_scores(self) -> None:
        rollout = pairs()
        flat_N = torch.from_numpy(rollout.rows.tokens[rollout.rows.is_learnt]).long()
        for prompts in ([0, 1], [1, 0], [1], []):
            items = np.array(prompts, dtype=np.int64)
            batch = pack(rollout.rows, items)
            assert torch.equal(flat_N[rollout.places(items)], batch.targets_N)
        # A prompt is in a batch once, for both of its responses.
        assert pack(rollout.rows, np.array([0])).num_tokens == 2 + 2 + 1

    def test_minibatches_hold_each_prompt_once_and_follow_from_the_key(self) -> None:
        batches = minibatches(7, 3, key=(1, 2))
        assert [len(batch) for batch in batches] == [3, 3, 1]
        assert sorted(np.concatenate(batches)) == list(range(7))
        again, other = minibatches(7, 3, key=(1, 2)), minibatches(7, 3, key=(1, 3))
        assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
        assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_updates_of_a_run_are_counted_to_the_last_small_rollout() -> None:
    # Rollouts of 4, 4 and 2 of 10 prompts, twice: 2, 2 and 1 minibatches of at most 3, twice each.
    order = DataOrder(10, global_batch_size=4, num_epochs=2, seed=0)
    settings = config(rollout_prompts=4, global_batch_size=3, ppo_epochs=2)
    assert num_updates(settings, order) == 20
    assert num_updates(settings, order, start=1) == 16


class TestJudging:
    def test_leave_one_out_with_a_penalty_on_divergence_and_on_a_missing_end(self) -> None:
        # Rewards 3, 1, -1 (cut), 0.5; the first costs 0.2 * 0.5 nats. Less the other's:
        # 2.9 - 1, 1 - 2.9; -1 - 0.5, 0.5 + 1.
        found = judged(pairs(), models(), config(estimator={"name": "rloo"}), kl_coef=0.2)
        expected_N = doubles(1.9, 1.9, -1.9, -1.5, -1.5, -1.5, 1.5)
        torch.testing.assert_close(found.advantages_N, expected_N)
        assert found.is_trained_N.all()
        assert found.returns_N is None

    def test_groups_are_normalised_and_a_price_in_the_loss_is_not_in_the_reward(self) -> None:
        # Rewards 3, 1 and 2, 0.5: half a difference of 2 and of 1.5, over deviations sqrt(2) and
        # 1.5 / sqrt(2).
        grpo = config(
            estimator={"name": "grpo"},
            missing_end_reward=None,
            kl_placement="loss",
            kl_estimator="k3",
        )
        found = judged(pairs(), models(), grpo, kl_coef=0.2)
        first, second = 1 / (2**0.5 + 1e-4), 0.75 / (1.5 / 2**0.5 + 1e-4)
        expected_N = doubles(first, first, -first, second, second, second, -second)
        torch.testing.assert_close(found.advantages_N, expected_N)

    def test_estimates_by_a_critic(self) -> None:
        # Token rewards -0.1, 3; 1; 0, 0, -1; 0.5 and values 0, .1; .2; .3, .4, .5; .6.
        # Backwards at decay 0.5: 2.9, (-.1 + .1 - 0) + 1.45; .8; -1.5, .1 - .75, .1 - .325; -.1.
        gae = config(estimator={"name": "gae", "decay": 0.5, "whiten": False})
        found = judged(pairs(), models(values=True), gae, kl_coef=0.2)
        expected_N = doubles(1.45, 2.9, 0.8, -0.225, -0.65, -1.5, -0.1)
        torch.testing.assert_close(found.advantages_N, expected_N)
        assert found.returns_N is not None
        values_N = doubles(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
        torch.testing.assert_close(found.returns_N, expected_N + values_N)

    def test_the_actor_may_leave_out_what_has_no_end(self) -> None:
        gae = config(learns_unended=False, missing_end_reward=None)
        found = judged(pairs(), models(values=True), gae, kl_coef=0.0)
        assert found.is_trained_N.tolist() == [True, True, True, False, False, False, True]
        assert found.num_trained(np.array([1])) == 1
        # The statistics of whitening are those of what it learns from.
        learnt_N = found.advantages_N[found.is_trained_N]
        torch.testing.assert_close(learnt_N.mean(), doubles(0)[0])
        torch.testing.assert_close(learnt_N.var(correction=0), doubles(1)[0])

    def test_without_a_critic_there_is_no_estimate_by_one(self) -> None:
        with pytest.raises(ValueError, match="needs values"):
            judged(pairs(), models(), config(), kl_coef=0.0)


def test_batches_carry_what_belongs_to_their_tokens() -> None:
    experience = judged(pairs(), models(values=True), config(), kl_coef=0.2)
    rows, prompts = experience.rollout.rows, np.array([1, 0])
    actor = pack_for_actor(rows, prompts, experience)
    torch.testing.assert_close(actor.old_logps_N, -0.1 * actor.targets_N.float())
    torch.testing.assert_close(actor.reference_logps_N[4], torch.tensor(-0.6))
    critic = pack_for_critic(rows, prompts, experience)
    expected_N = torch.tensor([0.3, 0.4, 0.5, 0.6, 0, 0.1, 0.2])
    torch.testing.assert_close(critic.old_values_N, expected_N)
    without = judged(pairs(), models(), config(estimator={"name": "rloo"}), kl_coef=0.2)
    with pytest.raises(ValueError, match="no critic"):
        pack_for_critic(rows, prompts, without)


def test_a_critic_speaks_in_the_scale_of_the_reward() -> None:
    # Scores 2 and 5 of a reward model with mean 1 and deviation 2: values 0.5 and 2. The old value
    # 0 holds the second at 1; returns 0.5 and 2: (0 + 1^2) / 2.
    critic = Critic(run=cast(Run, None), scale=RewardScale(1.0, 2.0), value_clip=1.0)
    output_N = torch.tensor([2.0, 5.0])
    torch.testing.assert_close(critic.values(output_N), torch.tensor([0.5, 2.0]))
    experience = judged(pairs(), models(values=True), config(), kl_coef=0.2)
    batch = replace(
        pack_for_critic(experience.rollout.rows, np.array([0]), experience),
        old_values_N=torch.zeros(2),
        returns_N=torch.tensor([0.5, 2.0]),
    )
    torch.testing.assert_close(critic.loss(output_N, batch).total, torch.tensor(0.5))


def test_a_rank_without_responses_adds_nothing() -> None:
    experience = judged(pairs(), models(values=True), config(), kl_coef=0.2)
    batch = pack_for_actor(experience.rollout.rows, np.array([], dtype=np.int64), experience)
    loss = policy_objective(torch.zeros(0), batch, config=config(), kl_coef=0.0)
    assert loss.total == loss.units == 0


def test_a_price_in_the_loss_is_paid_for_trained_tokens_alone() -> None:
    grpo = config(
        estimator={"name": "grpo"}, kl_placement="loss", kl_estimator="k2", learns_unended=False
    )
    experience = judged(pairs(), models(), grpo, kl_coef=0.2)
    batch = pack_for_actor(experience.rollout.rows, np.array([0, 1]), experience)
    logps_N = batch.old_logps_N.clone()
    plain = policy_objective(logps_N, batch, config=grpo, kl_coef=0.0)
    # Only the first token differs from the reference, by 0.5 nats: 0.2 * 0.5^2 / 2.
    priced = policy_objective(logps_N, batch, config=grpo, kl_coef=0.2)
    torch.testing.assert_close(priced.total - plain.total, torch.tensor(0.025))
    torch.testing.assert_close(priced.metrics["kl_loss"], torch.tensor(0.025))
    # The cut response is at 3, 4 and 5.
    changed_N = logps_N.clone()
    changed_N[3:6] -= 2
    assert policy_objective(changed_N, batch, config=grpo, kl_coef=0.2).total == priced.total


def test_a_mean_over_responses_weighs_each_of_them_alike() -> None:
    grpo = config(
        estimator={"name": "grpo", "mean_over": "responses"},
        kl_placement="loss",
        kl_estimator="k2",
        learns_unended=False,
    )
    experience = judged(pairs(), models(), grpo, kl_coef=0.2)
    batch = pack_for_actor(experience.rollout.rows, np.array([0, 1]), experience)
    thirds = [1 / 3] * 3
    torch.testing.assert_close(batch.weights_N, torch.tensor([0.5, 0.5, 1, *thirds, 1]))
    loss = policy_objective(batch.old_logps_N, batch, config=grpo, kl_coef=0.2)
    # At a ratio of 1 a response adds minus its advantage: those of the first pair cancel out, and
    # of the second pair the one that was cut is not learnt from. The first of two tokens is 0.5
    # nats from the reference.
    assert loss.units == 3
    price = 0.2 * 0.5**2 / 2 / 2
    advantage = float(experience.advantages_N[-1])
    torch.testing.assert_close(loss.total, torch.tensor(price - advantage), check_dtype=False)
    torch.testing.assert_close(loss.metrics["kl_loss"], torch.tensor(price))


class TestAResponseAsOneAction:
    RLOO = config(estimator={"name": "rloo", "action": "response"}, learns_unended=False)

    def batch(self, *prompts: int, settings: PPOConfig = RLOO) -> ActorBatch:
        """Advantages 1.9, -1.9, -1.5 and 1.5 of responses of 2, 1, 3 and 1 tokens."""
        experience = judged(pairs(), models(), settings, kl_coef=0.2)
        return pack_for_actor(experience.rollout.rows, np.array(prompts), experience)

    def test_its_ratio_is_the_product_of_its_tokens_ratios(self) -> None:
        # 1.15 * 1.1 = 1.265, past the clip although no token is: -1.2 * 1.9; -1 * -1.9; the third
        # was cut and is not learnt from; 1.5 is clipped too: -1.2 * 1.5.
        batch = self.batch(0, 1)
        ratios_N = torch.tensor([1.15, 1.1, 1.0, 9.0, 9.0, 9.0, 1.5])
        loss = policy_objective(
            batch.old_logps_N + ratios_N.log(), batch, config=self.RLOO, kl_coef=0.0
        )
        torch.testing.assert_close(loss.total, torch.tensor(-2.28 + 1.9 - 1.8))
        assert loss.units == 3
        torch.testing.assert_close(loss.metrics["ratio"], torch.tensor(1.265 + 1 + 1.5))
        assert loss.metrics["clip_fraction"] == 2

    def test_its_gradient_is_that_of_its_tokens_before_the_policy_moves(self) -> None:
        of_tokens = config(estimator={"name": "rloo"}, learns_unended=False)
        gradients = []
        for settings in (self.RLOO, of_tokens):
            batch = self.batch(0, 1, settings=settings)
            logps_N = batch.old_logps_N.clone().requires_grad_()
            loss = policy_objective(logps_N, batch, config=settings, kl_coef=0.0)
            torch.autograd.backward(loss.total)
            gradients.append(logps_N.grad)
        torch.testing.assert_close(gradients[0], torch.tensor([-1.9, -1.9, 1.9, 0, 0, 0, -1.5]))
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_it_adds_up_over_microbatches(self) -> None:
        parts = [
            policy_objective(batch.old_logps_N + 0.1, batch, config=self.RLOO, kl_coef=0.0)
            for batch in (self.batch(0, 1), self.batch(0), self.batch(1))
        ]
        whole, first, second = parts
        torch.testing.assert_close(first.total + second.total, whole.total)
        assert first.units + second.units == whole.units


class TestBounds:
    def experience(self) -> Experience:
        return judged(pairs(), models(values=True), config(), kl_coef=0.2)

    def test_metrics_are_the_hand_worked_ones(self) -> None:
        found = experience_metrics(self.experience())
        assert found["reward"] == pytest.approx((3 + 1 - 1 + 0.5) / 4)
        assert found["score"] == pytest.approx((3 + 1 + 2 + 0.5) / 4)
        assert found["response_tokens"] == 7 / 4
        assert found["ended"] == 0.75
        assert found["kl_nats"] == pytest.approx(0.5 / 4)
        assert found["kl_k3_nats"] == pytest.approx((np.exp(-0.5) - 0.5) / 4)
        assert found["entropy"] == pytest.approx(0.1 * (1 + 2 + 3 + 4 + 5 + 6 + 2) / 7)
        assert found["sampler_delta"] == 0
        assert found["value"] == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("bounds", "error"),
        [
            ({"max_sampler_delta": 0.01}, SamplerMismatchError),
            ({"max_kl_nats": 0.1}, KLBoundError),
            ({"max_length_ratio": 1.7}, LengthBoundError),
        ],
    )
    def test_a_rollout_past_a_bound_stops_the_job(
        self, bounds: dict[str, float], error: type[Exception]
    ) -> None:
        metrics = {**experience_metrics(self.experience()), "sampler_delta": 0.02}
        check_rollout(metrics, config(), first_response_tokens=1.0)
        with pytest.raises(error, match=next(iter(bounds))):
            check_rollout(metrics, config(**bounds), first_response_tokens=1.0)

    def test_responses_that_collapse_stop_the_job_too(self) -> None:
        metrics = experience_metrics(self.experience())
        check_rollout(metrics, config(), first_response_tokens=8.7)
        with pytest.raises(LengthBoundError, match=r"after 8\.8 in the first rollout"):
            check_rollout(metrics, config(), first_response_tokens=8.8)

    def test_numbers_that_are_none_stop_the_job(self) -> None:
        metrics = {**experience_metrics(self.experience()), "kl_nats": float("nan")}
        with pytest.raises(KLBoundError, match="nan"):
            check_rollout(metrics, config(), first_response_tokens=2.0)

    def test_a_policy_that_is_not_its_reference_stops_the_job(self) -> None:
        experience = self.experience()
        with pytest.raises(ReferenceMismatchError, match=r"differs by 0\.07143 nats"):
            check_reference(experience, "fp32")
        same = replace(experience.models, reference_logps_N=experience.models.old_logps_N)
        check_reference(replace(experience, models=same), "fp32")

    @pytest.mark.parametrize("ratio", [1.002, 0.998, float("nan")])
    def test_a_first_ratio_that_is_not_1_stops_the_job(self, ratio: float) -> None:
        check_ratio({"ratio": 1.0005})
        with pytest.raises(RatioMismatchError, match="not 1"):
            check_ratio({"ratio": ratio})


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"max_length": 256, "max_new_tokens": 256}, "to leave a prompt room"),
            ({"max_new_tokens": 8, "min_new_tokens": 9}, "must not exceed max_new_tokens"),
            ({"max_new_tokens": 8, "min_new_tokens": 8}, "no response ends by itself"),
            (
                {
                    "max_new_tokens": 8,
                    "min_new_tokens": 8,
                    "missing_end_reward": None,
                    "learns_unended": False,
                },
                "no response ends by itself",
            ),
            ({"rollout_prompts": 8, "global_batch_size": 9}, "must not exceed rollout_prompts"),
            (
                {"estimator": {"name": "grpo"}, "samples_per_prompt": 1},
                "samples_per_prompt must be at least 2",
            ),
            ({"kl_placement": "loss"}, "needs kl_estimator k2 or k3"),
            ({"kl_placement": "loss", "kl_estimator": "abs"}, "needs kl_estimator k2 or k3"),
            ({"kl_adaptation": {}, "kl_coef": 0}, "must not be 0"),
            ({"parallel": {"tensor_model_parallel_size": 2}}, "a data_parallel_size only"),
            ({"parallel": {"pipeline_model_parallel_size": 2}}, "a data_parallel_size only"),
            ({"parallel": {"context_parallel_size": 2}}, "a data_parallel_size only"),
            ({"restore_best": True, "validate_every_steps": 1}, "restore_best goes by"),
            ({"early_stop_patience": 1, "validate_every_steps": 1}, "early_stop_patience goes by"),
            ({"estimator": {"name": "rloo", "decay": 0.9}}, "Extra inputs are not permitted"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(ValidationError, match=says):
            config(**changes)

    def test_data_parallel_ranks_are_allowed(self) -> None:
        assert config(parallel={"data_parallel_size": 2}).parallel.world_size == 2

    @pytest.mark.parametrize(
        ("stage", "folder", "says"),
        [
            ("ppo", {}, "the stage ppo needs a reward_model"),
            ("sft", {"reward_model": "r"}, "the stage sft has no use for a reward_model"),
        ],
    )
    def test_a_job_has_a_reward_model_where_it_is_used(
        self, stage: str, folder: dict[str, str], says: str
    ) -> None:
        job = {"stage": {"stage": stage}, "model": "m", "dataset": "d"}
        with pytest.raises(ValidationError, match=says):
            TrainingJob.model_validate({**job, **folder})
