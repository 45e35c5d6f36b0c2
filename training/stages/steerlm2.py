"""SteerLM 2.0: a SteerLM model learns from its own answers, weighed by how well they fit.

The answers are sampled, rated and judged before the training (`steered_responses`), each by one
model; of the four that take part, one is in memory at a time.
"""

import gc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignflow.data_validation.canonical import Split
from alignflow.errors import ConfigError, DataError
from alignflow.fingerprints import check_same, folder_fingerprints
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.attributes import AttributeScale
from alignflow.training.chat import ChatTokenizer
from alignflow.training.checkpoints import model_digest
from alignflow.training.config import Precision, SteerLM2Config, TrainingJob
from alignflow.training.data import steered_prompts
from alignflow.training.errors import ReferenceMismatchError, SamplerMismatchError
from alignflow.training.likelihood import rating_log_likelihood
from alignflow.training.loop import Objective, Trainer
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.megatron.setup import initialize
from alignflow.training.packing import pack
from alignflow.training.reference import ReferencePass, reference_logps
from alignflow.training.rollout import Drawing
from alignflow.training.sampling import Sampling
from alignflow.training.stages.data import StageData, load_data
from alignflow.training.steered_responses import (
    Questions,
    SteeredResponses,
    prior_logps,
    rate_responses,
    sample_responses,
)
from alignflow.training.steering import Steering
from alignflow.training.steps import Metrics
from alignflow.training.weighed import pack_weighed, weighed_loss

_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 1e-3}
"""How far the first loss may be from that of equal odds, in nats."""


@dataclass(frozen=True)
class _Models:
    """Folders of all models that take part."""

    steerlm: Path
    attributes: Path
    prior: Path


@dataclass(frozen=True)
class _Target:
    """What the responses of a split are weighed by."""

    ratings_PKA: Tensor
    """Of each response and wanted attribute, as the attribute model predicts them."""
    likelihood_PK: Tensor
    """log P(a|x,y): the sum over the attributes, which count as independent given the answer."""
    prior_PK: Tensor
    """log P(y|x)."""


def run(config: SteerLM2Config, job: TrainingJob, folder: RunFolder) -> JobResult:
    """Train a SteerLM model on its weighed answers; write it, and what to ask of it, to the output.

    P(a|x,y) is the probability that the attribute model, a regression, gives the ratings that are
    wanted: `likelihood.rating_log_likelihood` of each attribute, multiplied.

    Raises:
        ConfigError: A model is missing, or doesn't fit the others or the lengths.
        DataError: The model isn't SteerLM's, is asked for what the attribute model can't rate, or
            doesn't end more of its responses than the recipe allows.
        SamplerMismatchError: Sampling and training disagree about the responses.
        ReferenceMismatchError: The policy isn't the sampler before the first update.
    """
    if job.attribute_model is None or job.prior_model is None:
        raise ConfigError("the stage steerlm2 needs an attribute_model and a prior_model.")
    models = _Models(job.model, job.attribute_model, job.prior_model)
    steering, scale = _check_models(models, config)
    prompts = load_data(
        job, folder, steered_prompts(steering.wanted), max_length=config.max_prompt_tokens
    )
    initialize(config.parallel, seed=config.seed)
    responses = _sample(models, config, prompts, folder)
    check_ended(responses["train"].has_ended, config)
    targets = _judge(models, config, prompts, responses, steering, scale, folder)
    data = StageData(config, job.model, responses["train"].asked, responses["held_out"].asked)
    with build_run(
        config,
        job.model,
        head="lm",
        num_steps=data.order.num_steps,
        temperature=config.temperature,
    ) as policy:
        if policy.is_main:
            steering.save(folder.path)  # an export of a checkpoint takes it from here
        sampler = _sampler_logps(policy, data, folder)
        found = _response_metrics(responses["train"], targets["train"], sampler["train"])
        check_sampler(found, config)
        feeds = {
            split: data.feed(
                policy,
                rows,
                partial(
                    pack_weighed,
                    sampler_logps=sampler[split],
                    target_PK=targets[split].likelihood_PK + targets[split].prior_PK,
                ),
            )
            for split, rows in data.splits.items()
        }
        trainer = Trainer(
            policy,
            folder,
            config,
            Objective(weighed_loss, partial(check_first_loss, precision=config.precision)),
            order=data.order,
            train=feeds["train"],
            held_out=feeds["held_out"],
            validation_batches=data.validation_batches,
        )
        metrics = trainer.train()
        policy.export(folder.output)
        if policy.is_main:
            steering.save(folder.output)
    refused = prompts.details(0)
    details = {
        **data.details(trainer.tokens_processed),
        **{name: refused[name] for name in ("num_refused", "refused_rows")},
        "wanted": dict(steering.wanted),
        "mean_ratings": _mean_ratings(steering, targets["train"]),
    }
    named = {f"{config.stage}/{name}": value for name, value in found.items()}
    return JobResult(metrics=metrics | named, details=details)


