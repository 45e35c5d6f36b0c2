"""Rollouts: responses of the policy to prompts, scored, the same on every rank.

Each rank answers its share of the prompts with its own copy of the model in training; what they
sampled is then given to all. A rollout is small, tokens and a few numbers for each, and with the
whole of it on every rank advantages and their statistics need no further exchange.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignflow.jobs.worker import raise_if_stop_requested
from alignflow.training.batch import PackedBatch
from alignflow.training.chat import ChatTokenizer
from alignflow.training.collectives import from_all_ranks, max_over_ranks
from alignflow.training.config import PPOConfig
from alignflow.training.feed import Feed
from alignflow.training.forward import leaving_together, stop_if_asked
from alignflow.training.megatron.trees import Branch, Tree
from alignflow.training.packing import Items, split_into_microbatches, split_over_ranks
from alignflow.training.rows import RowSummary, TokenRows
from alignflow.training.sampling import Sampling, uniforms

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.inference import LanguageModel, SampledAnswer
    from alignflow.training.megatron.judges import RewardModel
    from alignflow.training.megatron.run import Run


@dataclass(frozen=True)
class Prompts:
    """The different prompts of a split."""

    rows: TokenRows
    items: Items
    """The first of each."""

    @classmethod
    def distinct(cls, rows: TokenRows) -> "Prompts":
        """Return the prompts of a split, those that come again left out."""
        first: dict[bytes, int] = {}
        for item in range(len(rows)):
            # Of an item of several rows the first one is what is asked.
            first.setdefault(rows.row(item * rows.rows_per_item).tokens_T.tobytes(), item)
        return cls(rows, np.array(list(first.values()), dtype=np.int64))


@dataclass(frozen=True)
class Response:
    """One sampled and scored response to a prompt."""

    tokens: list[int]
    """With the token that ended it, where one did."""
    logps: list[float]
    """Log-probability of each when it was sampled, in nats."""
    has_ended: bool
    """Whether it ended by itself."""
    score: float
    """What the reward model says, in the scale of its record."""


@dataclass(frozen=True)
class Rollout:
    """B responses to P prompts, K to each; N tokens of responses in all."""

    rows: TokenRows
    """[B] prompts with their responses, of which the latter are learnt; an item is a prompt."""
    sampler_logps_N: Tensor
    """[N] float64, in nats."""
    scores_B: Tensor
    """[B] float64."""
    has_ended_B: Tensor
    """[B] bool."""
    lengths_B: Tensor
    """[B] int64, tokens of each response."""

    @classmethod
    def of(
        cls, prompts: Sequence[NDArray[np.int32]], responses: Sequence[list[Response]]
    ) -> "Rollout":
        """Put prompts and their responses one after another."""
        flat = [response for of_prompt in responses for response in of_prompt]
        num_samples = len(responses[0])
        lengths = np.array([len(response.tokens) for response in flat])
        prompt_lengths = np.repeat([len(prompt) for prompt in prompts], num_samples)
        parts = [
            part
            for prompt, of_prompt in zip(prompts, responses, strict=True)
            for response in of_prompt
            for part in (prompt, np.array(response.tokens, dtype=np.int32))
        ]
        is_response = np.tile([False, True], len(flat))
        rows = TokenRows(
            tokens=np.concatenate(parts),
            is_learnt=np.repeat(is_response, np.stack([prompt_lengths, lengths], axis=1).ravel()),
            starts_R1=np.concatenate([[0], np.cumsum(prompt_lengths + lengths)]),
            shared_I=np.array([len(prompt) * (num_samples > 1) for prompt in prompts]),
            labels_IL=np.empty((len(prompts), 0), dtype=np.float32),
            rows_per_item=num_samples,
            summary=RowSummary(digest="", num_truncated=0, reasons={}, refused=()),
        )
        return cls(
            rows=rows,
            sampler_logps_N=torch.tensor(
                [logp for response in flat for logp in response.logps], dtype=torch.float64
            ),
            scores_B=torch.tensor([response.score for response in flat], dtype=torch.float64),
            has_ended_B=torch.tensor([response.has_ended for response in flat]),
            lengths_B=torch.from_numpy(lengths),
        )

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.rows)

    @property
    def num_responses(self) -> int:
        """B."""
        return len(self.lengths_B)

    def places(self, prompts: Items) -> Tensor:
        """Return which of the N tokens a batch of these prompts scores, in its order, int64."""
        rows = torch.from_numpy(self.rows.rows_of(prompts))
        lengths = self.lengths_B[rows]
        starts = _starts(self.lengths_B)[rows]
        within = torch.arange(int(lengths.sum())) - _starts(lengths).repeat_interleave(lengths)
        return starts.repeat_interleave(lengths) + within

    def of_tokens(self, values_B: Tensor) -> Tensor:
        """Return each response's value at each of its tokens, [N]."""
        return values_B.repeat_interleave(self.lengths_B)


@dataclass(frozen=True)
class Drawing:
    """How many answers to each prompt are drawn, and in which way."""

    num_samples: int
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: Collection[int]
    max_tokens: int
    """Most tokens of prompts and of room for answers that are decoded together; bounds the memory
    of keys and values."""
    min_new_tokens: int = 0
    """Tokens of an answer that may not end it."""


