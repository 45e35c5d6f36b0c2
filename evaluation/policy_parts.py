"""What the policy does in an evaluation: choices, continuations, held-out pairs and answers.

All ranks call these functions alike, and have the same answers afterwards.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from alignflow.evaluation import preferences
from alignflow.evaluation.choices import encode_requests
from alignflow.evaluation.config import EvaluationConfig
from alignflow.evaluation.held_out import HeldOut
from alignflow.evaluation.results import Results
from alignflow.evaluation.samples import SampleAnswer, answer_passes, sample_prompts
from alignflow.evaluation.sharing import SharedWork
from alignflow.evaluation.steering import SteeredAnswers, steered_answers, steered_prompts
from alignflow.evaluation.suites.base import ChoiceRequest, Suite
from alignflow.evaluation.writing import Writer
from alignflow.training.chat import Message
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.steering import Steering
from alignflow.training.tokenizer import load_tokenizer


def judge_benchmarks(
    policy: LanguageModel,
    model: Path,
    suites: Mapping[str, Suite],
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
    *,
    steering: Steering | None,
) -> dict[str, int]:
    """Add the result of every suite; return how many items of each had to be cut."""
    tokenizer = load_tokenizer(model)
    writer = Writer(policy, model, config, steering=steering)
    num_truncated = {}
    for name, suite in suites.items():
        requests = suite.requests()
        choices = [request for request in requests if isinstance(request, ChoiceRequest)]
        texts = [request for request in requests if not isinstance(request, ChoiceRequest)]
        if texts:
            asked = writer.encode(texts)
            num_truncated[name] = asked.num_truncated
            write = partial(writer.passes, stop_tokens=asked.stop_tokens)
            answers = asked.in_order(work.collect(name, asked.prompts, write))
        else:
            encoded = encode_requests(tokenizer, choices, max_length=config.max_length)
            num_truncated[name] = encoded.num_truncated
            score = partial(policy.passes, max_tokens=config.microbatch_tokens)
            answers = work.collect(name, encoded.trees, score)
        results.add(name, suite.result(answers), suite.num_items)
    return num_truncated


def judge_pairs(
    policy: LanguageModel,
    parent: LanguageModel | None,
    held_out: HeldOut,
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
) -> None:
    """Add how the policy, beside its parent, sees the held-out pairs."""
    pairs, num_pairs = held_out.pairs, len(held_out.pairs.trees)
    if not num_pairs:
        return
    measure = partial(preferences.pair_passes, policy, parent, max_tokens=config.microbatch_tokens)
    rows = work.collect("preference", pairs.trees, measure)
    measures = preferences.PairMeasures.of_rows(rows)
    result = preferences.preference_result(measures, pairs.items, beta=config.implicit_reward_beta)
    results.add("preference", result, num_pairs)
    results.add("perplexity", preferences.perplexity_result(measures, pairs.items), num_pairs)
    if parent is not None:
        results.add("kl", preferences.kl_result(measures, pairs.items), num_pairs)


def answer(
    policy: LanguageModel, held_out: HeldOut, config: EvaluationConfig, work: SharedWork
) -> list[SampleAnswer]:
    """Return the policy's answers to the sample prompts."""
    ask = held_out.steering.prompt if held_out.steering else list
    asked = [ask(prompt) for prompt in held_out.prompts]
    return _answers("samples", policy, held_out, held_out.prompts, asked, config, work)


def answer_steered(
    policy: LanguageModel, held_out: HeldOut, config: EvaluationConfig, work: SharedWork
) -> dict[str, SteeredAnswers]:
    """Return the policy's answers where it is asked for least and for most of an attribute."""
    steering, attributes = held_out.steering, config.steered_attributes
    prompts = held_out.steering_prompts
    if steering is None or not prompts:
        return {}
    asked = steered_prompts(prompts, steering, attributes)
    answered = list(prompts) * (len(asked) // len(prompts))
    answers = _answers("steerlm", policy, held_out, answered, asked, config, work)
    return steered_answers(answers, steering, attributes)


def _answers(
    part: str,
    policy: LanguageModel,
    held_out: HeldOut,
    prompts: Sequence[list[Message]],
    asked: Sequence[Sequence[Message]],
    config: EvaluationConfig,
    work: SharedWork,
) -> list[SampleAnswer]:
    """Return answers to prompts, each of which is asked in its own way."""
    if not prompts:
        return []
    encoded = sample_prompts(held_out.chat, asked, max_new_tokens=config.max_new_tokens)
    answer = partial(
        answer_passes, policy=policy, chat=held_out.chat, max_tokens=config.microbatch_tokens
    )
    answers = encoded.in_order(work.collect(part, encoded.prompts, answer))
    return [
        SampleAnswer(prompt, text, num_tokens)
        for prompt, (text, num_tokens) in zip(prompts, answers, strict=True)
    ]