def check_ended(has_ended_PK: Tensor, config: SteerLM2Config) -> None:
    """Stop before responses are learnt from of which more are cut than the recipe allows.

    Raises:
        DataError: They are.
    """
    num_cut, num_responses = int((~has_ended_PK).sum()), has_ended_PK.numel()
    if num_cut > config.max_unended_share * num_responses:
        raise DataError(
            f"{num_cut / num_responses:.1%} of the sampled responses are cut at max_new_tokens "
            f"{config.max_new_tokens}, more than max_unended_share "
            f"({config.max_unended_share:.1%}): raise max_new_tokens or the bound.",
            reason="unended_responses",
        )


def check_sampler(metrics: Metrics, config: SteerLM2Config) -> None:
    """Stop before responses are learnt from whose weights would be wrong.

    Raises:
        SamplerMismatchError: Sampling and training disagree about them.
    """
    # Written so that NaN fails too.
    if not metrics["sampler_delta"] <= config.max_sampler_delta:
        raise SamplerMismatchError(
            f"The log-probability of a token differs between sampling and training by "
            f"{metrics['sampler_delta']:.4g} nats on average, past max_sampler_delta "
            f"{config.max_sampler_delta:g}."
        )


def check_first_loss(metrics: Metrics, *, precision: Precision) -> None:
    """Stop unless the loss before the first update is that of a policy which is the sampler.

    All responses have the same odds then, so it is how far their weights are from being equal.

    Raises:
        ReferenceMismatchError: It isn't.
    """
    expected = metrics["uniform_kl"]
    # Written so that NaN fails too.
    if not abs(metrics["loss"] - expected) <= _TOLERANCE[precision] * max(expected, 1.0):
        raise ReferenceMismatchError(
            f"The first SteerLM 2.0 loss is {metrics['loss']:.6f}, not {expected:.6f}: the policy "
            "is not the model that sampled the responses."
        )


def _check_models(models: _Models, config: SteerLM2Config) -> tuple[Steering, AttributeScale]:
    """Return what the model is asked for, and what the attribute model rates."""
    own = folder_fingerprints(models.steerlm)
    check_same("the model", own, "attribute_model", folder_fingerprints(models.attributes))
    check_same("the model", own, "prior_model", folder_fingerprints(models.prior))
    steering = Steering.load(models.steerlm)
    if steering is None:
        raise DataError(f"{models.steerlm}: this is no model of SteerLM; train one first.")
    scale = AttributeScale.load(models.attributes)
    for name in steering.wanted:
        if name not in scale.names:
            raise DataError(
                f"the model is asked for {name!r}, which the attribute model doesn't rate; it "
                f"knows {', '.join(scale.names)}."
            )
    num_closed = config.max_length + len(ChatTokenizer.load(models.steerlm).closing_tokens)
    check_positions(models.steerlm, config.max_length, "max_length")
    check_positions(models.prior, config.max_length, "max_length")
    check_positions(models.attributes, num_closed, "max_length and what ends a turn")
    return steering, scale


def _questions(config: SteerLM2Config, prompts: StageData) -> dict[Split, Questions]:
    """Return the prompts that are answered."""
    return {
        "train": Questions.of(prompts.train, at_most=config.max_prompts, seed=config.seed),
        "held_out": Questions.of(prompts.held_out, at_most=config.max_validation_rows),
    }


