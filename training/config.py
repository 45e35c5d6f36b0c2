"""Configs of the training stages: a union on `stage`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from alignflow.config import Config
from alignflow.data_validation.config import AttributeName, Rating

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]


SURVIVAL_FIELDS = frozenset(
    {
        "checkpoint_every_steps",
        "keep_checkpoints",
        "max_loss",
        "max_grad_norm",
        "max_accuracy_drop",
        "accuracy_drop_validations",
        "recompute",
        "compile",
        "max_kl_nats",
        "max_length_ratio",
        "max_sampler_delta",
    }
)
"""Fields that decide how a job survives and is computed, not what: no part of keys and
checkpoints."""

LAYOUT_FIELDS = frozenset(
    {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "data_parallel_size",
        "sequence_parallel",
        "context_parallel_size",
    }
)
"""Fields of `parallel` that decide where sums are made, not what they are: a checkpoint may be
loaded under others, and a model is reused under others."""


class ParallelConfig(Config):
    """How a model spreads over the processes of a job."""

    tensor_model_parallel_size: PositiveInt = 1
    pipeline_model_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    use_distributed_optimizer: bool = False
    """Shard optimizer states and fp32 weights over the data-parallel ranks (ZeRO-1)."""
    sequence_parallel: bool = False
    """Split what lies between the tensor-parallel matrix products over the tokens: norms and
    residuals take less memory (arXiv:2205.05198). Needs tensor_model_parallel_size above 1."""
    context_parallel_size: PositiveInt = 1
    """Ranks that share the tokens of each microbatch; attention trades tokens for heads between
    them (arXiv:2309.14509). The layers are then Megatron's own, not Transformer Engine's."""

    @property
    def world_size(self) -> int:
        """Processes that the layout needs."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.data_parallel_size
            * self.context_parallel_size
        )

    @model_validator(mode="after")
    def _sequence_parallel_splits(self) -> Self:
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("sequence_parallel needs tensor_model_parallel_size above 1")
        return self


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoRAConfig(Config):
    """Low-rank adapters that are trained instead of the model's weights (arXiv:2106.09685).

    An adapter adds (alpha / rank) B A x to what a linear layer makes of x; B starts at 0.
    """

    rank: PositiveInt = 16
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 32.0
    """Weight of the adapters, as a multiple of the rank."""
    targets: Annotated[tuple[Projection, ...], Field(min_length=1)] = get_args(Projection)
    """Linear layers that get an adapter, by their Hugging Face names; all of them by default."""

    @field_validator("targets")
    @classmethod
    def _targets_differ(cls, targets: tuple[Projection, ...]) -> tuple[Projection, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError("targets names a layer twice")
        return targets


class TrainerConfig(Config):
    """What every training stage shares: data order, batch, optimizer, checkpoints and guards."""

    max_length: PositiveInt = 1024
    """Tokens of a rendered row; longer rows are cut at the end, and the cuts are counted."""
    global_batch_size: PositiveInt = 32
    """Rows (SFT), pairs (reward model, DPO) or responses (KTO) of one optimizer step over all
    ranks."""
    microbatch_tokens: PositiveInt = 4096
    """Most tokens of one packed microbatch; a single longer row forms its own."""
    num_epochs: PositiveInt = 1
    """Passes over the training set, each in an order of its own."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps even if an epoch is not over."""
    seed: NonNegativeInt = 1234
    """Seed of data order and initial weights of new heads."""
    precision: Precision = "bf16"
    """Compute type of weights and activations; bf16 keeps fp32 master weights."""
    parallel: ParallelConfig = ParallelConfig()
    lora: LoRAConfig | None = None
    """Train low-rank adapters and keep the weights as they are; None trains all weights."""
    recompute: Recompute = "none"
    """Activations that the backward pass computes again instead of keeping them: those of attention
    (selective) or of whole layers (full). Less memory and more time, the same gradients."""
    compile: bool = False
    """Compile the element-wise parts of the model, which on a CPU take most of a step. Needs a C++
    compiler; the first job on a machine spends some 20 seconds at it."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Learning rate at the end of the schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Form of the decay after warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the learning rate rises linearly from 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (arXiv:1711.05101), as a share of the learning rate."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the gradient's running mean."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the squared gradient's running mean."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the squared gradient's mean."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""

    checkpoint_every_steps: PositiveInt = 100
    """Steps between checkpoints that a killed job resumes from."""
    keep_checkpoints: PositiveInt = 2
    """How many of the latest checkpoints stay on disk until the stage is done."""
    validate_every_steps: PositiveInt | None = None
    """Steps between losses on the held-out rows; None measures at the start and the end only."""
    early_stop_patience: PositiveInt | None = None
    """End training after so many validations in a row without a lower held-out loss than before;
    None trains all steps. Needs validate_every_steps."""
    restore_best: bool = False
    """Keep the checkpoint of the lowest held-out loss besides the latest ones, and end with its
    model rather than that of the last step. Needs validate_every_steps."""
    max_validation_rows: PositiveInt | None = 256
    """Held-out rows (SFT) or pairs that are measured, the first ones; None measures all."""
    max_loss: PositiveFloat = 100.0
    """A loss above this, NaN or infinity stops the job as diverged; in nats a token (SFT) or a
    pair, but in units of its own for `ipo`, `rpo_sq` and `kto`."""
    max_grad_norm: PositiveFloat | None = None
    """A gradient norm above this, before clipping, stops the job as diverged; None lets every
    finite one pass."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine the model: not how a job survives, nor its layout."""
        return self.model_dump(
            mode="json",
            exclude={**dict.fromkeys(SURVIVAL_FIELDS, True), "parallel": set(LAYOUT_FIELDS)},
        )

    @model_validator(mode="after")
    def _learning_rates_are_ordered(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate must not exceed learning_rate")
        if self.min_learning_rate and self.schedule == "constant":
            raise ValueError("min_learning_rate does nothing under the schedule constant")
        return self

    @model_validator(mode="after")
    def _what_reads_validations_has_them(self) -> Self:
        for name in ("early_stop_patience", "restore_best"):
            if getattr(self, name) and self.validate_every_steps is None:
                raise ValueError(f"{name} needs validate_every_steps")
        return self


class SFTConfig(TrainerConfig):
    """Supervised fine-tuning: next-token loss on assistant turns."""

    stage: Literal["sft"] = "sft"


class RewardModelConfig(TrainerConfig):
    """Bradley-Terry reward model: a scalar head on the last token (arXiv:2203.02155, eq. 1)."""

    stage: Literal["reward_model"] = "reward_model"
    margin_scale: NonNegativeFloat = 0.0
    """How far the scores of a pair have to be apart for each point between the data's scores of its
    answers (arXiv:2307.09288, eq. 2); 0 asks for none, else pairs without scores are refused."""
    centering: NonNegativeFloat = 0.0
    """Weight of the squared sum of a pair's scores, which keeps their mean near 0
    (arXiv:2312.09244, eq. 2); TRL's center_rewards_coefficient, where 0.01 is usual."""


class AttributeModelConfig(TrainerConfig):
    """Attribute model of SteerLM (arXiv:2310.05344), by regression as in arXiv:2406.08673."""

    stage: Literal["attribute_model"] = "attribute_model"


class AnnotationConfig(Config):
    """How the attribute model rates the demonstrations, for SteerLM to learn from."""

    max_length: PositiveInt = 1024
    """Tokens of a rated conversation; longer ones are cut at the end, and the cuts are counted."""
    microbatch_tokens: PositiveInt = 4096
    """Most tokens of one pass; a single longer conversation forms its own."""
    precision: Precision = "bf16"
    """Compute type of the model."""
    keep_ratings: bool = True
    """Where people rated an answer, their ratings stay and the model adds what is missing; false
    rates these answers anew too, as NeMo-Aligner does, which evens out how people differ."""


class SteerLMConfig(TrainerConfig):
    """Fine-tuning on answers whose prompts name their ratings (arXiv:2310.05344, step 3)."""

    stage: Literal["steerlm"] = "steerlm"
    wanted: dict[AttributeName, Rating] = {
        "quality": 4,
        "toxicity": 0,
        "helpfulness": 4,
        "correctness": 4,
        "coherence": 4,
        "violence": 0,
    }
    """What the trained model is asked for. Names that no training row has are left out; an
    attribute that isn't named takes its commonest value in the training rows."""


class SteerLM2Config(TrainerConfig):
    """Drawing a SteerLM model towards the best one there is (arXiv:2406.08673, section 4.5).

    That is P(y|a,x) ~ P(a|x,y) P(y|x), of the attribute model and the SFT model. Responses are
    sampled from the model that training starts from, which is asked for what is wanted of it; they
    are rated and weighed, then learnt from. Rows are prompts, each once. A further round samples
    from what this one made: a stage of its own.
    """

    stage: Literal["steerlm2"] = "steerlm2"
    learning_rate: PositiveFloat = 1e-7
    """Peak learning rate; 1e-7 in the paper, for a model of 70B."""
    global_batch_size: PositiveInt = 128
    """Prompts of one optimizer step over all ranks, with all of their responses."""
    num_epochs: PositiveInt = 2
    """Passes over the responses, each in an order of its own; 2 in the paper."""
    max_prompts: PositiveInt = 20_000
    """Most prompts of the training set that are answered, chosen by the seed; 20,000 in the
    paper."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 10
    """Responses to each prompt, among which the weights are normalised; 10 in the paper."""
    max_new_tokens: PositiveInt = 256
    """Most tokens of a response; a prompt has at most `max_length` less this."""
    generation_tokens: PositiveInt = 65536
    """Tokens of prompts and of room for responses that are decoded together on a rank; bounds the
    memory of keys and values."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, when sampling and in every log-probability alike; 0.7 in the paper."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that have this probability; 1 samples from all, 0.9 in the
    paper. The weights take the responses as drawn from all, so that leaving tokens out biases
    them."""
    concentration: PositiveFloat = 24.0
    """How closely ratings lie around what the attribute model predicts, as alpha + beta of a Beta
    distribution over the scale; 24 in the paper, where it fits HelpSteer2."""

    max_sampler_delta: PositiveFloat = 0.05
    """A mean difference of a token's log-probability between sampling and training above this, in
    nats, stops the job: it would weigh other responses than it sampled."""

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt."""
        return self.max_length - self.max_new_tokens

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> Self:
        if self.max_prompt_tokens < 1:
            raise ValueError("max_new_tokens must be less than max_length, to leave a prompt room")
        return self

    @model_validator(mode="after")
    def _each_rank_holds_the_model(self) -> Self:
        if self.parallel.world_size != self.parallel.data_parallel_size:
            raise ValueError(
                "steerlm2 samples with models that each process must hold whole: parallel may have "
                "a data_parallel_size only"
            )
        return self


DPOLoss = Literal["sigmoid", "ipo", "rpo_sq", "rpo_fwd_kl", "rpo_bwd_kl", "kto"]

_LOSSES_WITH: dict[str, tuple[DPOLoss, ...]] = {
    "label_smoothing": ("sigmoid",),
    "reward_scale": ("rpo_sq", "rpo_fwd_kl", "rpo_bwd_kl"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Options of `DPOConfig` that only some losses have."""


class DPOConfig(TrainerConfig):
    """Preference training without a reward model (arXiv:2305.18290) and its family."""

    stage: Literal["dpo"] = "dpo"
    loss: DPOLoss = "sigmoid"
    """What is minimised: `sigmoid` is DPO itself; `ipo` (arXiv:2310.12036) steers the mean over
    tokens to a fixed margin; `rpo_…` (arXiv:2406.11704) to the margin of the pair's scores, by
    squared distance, forward or backward KL; `kto` (arXiv:2402.01306) judges each response by
    itself and also takes unpaired ones."""
    beta: PositiveFloat = 0.1
    """Pull towards the reference model, dimensionless; larger stays closer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that `sigmoid` takes to be labelled the wrong way round (conservative DPO)."""
    reward_scale: PositiveFloat = 1.0
    """What `rpo_…` multiplies `score_chosen - score_rejected` by before beta * margin meets it."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of desirable responses in `kto`. With few of one sort, raise its weight until the sums
    of the weights are between 1:1 and 4:3, as the paper advises."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of undesirable responses in `kto`."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of an SFT loss on the chosen or desirable responses, in nats a token; 0 is without."""
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stop the job for reward hacking where the held-out accuracy stays further than this below
    its best while the held-out margin of rewards is above what it was then; None lets it pass.
    Needs validate_every_steps."""
    accuracy_drop_validations: PositiveInt = 3
    """Validations in a row that must show it."""

    @model_validator(mode="after")
    def _options_belong_to_the_loss(self) -> Self:
        for name, losses in _LOSSES_WITH.items():
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and self.loss not in losses:
                raise ValueError(f"{name} does nothing under the loss {self.loss}")
        return self

    @model_validator(mode="after")
    def _max_loss_lets_ipo_begin(self) -> Self:
        first = (1 / (2 * self.beta)) ** 2
        if self.loss == "ipo" and self.max_loss < first:
            raise ValueError(
                f"max_loss must be {first:g} or more, the first loss of ipo at beta {self.beta:g}"
            )
        return self

    @model_validator(mode="after")
    def _watch_has_validations(self) -> Self:
        if self.max_accuracy_drop is not None and self.validate_every_steps is None:
            raise ValueError("max_accuracy_drop needs validate_every_steps")
        return self


class GAEConfig(Config):
    """Generalised advantage estimates by a critic (arXiv:1506.02438): PPO proper."""

    name: Literal["gae"] = "gae"
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gamma: what a reward is worth one token earlier."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    """lambda: 0 trusts the critic, 1 the sampled rewards; 0.95 in OpenAI's code, TRL and
    NeMo-Aligner, 1 in OpenRLHF and verl."""
    whiten: bool = True
    """Give the advantages of a rollout mean 0 and standard deviation 1."""
    value_clip: PositiveFloat = 0.2
    """A value gains nothing by moving further than this from what it was at the rollout, in
    standard deviations of the reward; 0.2 in OpenAI's code, TRL and NeMo-Aligner, 0.5 in OpenRLHF
    and verl."""
    critic_learning_rate: PositiveFloat = 9e-6
    """Peak learning rate of the critic, which falls as the actor's does; 9e-6 in NeMo-Aligner and
    OpenRLHF."""
    critic_warmup_steps: NonNegativeInt = 0
    """Rollouts at the start from which the critic alone learns."""


class RLOOConfig(Config):
    """REINFORCE with the mean of a prompt's other responses as baseline (arXiv:2402.14740)."""

    name: Literal["rloo"] = "rloo"


class GRPOConfig(Config):
    """Rewards normalised over the responses to a prompt (arXiv:2402.03300)."""

    name: Literal["grpo"] = "grpo"
    divide_by_std: bool = True
    """False only subtracts the mean (Dr. GRPO, arXiv:2503.20783)."""
    mean_over: Literal["tokens", "responses"] = "tokens"
    """What counts alike in the policy loss: every token of an update (DAPO, arXiv:2503.14476, and
    TRL), or every response, whose tokens then weigh less the more they are: the paper's own eq. 3,
    under which long responses that fail lose less by the token."""


class AdaptiveKLConfig(Config):
    """A KL coefficient that follows a target (arXiv:1909.08593, section 2.2)."""

    target_nats: PositiveFloat = 6.0
    """Wanted divergence of a response from the reference, summed over its tokens."""
    horizon: PositiveInt = 10_000
    """Responses over which the coefficient answers a large error in full."""


class PPOConfig(TrainerConfig):
    """Reinforcement learning from a reward model (arXiv:2203.02155), with or without a critic.

    A step is a rollout: responses are sampled and scored, then learnt from in several updates. Rows
    are prompts, those of the preference pairs, each once. Rewards are in standard deviations from
    the mean that the reward model's scale records.
    """

    stage: Literal["ppo"] = "ppo"
    estimator: Annotated[GAEConfig | RLOOConfig | GRPOConfig, Field(discriminator="name")] = (
        GAEConfig()
    )
    """How rewards become advantages; `gae` trains a critic, the others have none."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate of the actor; 9e-7 in NeMo-Aligner, 1e-6 in OpenRLHF, 3e-6 in TRL."""
    rollout_prompts: PositiveInt = 512
    """Prompts of a rollout over all ranks."""
    samples_per_prompt: PositiveInt = 1
    """Responses to each prompt; the estimators `rloo` and `grpo` compare them."""
    global_batch_size: PositiveInt = 64
    """Prompts of one update over all ranks, with all of their responses."""
    ppo_epochs: PositiveInt = 4
    """Passes over a rollout, each in an order of its own; 4 in OpenAI's code and TRL, 1 in
    NeMo-Aligner, OpenRLHF and torchtune."""
    max_new_tokens: PositiveInt = 256
    """Most tokens of a response; a prompt has at most `max_length` less this."""
    min_new_tokens: NonNegativeInt = 0
    """Tokens of a response among which none may end it. Log-probabilities stay those of all
    tokens, as with top_k."""
    generation_tokens: PositiveInt = 65536
    """Tokens of prompts and of room for responses that are decoded together on a rank; bounds the
    memory of keys and values."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, when sampling and in every log-probability alike; 0.7 in OpenAI's code
    and TRL, 1 elsewhere."""
    top_k: PositiveInt | None = None
    """Sample from the likeliest tokens only; None samples from all. Log-probabilities stay those
    of all tokens, as in NeMo-Aligner, so that leaving tokens out biases the gradient."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that have this probability; 1 samples from all."""

    missing_end_reward: float | None = -1.0
    """Reward of a response that was cut before its end of turn, instead of the reward model's: -1
    in OpenAI's code, -3 in torchtune. None leaves it the reward model's."""
    learns_unended: bool = True
    """Whether the actor learns from such responses; NeMo-Aligner's doesn't. Critic, baselines and
    metrics count them either way."""

    kl_coef: NonNegativeFloat = 0.05
    """Price of a nat of divergence from the initial policy, in units of the reward: 0.05 in TRL,
    0.01 in NeMo-Aligner and OpenRLHF. Where it adapts, the first one."""
    kl_adaptation: AdaptiveKLConfig | None = None
    """How the coefficient follows a target; None keeps it fixed."""
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    """Estimate of a token's divergence: `k1` in OpenAI's code and TRL, `abs` in NeMo-Aligner, `k3`
    in GRPO."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract it from each token's reward, as PPO does, or add it to the policy loss, as GRPO."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The policy gains nothing by making a token more than this share likelier or less likely."""

    max_kl_nats: PositiveFloat = 100.0
    """A mean divergence of a rollout's responses above this stops the job as diverged."""
    max_length_ratio: Annotated[float, Field(gt=1)] = 5.0
    """A mean response length of so many times that of the first rollout, or so small a part of it,
    stops the job as diverged."""
    max_sampler_delta: PositiveFloat = 0.05
    """A mean difference of a token's log-probability between sampling and training above this, in
    nats, stops the job: it learns from other responses than it sampled."""

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt."""
        return self.max_length - self.max_new_tokens

    @property
    def critic(self) -> GAEConfig | None:
        """The estimator if it has a critic."""
        return self.estimator if isinstance(self.estimator, GAEConfig) else None

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> Self:
        if self.max_prompt_tokens < 1:
            raise ValueError("max_new_tokens must be less than max_length, to leave a prompt room")
        return self

    @model_validator(mode="after")
    def _a_response_can_end(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not exceed max_new_tokens")
        judges_ends = self.missing_end_reward is not None or not self.learns_unended
        if self.min_new_tokens == self.max_new_tokens and judges_ends:
            raise ValueError(
                "with min_new_tokens equal to max_new_tokens no response ends by itself: "
                "missing_end_reward must be null and learns_unended true"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit_the_rollout(self) -> Self:
        if self.global_batch_size > self.rollout_prompts:
            raise ValueError("global_batch_size must not exceed rollout_prompts")
        if self.critic is None and self.samples_per_prompt < 2:
            raise ValueError(
                f"estimator {self.estimator.name} compares the responses to a prompt: "
                "samples_per_prompt must be at least 2"
            )
        return self

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> Self:
        # In expectation the gradient of k1 is 0, and that of |k1| has nothing to do with KL.
        if self.kl_placement == "loss" and self.kl_estimator not in ("k2", "k3"):
            raise ValueError("kl_placement loss needs kl_estimator k2 or k3")
        if self.kl_adaptation is not None and not self.kl_coef:
            raise ValueError("kl_adaptation scales kl_coef, which must not be 0")
        return self

    @model_validator(mode="after")
    def _there_is_no_held_out_loss(self) -> Self:
        for name in ("early_stop_patience", "restore_best"):
            if getattr(self, name):
                raise ValueError(f"{name} goes by a held-out loss, which PPO has none of")
        return self

    @model_validator(mode="after")
    def _each_rank_holds_the_model(self) -> Self:
        if self.parallel.world_size != self.parallel.data_parallel_size:
            raise ValueError(
                "PPO samples with the model in training, which each process must hold whole: "
                "parallel may have a data_parallel_size only"
            )
        return self


StageConfig = Annotated[
    SFTConfig
    | RewardModelConfig
    | DPOConfig
    | PPOConfig
    | AttributeModelConfig
    | SteerLMConfig
    | SteerLM2Config,
    Field(discriminator="stage"),
]


_FURTHER_MODELS = {"ppo": ("reward_model",), "steerlm2": ("attribute_model", "prior_model")}
"""What a stage reads besides the model that it trains."""


class TrainingJob(Config):
    """Config of `python -m alignflow.training`: a stage and the folders it reads."""

    stage: StageConfig
    model: Path
    """Hugging Face folder of the initial weights, with tokenizer and chat template."""
    dataset: Path
    """Dataset artifact: `train/*.parquet`, `held_out/*.parquet`."""
    reward_model: Path | None = None
    """Folder of the reward model, with its head and scale; the stage `ppo` needs it."""
    attribute_model: Path | None = None
    """Folder of the attribute model, with its head and scale; the stage `steerlm2` needs it."""
    prior_model: Path | None = None
    """Hugging Face folder of the model that answers without being asked for ratings, that of SFT;
    the stage `steerlm2` needs it."""

    @model_validator(mode="after")
    def _a_stage_has_the_models_it_reads(self) -> Self:
        needed = _FURTHER_MODELS.get(self.stage.stage, ())
        for name in ("reward_model", "attribute_model", "prior_model"):
            if (name in needed) != (getattr(self, name) is not None):
                what = "needs" if name in needed else "has no use for"
                article = "an" if name == "attribute_model" else "a"
                raise ValueError(f"the stage {self.stage.stage} {what} {article} {name}")
        return self