def draw_answers(
    model: "LanguageModel", prompts: TokenRows, rows: Items, drawing: Drawing, *, key: Sequence[int]
) -> dict[int, list["SampledAnswer"]]:
    """Return answers to some prompts by the prompts' rows.

    Args:
        model: Is asked.
        prompts: All prompts of a split, each a row.
        rows: Which of them, each once.
        drawing: How to draw.
        key: What the draws follow from, besides row and number of the answer.

    Raises:
        JobStoppedError: This rank was told to stop; the others don't know of it yet.
    """
    num_samples = drawing.num_samples
    needed = num_samples * (np.diff(prompts.starts_R1) + drawing.max_new_tokens)
    answers: dict[int, list[SampledAnswer]] = {}
    for part in split_into_microbatches(rows, needed, drawing.max_tokens):
        draws = [
            uniforms((*key, row, number), drawing.max_new_tokens)
            for row in part.tolist()
            for number in range(num_samples)
        ]
        drawn = model.sample(
            [prompts.row(row).tokens_T.tolist() for row in part],
            torch.stack(draws),
            sampling=drawing.sampling,
            stop_tokens=drawing.stop_tokens,
            min_new_tokens=drawing.min_new_tokens,
            progress=_stop_if_told,
        )
        for number, row in enumerate(part.tolist()):
            answers[row] = drawn[number * num_samples : (number + 1) * num_samples]
    return answers


def _stop_if_told(_num_done: int, _num_tokens: int) -> None:
    raise_if_stop_requested()


def answer_trees(
    prompts: TokenRows, answers: Mapping[int, Sequence[Sequence[int]]], chat: ChatTokenizer
) -> list[Tree]:
    """Return each prompt with its answers, each ended as the template ends it, ready to be judged.

    Args:
        prompts: All prompts of a split, each a row.
        answers: Tokens of the answers, by the row of their prompt.
        chat: Says how an answer ends.
    """
    trees = []
    for row, of_row in answers.items():
        words = [tokens[:-1] if tokens[-1] in chat.stop_tokens else tokens for tokens in of_row]
        branches = [Branch.scored([*tokens, *chat.closing_tokens]) for tokens in words]
        trees.append(Tree(prompts.row(row).tokens_T.tolist(), branches))
    return trees


class Sampler:
    """Samples responses from the model in training and has them scored."""

    def __init__(
        self, actor: "Run", reward: "RewardModel", chat: ChatTokenizer, config: PPOConfig
    ) -> None:
        self._actor = actor
        self._reward = reward
        self._config = config
        self._chat = chat
        self._drawing = Drawing(
            num_samples=config.samples_per_prompt,
            max_new_tokens=config.max_new_tokens,
            sampling=Sampling(config.temperature, config.top_k, config.top_p),
            stop_tokens=chat.stop_tokens,
            max_tokens=config.generation_tokens,
            min_new_tokens=config.min_new_tokens,
        )

    def rollout(self, prompts: TokenRows, items: Items, *, key: Sequence[int]) -> Rollout:
        """Return responses to some prompts; the same on every rank, and for every layout.

        Args:
            prompts: All prompts of a split.
            items: Which of them, each once.
            key: What the draws follow from, besides prompt and number of the sample.

        Raises:
            JobStoppedError: The job was told to stop; it is heard every few tokens.
        """
        actor = self._actor
        shares = split_over_ranks(items, prompts.item_lengths, actor.data_parallel_size)
        share = shares[actor.data_parallel_rank]
        mine = leaving_together(partial(self._answered, prompts, share, key))
        answered = {
            item: of_item for part in from_all_ranks(mine) for item, of_item in part.items()
        }
        return Rollout.of(
            [prompts.row(item).tokens_T for item in items],
            [answered[item] for item in items.tolist()],
        )

    def _answered(
        self, prompts: TokenRows, items: Items, key: Sequence[int]
    ) -> dict[int, list[Response]]:
        """Return the scored responses to the prompts of this rank."""
        model = self._actor.language_model()
        answers = draw_answers(model, prompts, items, self._drawing, key=key)
        tokens = {item: [answer.tokens for answer in of_item] for item, of_item in answers.items()}
        trees = answer_trees(prompts, tokens, self._chat)
        scores = self._reward.score(
            trees, max_tokens=self._config.microbatch_tokens, progress=_stop_if_told
        )
        return {
            item: [
                Response(
                    tokens=answer.tokens,
                    logps=answer.logps,
                    has_ended=answer.tokens[-1] in self._drawing.stop_tokens,
                    score=score,
                )
                for answer, score in zip(of_item, of_tree, strict=True)
            ]
            for (item, of_item), of_tree in zip(answers.items(), scores, strict=True)
        }


def _starts(lengths: Tensor) -> Tensor:
    """Return where each of some neighbours begins, given their lengths."""
    return lengths.cumsum(0) - lengths


def token_values(
    rollout: Rollout,
    feed: Feed[PackedBatch],
    global_batches: Iterable[Items],
    forward: Callable[[Sequence[PackedBatch]], Sequence[Tensor]],
) -> Tensor:
    """Return a model's output at each token of the responses, [N] float64, the same on every rank.

    Args:
        rollout: The responses.
        feed: This rank's share of its batches.
        global_batches: All prompts, so many at a time as all ranks are given at once.
        forward: From microbatches to outputs at their scored tokens.
    """
    values_N = torch.full((len(rollout.sampler_logps_N),), -torch.inf, dtype=torch.float64)
    for items in global_batches:
        stop_if_asked()
        parts = feed.parts(items)
        outputs = forward([feed.make_batch(feed.rows, part) for part in parts])
        for part, output in zip(parts, outputs, strict=True):
            values_N[rollout.places(part)] = output.double().cpu()
    return max_over_ranks(values_N)


def minibatches(num_prompts: int, size: int, *, key: Sequence[int]) -> list[Items]:
    """Return the prompts of a rollout in a random order that follows from a key, in batches."""
    order = np.random.default_rng(list(key)).permutation(num_prompts)
    return [order[start : start + size] for start in range(0, num_prompts, size)]