def _sample(
    models: _Models, config: SteerLM2Config, prompts: StageData, folder: RunFolder
) -> dict[Split, SteeredResponses]:
    """Return the model's responses to the prompts of each split."""
    return sample_responses(
        partial(
            LanguageModel.load,
            models.steerlm,
            precision=config.precision,
            parallel=config.parallel,
        ),
        _questions(config, prompts),
        Drawing(
            num_samples=config.samples_per_prompt,
            max_new_tokens=config.max_new_tokens,
            sampling=Sampling(config.temperature, top_p=config.top_p),
            stop_tokens=ChatTokenizer.load(models.steerlm).stop_tokens,
            max_tokens=config.generation_tokens,
        ),
        folder,
        seed=config.seed,
        identity=prompts.identity,
    )


def _judge(
    models: _Models,
    config: SteerLM2Config,
    prompts: StageData,
    responses: Mapping[Split, SteeredResponses],
    steering: Steering,
    scale: AttributeScale,
    folder: RunFolder,
) -> dict[Split, _Target]:
    """Return what the responses are weighed by."""
    _forget_models()
    ratings = rate_responses(
        partial(
            AttributeModel.load,
            models.attributes,
            precision=config.precision,
            parallel=config.parallel,
        ),
        _questions(config, prompts),
        responses,
        ChatTokenizer.load(models.steerlm),
        folder,
        num_attributes=len(scale.names),
        max_tokens=config.microbatch_tokens,
        identity=_identity(prompts.identity, models.attributes, repr(scale)),
    )
    _forget_models()
    priors = prior_logps(
        partial(
            LanguageModel.load,
            models.prior,
            precision=config.precision,
            parallel=config.parallel,
            temperature=config.temperature,
        ),
        responses,
        folder,
        max_tokens=config.microbatch_tokens,
        identity=_identity(prompts.identity, models.prior),
    )
    _forget_models()
    columns = [scale.names.index(name) for name in steering.wanted]
    wanted_A = torch.tensor(list(steering.wanted.values()))
    targets: dict[Split, _Target] = {}
    for split, of_split in responses.items():
        ratings_PKA = ratings[split][:, :, columns]
        likelihood_RA = rating_log_likelihood(
            ratings_PKA.flatten(0, 1), wanted_A, concentration=config.concentration
        )
        shape = (len(of_split.asked), config.samples_per_prompt)
        targets[split] = _Target(
            ratings_PKA, likelihood_RA.sum(1).view(shape), priors[split].view(shape)
        )
    return targets


def _forget_models() -> None:
    """Free the memory of a model that nobody holds: its parts refer to one another."""
    gc.collect()


def _identity(sampled_by: str, model: Path, *further: str) -> str:
    """Return the SHA-256 of what determines the numbers that a model gives the responses."""
    parts = (sampled_by, model_digest(model), *further)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sampler_logps(policy: Run, data: StageData, folder: RunFolder) -> dict[str, Tensor]:
    """Return the log-probabilities of the responses under the policy as it sampled them."""
    # Every epoch visits the same items.
    steps = range(min(data.order.num_steps, data.order.steps_per_epoch))
    batches = {
        "train": [data.order.items(step) for step in steps],
        "held_out": data.validation_batches,
    }
    passes: dict[str, ReferencePass] = {
        split: ReferencePass(data.feed(policy, rows, pack), batches[split])
        for split, rows in data.splits.items()
    }
    return reference_logps(policy, folder, passes, identity=data.identity)


def _response_metrics(
    responses: SteeredResponses, target: _Target, sampler_logps: Tensor
) -> Metrics:
    """Return what the responses show before they are learnt from, as means over them.

    `log_likelihood` is that of the wanted ratings, and `sampler_delta` how far a token's
    log-probability is off between sampling and training, both in nats.
    """
    drawn_PK = responses.drawn_logps
    sampler_PK = sampler_logps.view_as(drawn_PK)
    delta_PK = (sampler_PK - drawn_PK).abs() / responses.lengths
    is_scored_PK = ~sampler_PK.isneginf()  # others are of no step
    return {
        "response_tokens": float(responses.lengths.double().mean()),
        "ended": float(responses.has_ended.double().mean()),
        "log_likelihood": float(target.likelihood_PK.mean()),
        "sampler_delta": float(delta_PK[is_scored_PK].double().mean()),
    }


def _mean_ratings(steering: Steering, target: _Target) -> dict[str, float]:
    """Return the mean predicted rating of the responses by attribute."""
    means = target.ratings_PKA.double().mean((0, 1)).tolist()
    return dict(zip(steering.wanted, means, strict=True))
