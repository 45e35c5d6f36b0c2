import math

import pytest
import torch
from torch import Tensor

from alignflow.training.losses import (
    Distance,
    PairLogps,
    SummedLoss,
    attribute_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    log_ratios,
    reward_loss,
    row_lengths,
    row_logps,
    rpo_loss,
    sft_loss,
    with_sft,
)

DISTANCES: tuple[Distance, ...] = ("sq", "fwd_kl", "bwd_kl")


def pairs(chosen: list[float], rejected: list[float]) -> PairLogps:
    return PairLogps(chosen_B=torch.tensor(chosen), rejected_B=torch.tensor(rejected))


def random_pairs(size: int, seed: int, dtype: torch.dtype = torch.float32) -> PairLogps:
    generator = torch.Generator().manual_seed(seed)
    chosen_B, rejected_B = -10 * torch.rand(2, size, generator=generator, dtype=dtype)
    return PairLogps(chosen_B=chosen_B, rejected_B=rejected_B)


def take(logps: PairLogps, part: slice) -> PairLogps:
    return PairLogps(chosen_B=logps.chosen_B[part], rejected_B=logps.rejected_B[part])


def rated(num_rows: int, num_attributes: int) -> tuple[Tensor, Tensor]:
    """Predictions, and labels of which about a third are unknown."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, num_rows, num_attributes)
    predictions, labels, draws = 4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return predictions, labels.masked_fill(draws < 4 / 3, math.nan)


def gradients_of(logps: PairLogps) -> tuple[Tensor, Tensor]:
    return logps.chosen_B.requires_grad_(), logps.rejected_B.requires_grad_()


def added(parts: list[SummedLoss]) -> dict[str, Tensor]:
    sums = [{"total": part.total, "units": part.units, **part.metrics} for part in parts]
    return {name: torch.stack([part[name] for part in sums]).sum() for name in sums[0]}


def assert_same_sums(parts: list[SummedLoss], whole: SummedLoss) -> None:
    for name, expected in added([whole]).items():
        torch.testing.assert_close(added(parts)[name], expected)


class TestSFT:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Probabilities 1/2, 1/4, 1/8: ln 2 + 2 ln 2 + 3 ln 2.
        loss = sft_loss(torch.tensor([0.5, 0.25, 0.125]).log())
        torch.testing.assert_close(loss.total, torch.tensor(6 * math.log(2)))
        assert loss.units == 3

    @pytest.mark.parametrize("split", [1, 4, 7])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        logps_N = -torch.rand(8, generator=torch.Generator().manual_seed(0))
        assert_same_sums([sft_loss(logps_N[:split]), sft_loss(logps_N[split:])], sft_loss(logps_N))

    def test_a_batch_without_scored_tokens_adds_nothing(self) -> None:
        loss = sft_loss(torch.empty(0))
        assert loss.total == 0
        assert loss.units == 0

    def test_gradient_is_minus_one_a_token(self) -> None:
        logps_N = torch.randn(5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda logps: sft_loss(logps).total, (logps_N,))


class TestReward:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Margins 0, 1 and -1: ln 2 + ln(1 + 1/e) + ln(1 + e). One pair right, one tie, one wrong.
        loss = reward_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, 1.0]))
        expected = math.log(2) + math.log1p(math.exp(-1)) + math.log1p(math.e)
        torch.testing.assert_close(loss.total, torch.tensor(expected))
        assert loss.units == 3
        assert loss.metrics["accuracy"] == 1.5
        assert loss.metrics["margin"] == 0

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        scores = random_pairs(8, seed=0)
        parts = [take(scores, slice(split)), take(scores, slice(split, None))]
        assert_same_sums(
            [reward_loss(part.chosen_B, part.rejected_B) for part in parts],
            reward_loss(scores.chosen_B, scores.rejected_B),
        )

    def test_margin_and_centering_are_the_hand_worked_sum(self) -> None:
        # Differences 3 and 0 less margins 2 and 1: ln(1 + 1/e) + ln(1 + e).
        # Sums 1 and 4, squared and weighted by 0.01: 0.01 + 0.16.
        chosen_B, rejected_B = torch.tensor([2.0, 2.0]), torch.tensor([-1.0, 2.0])
        margin_B = torch.tensor([2.0, 1.0])
        loss = reward_loss(chosen_B, rejected_B, margin_B=margin_B, centering=0.01)
        expected = math.log1p(math.exp(-1)) + math.log1p(math.e) + 0.17
        torch.testing.assert_close(loss.total, torch.tensor(expected))
        # What was asked for beyond being higher makes no pair wrong.
        assert loss.metrics["accuracy"] == 1.5
        assert loss.metrics["margin"] == 3
        assert loss.metrics["center"] == 2.5

    def test_margin_and_centering_add_up_over_microbatches(self) -> None:
        scores, margin_B = random_pairs(8, seed=0), torch.rand(8)
        parts = [
            reward_loss(
                scores.chosen_B[part], scores.rejected_B[part], margin_B=margin_B[part], centering=2
            )
            for part in (slice(3), slice(3, None))
        ]
        whole = reward_loss(scores.chosen_B, scores.rejected_B, margin_B=margin_B, centering=2)
        assert_same_sums(parts, whole)

    def test_centering_alone_minds_a_shift_of_all_scores(self) -> None:
        scores = random_pairs(8, seed=0)
        plain = [reward_loss(scores.chosen_B + c, scores.rejected_B + c).total for c in (0, 5)]
        torch.testing.assert_close(*plain)
        # Sums of a pair that are 0 before the shift are 10 after it: 8 * 0.5 * 100.
        centred = reward_loss(scores.chosen_B + 5, 5 - scores.chosen_B, centering=0.5).total
        bare = reward_loss(scores.chosen_B + 5, 5 - scores.chosen_B).total
        torch.testing.assert_close(centred - bare, torch.tensor(400.0))

    def test_loss_is_finite_at_huge_margins(self) -> None:
        loss = reward_loss(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
        torch.testing.assert_close(loss.total, torch.tensor(2e4))

    def test_loss_equals_the_naive_one(self) -> None:
        scores = random_pairs(16, seed=1, dtype=torch.float64)
        naive = 0.0
        for chosen, rejected in zip(scores.chosen_B, scores.rejected_B, strict=True):
            naive -= math.log(1 / (1 + math.exp(rejected - chosen)))
        loss = reward_loss(scores.chosen_B, scores.rejected_B)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    def test_gradient(self) -> None:
        scores = random_pairs(4, seed=2, dtype=torch.float64)
        inputs = (scores.chosen_B.requires_grad_(), scores.rejected_B.requires_grad_())
        assert torch.autograd.gradcheck(lambda c, r: reward_loss(c, r).total, inputs)
        margin_B = torch.rand(4, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda c, r: reward_loss(c, r, margin_B=margin_B, centering=0.3).total, inputs
        )

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="chosen_B"):
            reward_loss(torch.zeros(2), torch.zeros(3))
        with pytest.raises(ValueError, match="margin_B"):
            reward_loss(torch.zeros(2), torch.zeros(2), margin_B=torch.zeros(1))


class TestAttributes:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Known: 1 - 3, 2 - 0 and 0.5 - 1, squared 4, 4 and 0.25. Squared labels: 9, 0 and 1.
        predictions_RK = torch.tensor([[1.0, 7.0], [2.0, 0.5]])
        labels_RK = torch.tensor([[3.0, math.nan], [0.0, 1.0]])
        loss = attribute_loss(predictions_RK, labels_RK)
        assert loss.total == 8.25
        assert loss.units == 3
        assert loss.metrics == {"error": 4.5, "variance": 10}

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        predictions_RK, labels_RK = rated(8, 3)
        parts = [
            attribute_loss(predictions_RK[part], labels_RK[part])
            for part in (slice(split), slice(split, None))
        ]
        assert_same_sums(parts, attribute_loss(predictions_RK, labels_RK))

    def test_an_unknown_attribute_changes_neither_loss_nor_gradient(self) -> None:
        predictions_RK, labels_RK = rated(4, 3)
        labels_RK[2, 1] = math.nan
        changed_RK = predictions_RK.clone()
        changed_RK[2, 1] = math.inf
        gradients: list[Tensor] = []
        for inputs_RK in (predictions_RK, changed_RK):
            inputs_RK.requires_grad_()
            loss = attribute_loss(inputs_RK, labels_RK)
            gradients += torch.autograd.grad(loss.total, inputs_RK)
            assert loss.units == (~labels_RK.isnan()).sum()
            assert loss.total.isfinite()
        assert torch.equal(*gradients)
        assert gradients[0][2, 1] == 0

    def test_loss_equals_the_naive_one(self) -> None:
        predictions_RK, labels_RK = rated(16, 4)
        naive = sum(
            (float(prediction) - float(label)) ** 2
            for prediction, label in zip(predictions_RK.flatten(), labels_RK.flatten(), strict=True)
            if not math.isnan(label)
        )
        loss = attribute_loss(predictions_RK, labels_RK)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    def test_gradient(self) -> None:
        predictions_RK, labels_RK = rated(4, 3)
        predictions_RK.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda predictions: attribute_loss(predictions, labels_RK).total, (predictions_RK,)
        )

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="predictions_RK"):
            attribute_loss(torch.zeros(2, 1), torch.zeros(1, 2))


class TestDPO:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # policy - reference: chosen (0, 4), rejected (0, -1), so margins of 0 and 5 nats.
        # At beta 0.2 the logits are 0 and 1: ln 2 + ln(1 + 1/e).
        policy, reference = pairs([-3, -6], [-4, -9]), pairs([-3, -10], [-4, -8])
        loss = dpo_loss(policy, reference, beta=0.2)
        torch.testing.assert_close(loss.total, torch.tensor(math.log(2) + math.log1p(math.exp(-1))))
        assert loss.units == 2
        # Rewards 0.2 * (0, 4) and 0.2 * (0, -1); a tie and a pair that is right.
        for name, expected in {
            "accuracy": 1.5,
            "margin": 1.0,
            "chosen_reward": 0.8,
            "rejected_reward": -0.2,
        }.items():
            torch.testing.assert_close(loss.metrics[name], torch.tensor(expected))

    def test_loss_of_the_reference_itself_is_ln_2_a_pair(self) -> None:
        reference = random_pairs(5, seed=0)
        loss = dpo_loss(reference, reference, beta=0.7)
        torch.testing.assert_close(loss.total, torch.tensor(5 * math.log(2)))
        assert loss.metrics["accuracy"] == 2.5

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        policy, reference = random_pairs(8, seed=0), random_pairs(8, seed=1)
        halves = (slice(split), slice(split, None))
        parts = [dpo_loss(take(policy, s), take(reference, s), beta=0.1) for s in halves]
        assert_same_sums(parts, dpo_loss(policy, reference, beta=0.1))

    def test_loss_equals_the_naive_one(self) -> None:
        policy = random_pairs(16, seed=1, dtype=torch.float64)
        reference = random_pairs(16, seed=2, dtype=torch.float64)
        naive = 0.0
        for index in range(16):
            chosen_ratio = policy.chosen_B[index] - reference.chosen_B[index]
            rejected_ratio = policy.rejected_B[index] - reference.rejected_B[index]
            naive += math.log(1 + math.exp(-0.3 * (chosen_ratio - rejected_ratio)))
        loss = dpo_loss(policy, reference, beta=0.3)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    def test_gradient(self) -> None:
        policy = random_pairs(4, seed=1, dtype=torch.float64)
        reference = random_pairs(4, seed=2, dtype=torch.float64)

        def total(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
            return dpo_loss(PairLogps(chosen_B, rejected_B), reference, beta=0.5).total

        inputs = (policy.chosen_B.requires_grad_(), policy.rejected_B.requires_grad_())
        assert torch.autograd.gradcheck(total, inputs)

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="chosen_B"):
            dpo_loss(random_pairs(2, seed=0), random_pairs(3, seed=0), beta=0.1)

    def test_smoothing_mixes_in_the_pair_the_other_way_round(self) -> None:
        # A margin of 5 at beta 0.2 is the logit 1. With one label in four wrong:
        # 3/4 ln(1 + 1/e) + 1/4 ln(1 + e), and ln(1 + e) = 1 + ln(1 + 1/e).
        policy, reference = pairs([-6], [-9]), pairs([-10], [-8])
        loss = dpo_loss(policy, reference, beta=0.2, label_smoothing=0.25)
        torch.testing.assert_close(loss.total, torch.tensor(math.log1p(math.exp(-1)) + 0.25))
        assert loss.metrics["accuracy"] == 1

    def test_smoothing_leaves_the_loss_of_the_reference_at_ln_2(self) -> None:
        reference = random_pairs(5, seed=0)
        loss = dpo_loss(reference, reference, beta=0.7, label_smoothing=0.3)
        torch.testing.assert_close(loss.total, torch.tensor(5 * math.log(2)))

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_smoothed_loss_adds_up_over_microbatches(self, split: int) -> None:
        policy, reference = random_pairs(8, seed=0), random_pairs(8, seed=1)
        parts = [
            dpo_loss(take(policy, s), take(reference, s), beta=0.1, label_smoothing=0.2)
            for s in (slice(split), slice(split, None))
        ]
        assert_same_sums(parts, dpo_loss(policy, reference, beta=0.1, label_smoothing=0.2))

    def test_gradient_of_the_smoothed_loss(self) -> None:
        reference = random_pairs(4, seed=2, dtype=torch.float64)

        def total(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
            policy = PairLogps(chosen_B, rejected_B)
            return dpo_loss(policy, reference, beta=0.5, label_smoothing=0.2).total

        assert torch.autograd.gradcheck(total, gradients_of(random_pairs(4, 1, torch.float64)))


class TestIPO:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Mean log ratios: chosen (0, 1), rejected (0, -2), so margins of 0 and 3 nats. At beta 0.25
        # the target is 2: (0 - 2)^2 + (3 - 2)^2.
        policy, reference = pairs([-3, -1], [-4, -4]), pairs([-3, -2], [-4, -2])
        loss = ipo_loss(policy, reference, beta=0.25)
        torch.testing.assert_close(loss.total, torch.tensor(5.0))
        assert loss.units == 2
        # Rewards 0.25 * (0, 1) and 0.25 * (0, -2); a tie and a pair that is right.
        for name, expected in {
            "accuracy": 1.5,
            "margin": 0.75,
            "chosen_reward": 0.25,
            "rejected_reward": -0.5,
        }.items():
            torch.testing.assert_close(loss.metrics[name], torch.tensor(expected))

    def test_loss_of_the_reference_itself_is_the_squared_target(self) -> None:
        reference = random_pairs(5, seed=0)
        loss = ipo_loss(reference, reference, beta=0.1)
        torch.testing.assert_close(loss.total, torch.tensor(5 * 25.0))

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        policy, reference = random_pairs(8, seed=0), random_pairs(8, seed=1)
        halves = (slice(split), slice(split, None))
        parts = [ipo_loss(take(policy, s), take(reference, s), beta=0.1) for s in halves]
        assert_same_sums(parts, ipo_loss(policy, reference, beta=0.1))

    def test_loss_equals_the_naive_one(self) -> None:
        policy = random_pairs(16, seed=1, dtype=torch.float64)
        reference = random_pairs(16, seed=2, dtype=torch.float64)
        naive = 0.0
        for index in range(16):
            chosen_ratio = policy.chosen_B[index] - reference.chosen_B[index]
            rejected_ratio = policy.rejected_B[index] - reference.rejected_B[index]
            naive += float(chosen_ratio - rejected_ratio - 1 / (2 * 0.3)) ** 2
        loss = ipo_loss(policy, reference, beta=0.3)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    def test_gradient(self) -> None:
        reference = random_pairs(4, seed=2, dtype=torch.float64)

        def total(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
            return ipo_loss(PairLogps(chosen_B, rejected_B), reference, beta=0.5).total

        assert torch.autograd.gradcheck(total, gradients_of(random_pairs(4, 1, torch.float64)))

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="chosen_B"):
            ipo_loss(random_pairs(2, seed=0), random_pairs(3, seed=0), beta=0.1)


class TestRPO:
    @pytest.mark.parametrize(
        ("distance", "expected"),
        [
            # (ln 3 - 0)^2.
            ("sq", math.log(3) ** 2),
            # KL of (3/4, 1/4) to (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
            ("fwd_kl", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
            # KL of (1/2, 1/2) to (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2.
            ("bwd_kl", 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        ],
    )
    def test_loss_is_the_hand_worked_distance(self, distance: Distance, expected: float) -> None:
        # A margin of 2 ln 3 at beta 1/2 is the logit ln 3, a chance of 3/4; equal true rewards are
        # a chance of 1/2. A second pair is where it should be: margin 4, so logit 2 = 0.5 * 4.
        policy, reference = pairs([2 * math.log(3), 4], [0, 0]), pairs([0, 0], [0, 0])
        loss = rpo_loss(
            policy,
            reference,
            torch.tensor([0.0, 4.0]),
            beta=0.5,
            reward_scale=0.5,
            distance=distance,
        )
        torch.testing.assert_close(loss.total, torch.tensor(expected))
        assert loss.units == 2
        assert loss.metrics["accuracy"] == 2
        torch.testing.assert_close(loss.metrics["margin"], torch.tensor(math.log(3) + 2))

    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, distance: Distance, split: int) -> None:
        policy, reference, gap_B = random_pairs(8, 0), random_pairs(8, 1), torch.arange(8.0)

        def loss(part: slice) -> SummedLoss:
            return rpo_loss(
                take(policy, part),
                take(reference, part),
                gap_B[part],
                beta=0.1,
                reward_scale=0.7,
                distance=distance,
            )

        assert_same_sums([loss(slice(split)), loss(slice(split, None))], loss(slice(None)))

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_loss_equals_the_naive_one(self, distance: Distance) -> None:
        policy, reference = (random_pairs(16, seed, torch.float64) for seed in (1, 2))
        gap_B = torch.linspace(-2, 5, 16, dtype=torch.float64)
        naive = 0.0
        for index in range(16):
            chosen_ratio = policy.chosen_B[index] - reference.chosen_B[index]
            rejected_ratio = policy.rejected_B[index] - reference.rejected_B[index]
            a, b = float(0.3 * (chosen_ratio - rejected_ratio)), float(0.7 * gap_B[index])
            p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
            if distance == "bwd_kl":
                p, q = q, p
            kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            naive += (a - b) ** 2 if distance == "sq" else kl
        loss = rpo_loss(policy, reference, gap_B, beta=0.3, reward_scale=0.7, distance=distance)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_gradient(self, distance: Distance) -> None:
        reference = random_pairs(4, seed=2, dtype=torch.float64)
        gap_B = torch.tensor([0.0, 1.0, -1.0, 3.0], dtype=torch.float64)

        def total(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
            policy = PairLogps(chosen_B, rejected_B)
            options = {"beta": 0.5, "reward_scale": 0.7}
            return rpo_loss(policy, reference, gap_B, **options, distance=distance).total

        assert torch.autograd.gradcheck(total, gradients_of(random_pairs(4, 1, torch.float64)))

    @pytest.mark.parametrize("distance", ["fwd_kl", "bwd_kl"])
    def test_loss_and_gradient_are_finite_at_huge_logits(self, distance: Distance) -> None:
        chosen_B = torch.tensor([-1e4, 1e4], requires_grad=True)
        loss = rpo_loss(
            PairLogps(chosen_B, torch.zeros(2)),
            pairs([0, 0], [0, 0]),
            torch.tensor([1e4, -1e4]),
            beta=1,
            reward_scale=1,
            distance=distance,
        )
        torch.testing.assert_close(loss.total.detach(), torch.tensor(2e4))
        (gradient_B,) = torch.autograd.grad(loss.total, chosen_B)
        assert gradient_B.isfinite().all()

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="reward_gap_B"):
            rpo_loss(
                *(random_pairs(2, 0), random_pairs(2, 1), torch.zeros(3)),
                beta=0.1,
                reward_scale=1,
                distance="sq",
            )


class TestKTO:
    @staticmethod
    def loss(policy_B: Tensor, reference_B: Tensor, is_desirable_B: Tensor) -> SummedLoss:
        return kto_loss(
            policy_B,
            reference_B,
            is_desirable_B,
            kl=1.0,
            beta=0.5,
            desirable_weight=1.0,
            undesirable_weight=2.0,
        )

    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Log ratios 3 (desirable), 1 (desirable) and 3 (undesirable); the KL term is 1. At beta 0.5
        # the logits are 1, 0 and -1, and the losses, with weight 2 on the undesirable one,
        # 1 - s(1), 1/2 and 2 (1 - s(-1)) = 2 s(1), where s(1) = e / (1 + e): 3/2 + s(1).
        loss = self.loss(
            torch.tensor([-2.0, -4.0, -6.0]),
            torch.tensor([-5.0, -5.0, -9.0]),
            torch.tensor([True, True, False]),
        )
        torch.testing.assert_close(loss.total, torch.tensor(1.5 + math.e / (1 + math.e)))
        assert loss.units == 3
        # Right, undecided, wrong; margins 3/2, 1/2 and -3/2; three times the KL term.
        for name, expected in {"accuracy": 1.5, "margin": 0.5, "kl": 3.0}.items():
            torch.testing.assert_close(loss.metrics[name], torch.tensor(expected))

    def test_loss_of_the_reference_itself_is_half_the_weights(self) -> None:
        logps_B = torch.tensor([-1.0, -2.0, -3.0])
        loss = kto_loss(
            logps_B,
            logps_B,
            torch.tensor([True, False, False]),
            kl=0.0,
            beta=0.3,
            desirable_weight=1.5,
            undesirable_weight=2.0,
        )
        torch.testing.assert_close(loss.total, torch.tensor((1.5 + 2 * 2.0) / 2))

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        logps, is_desirable_B = random_pairs(8, seed=0), torch.arange(8) % 3 == 0
        inputs = (logps.chosen_B, logps.rejected_B, is_desirable_B)
        parts = [
            self.loss(*(tensor[part] for tensor in inputs))
            for part in (slice(split), slice(split, None))
        ]
        assert_same_sums(parts, self.loss(*inputs))

    def test_loss_equals_the_naive_one(self) -> None:
        logps, is_desirable_B = random_pairs(16, 1, torch.float64), torch.arange(16) % 3 == 0
        naive = 0.0
        for index in range(16):
            log_ratio = float(logps.chosen_B[index] - logps.rejected_B[index])
            if is_desirable_B[index]:
                naive += 1.0 - 1 / (1 + math.exp(-0.5 * (log_ratio - 1)))
            else:
                naive += 2.0 - 2 / (1 + math.exp(-0.5 * (1 - log_ratio)))
        loss = self.loss(logps.chosen_B, logps.rejected_B, is_desirable_B)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    def test_gradient(self) -> None:
        logps = random_pairs(4, 1, torch.float64)
        is_desirable_B = torch.tensor([True, False, True, False])

        def total(policy_B: Tensor) -> Tensor:
            return self.loss(policy_B, logps.rejected_B, is_desirable_B).total

        assert torch.autograd.gradcheck(total, (logps.chosen_B.requires_grad_(),))

    def test_log_ratios_are_the_hand_worked_sum_and_add_up(self) -> None:
        # 3 + 1 + 3.
        policy_B, reference_B = torch.tensor([-2.0, -4.0, -6.0]), torch.tensor([-5.0, -5.0, -9.0])
        whole = log_ratios(policy_B, reference_B)
        assert whole.total == 7
        assert whole.units == 3
        halves = (slice(1), slice(1, None))
        assert_same_sums([log_ratios(policy_B[s], reference_B[s]) for s in halves], whole)

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="is_desirable_B"):
            self.loss(torch.zeros(2), torch.zeros(2), torch.tensor([True]))
        with pytest.raises(ValueError, match="policy_B"):
            log_ratios(torch.zeros(2), torch.zeros(3))


class TestWithSFT:
    def test_total_is_the_weighted_hand_worked_sum(self) -> None:
        # The reference itself: 2 ln 2. Mean log-probabilities -1 and -3: 2 ln 2 + 0.5 * 4.
        reference = random_pairs(2, seed=0)
        plain = dpo_loss(reference, reference, beta=0.1)
        loss = with_sft(plain, torch.tensor([-1.0, -3.0]), weight=0.5)
        torch.testing.assert_close(loss.total, torch.tensor(2 * math.log(2) + 2))
        assert loss.units == 2
        torch.testing.assert_close(loss.metrics["preference_loss"], plain.total)
        assert loss.metrics["sft_loss"] == 4
        assert plain.metrics.items() <= loss.metrics.items()

    @pytest.mark.parametrize("split", [1, 3, 5])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        policy, reference = random_pairs(8, seed=0), random_pairs(8, seed=1)

        def loss(part: slice) -> SummedLoss:
            plain = ipo_loss(take(policy, part), take(reference, part), beta=0.5)
            return with_sft(plain, policy.chosen_B[part], weight=0.3)

        assert_same_sums([loss(slice(split)), loss(slice(split, None))], loss(slice(None)))

    def test_gradient(self) -> None:
        reference = random_pairs(4, seed=2, dtype=torch.float64)

        def total(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
            loss = dpo_loss(PairLogps(chosen_B, rejected_B), reference, beta=0.5)
            return with_sft(loss, chosen_B / 7, weight=0.3).total

        assert torch.autograd.gradcheck(total, gradients_of(random_pairs(4, 1, torch.float64)))


class TestRowLogps:
    def test_rows_are_summed_and_a_row_without_scored_tokens_is_zero(self) -> None:
        # Row 0 has -1 and -2, row 1 nothing, row 2 has -4.
        logps_R = row_logps(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 2]), 3)
        torch.testing.assert_close(logps_R, torch.tensor([-3.0, 0.0, -4.0]))

    def test_lengths_count_scored_tokens_and_can_be_divided_by(self) -> None:
        lengths_R = row_lengths(torch.tensor([0, 0, 2]), 3)
        assert lengths_R.tolist() == [2, 1, 1]

    def test_gradient(self) -> None:
        logps_N = torch.randn(4, dtype=torch.float64, requires_grad=True)
        rows_N = torch.tensor([1, 0, 1, 2])
        assert torch.autograd.gradcheck(lambda logps: row_logps(logps, rows_N, 3), (logps_N,))
