"""A model that is only asked: log-probabilities of continuations, logits, rewards, answers.

Every pass feeds one packed sequence to the decoder, with an attention of `caching.py` that says who
sees whom. Hidden states are turned into logits for the positions that are asked about only, a slice
at a time, so memory stays bounded however large the vocabulary is.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from alignflow.errors import DataError
from alignflow.training.attributes import AttributeScale
from alignflow.training.batch import PackedBatch
from alignflow.training.config import ParallelConfig, Precision
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.attention import AttentionPlan
from alignflow.training.megatron.caching import (
    DecodingCache,
    KeysValues,
    PrefillAttention,
    RootAttention,
    step_attention,
    tree_attention,
)
from alignflow.training.megatron.model import (
    ATTRIBUTE_HEAD_FILE,
    Head,
    PackedModel,
    build_model,
    load_weights,
)
from alignflow.training.megatron.setup import initialize
from alignflow.training.megatron.trees import (
    Branch,
    Tree,
    TreeBatch,
    by_tree,
    common_root,
    pack_trees,
)
from alignflow.training.sampling import Sampling, draw

_SINGLE = ParallelConfig()

REWARD_SCALE_FILE = "reward_scale.json"

# Logits of one slice: 64 MiB in float32.
_LOGIT_ELEMENTS = 2**24

# Tokens of each answer between two calls of its progress: a second or so of a slow model.
_STEPS_TOLD = 8

Passes = Iterator[tuple[list[list[float]], int]]
"""Of each pass the scores, a list a tree, and the tokens computed in it."""

Progress = Callable[[int, int], None]
"""Told after each pass: trees done in it, tokens computed in it. It may raise to stop the work."""


@dataclass(frozen=True)
class SampledAnswer:
    """A continuation that was drawn token by token."""

    tokens: list[int]
    """With the token that ended it, where one did."""
    logps: list[float]
    """Log-probability in nats of each, at the temperature it was drawn at."""


class FrozenModel:
    """A decoder in evaluation mode; the base of every kind of head."""

    head: Head

    def __init__(self, model: PackedModel, device: torch.device) -> None:
        self.model = model.eval()
        self.device = device
        self._root: tuple[tuple[int, ...], dict[int, KeysValues]] = ((), {})

    @classmethod
    def _build(
        cls,
        folder: Path,
        precision: Precision,
        parallel: ParallelConfig,
        *,
        compiles: bool = False,
        num_attributes: int = 0,
    ) -> Self:
        device = initialize(parallel, seed=0)
        model = build_model(
            read_architecture(folder),
            head=cls.head,
            precision=precision,
            parallel=parallel,
            device=device,
            compiles=compiles,
            allow_transformer_engine=False,
            num_attributes=num_attributes,
        )
        load_weights(model, folder, seed=0)
        return cls(model, device)

    @torch.inference_mode()
    def hidden(self, batch: TreeBatch) -> Tensor:
        """Return the hidden states of a batch of trees, [T, hidden], before the head.

        The keys and values of the batch's root are computed when it differs from the last one.
        """
        return self._decode(
            batch.tokens_T,
            batch.positions_T,
            tree_attention(batch, self._root_of(batch), self._window, self.device),
        )

    def _root_of(self, batch: TreeBatch) -> dict[int, KeysValues]:
        if not batch.root:
            return {}
        if self._root[0] != batch.root:
            attention = RootAttention()
            tokens = torch.tensor(batch.root)
            self._decode(tokens, torch.arange(len(tokens)), attention)
            self._root = (batch.root, attention.kept)
        return self._root[1]

    def _decode(self, tokens_T: Tensor, positions_T: Tensor, attention: AttentionPlan) -> Tensor:
        """Return the decoder's output, [T, hidden], of T tokens under an attention."""
        hidden_T1H: Tensor = self.model.hidden_states(
            tokens_T.to(self.device), positions_T.to(self.device), attention
        )
        return hidden_T1H[:, 0]

    @property
    def _window(self) -> int | None:
        window: int | None = self.model.architecture.sliding_window
        return window


class ScoringModel(FrozenModel, ABC):
    """A model that gives each branch of a tree a number."""

    @abstractmethod
    def passes(self, trees: Sequence[Tree], *, max_tokens: int) -> Passes:
        """Yield the scores of the next trees, and how many tokens were computed for them.

        Args:
            trees: Prefixes and their continuations.
            max_tokens: Most tokens of one pass; a single larger tree forms its own.
        """

    def score(
        self, trees: Sequence[Tree], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[float]]:
        """Return for each tree the score of each branch.

        What all prefixes begin with is computed once, each tree's prefix once for its branches.

        Args:
            trees: Prefixes and their continuations.
            max_tokens: Most tokens of one pass; a single larger tree forms its own.
            progress: Told what each pass did.
        """
        scores: list[list[float]] = []
        for of_pass, num_tokens in self.passes(trees, max_tokens=max_tokens):
            scores += of_pass
            if progress is not None:
                progress(len(of_pass), num_tokens)
        return scores


class LanguageModel(ScoringModel):
    """A policy: log-probabilities, logits, greedy and sampled answers."""

    head: Head = "lm"

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        precision: Precision,
        parallel: ParallelConfig = _SINGLE,
        temperature: float = 1.0,
        compiles: bool = False,
    ) -> Self:
        """Load a Hugging Face folder for inference on this rank's device.

        Args:
            folder: The model.
            precision: Type of its weights.
            parallel: Layout of the job; each rank holds the whole model.
            temperature: Divides the logits of `token_logps`.
            compiles: Compile the element-wise parts; beside a model in training as that one does,
                for else both round differently.

        Raises:
            DataError: The folder holds no model that can be loaded.
        """
        policy = cls._build(folder, precision, parallel, compiles=compiles)
        policy.model.temperature = temperature
        return policy

    @property
    def vocab_size(self) -> int:
        """Tokens that have a logit."""
        size: int = self.model.architecture.vocab_size
        return size

    def passes(self, trees: Sequence[Tree], *, max_tokens: int) -> Passes:
        """Yield the summed log-probability, in nats, of each branch; see `ScoringModel.score`."""
        for packed, batch in pack_trees(trees, max_tokens=max_tokens, root=common_root(trees)):
            logprobs_N = self.logprobs(batch, self.hidden(batch)[batch.read_index_P])
            yield by_tree(packed, batch.branch_sums(logprobs_N.double())), batch.num_tokens

    @torch.inference_mode()
    def logprobs(self, batch: TreeBatch, hidden_PH: Tensor) -> Tensor:
        """Return the log-probability in nats of each scored token, [N] float32.

        Args:
            batch: The trees.
            hidden_PH: Hidden states at its `read_index_P`.
        """
        logprobs_N = torch.empty(len(batch.targets_N), device=self.device)
        for reads, logits_nV in self.logit_slices(hidden_PH):
            scores = batch.scores_of(reads)
            rows = (batch.score_read_N[scores] - reads.start).to(self.device)
            targets = batch.targets_N[scores].to(self.device)
            logprobs_N[scores] = logits_nV[rows, targets] - logits_nV.logsumexp(1)[rows]
        return logprobs_N

    @torch.inference_mode()
    def logit_slices(self, hidden_PH: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the P positions and their logits, [n, vocabulary] float32."""
        size = max(1, _LOGIT_ELEMENTS // self.vocab_size)
        for start in range(0, len(hidden_PH), size):
            part = slice(start, min(start + size, len(hidden_PH)))
            yield part, self.model.logits(hidden_PH[part, None])

    @torch.inference_mode()
    def token_logps(self, batch: PackedBatch) -> Tensor:
        """Return the log-probability in nats of each scored token of a packed batch, [N] float32.

        The pass is the one of training: equal weights and batches give equal numbers, bit for bit.
        """
        logps_N: Tensor = self.model(batch.to(self.device))
        return logps_N

    def forward(self, microbatches: Sequence[PackedBatch]) -> list[Tensor]:
        """Return `token_logps` of each microbatch."""
        return [self.token_logps(batch) for batch in microbatches]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_tokens: Collection[int],
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the greedy continuation of each prompt, a token of `stop_tokens` included.

        Prompts of any length decode together; a row that stops leaves the batch.

        Args:
            prompts: Tokens of each.
            max_new_tokens: Most tokens of an answer.
            stop_tokens: Tokens that end an answer.
            progress: Told every few tokens, and at the end, how many answers were completed and how
                many tokens written since the last time.
        """

        def likeliest(logits_BV: Tensor, _rows: list[int], _step: int) -> Tensor:
            return logits_BV.argmax(-1)

        return self._continue(
            prompts,
            likeliest,
            max_new_tokens=max_new_tokens,
            stop_tokens=stop_tokens,
            progress=progress,
        )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms_BT: Tensor,
        *,
        sampling: Sampling,
        stop_tokens: Collection[int],
        min_new_tokens: int = 0,
    ) -> list[SampledAnswer]:
        """Return drawn continuations of each prompt, the prompts' first, second … side by side.

        Args:
            prompts: Tokens of each; the B answers are divided among them evenly, and a prompt is
                computed once for all of its answers.
            uniforms_BT: [B, T] float64 in [0, 1), which decide what each answer's tokens are, at
                most T of them: `sampling.uniforms`.
            sampling: How to draw.
            stop_tokens: Tokens that end an answer.
            min_new_tokens: So many tokens of an answer none of them may be among.
        """
        num_answers, max_new_tokens = uniforms_BT.shape
        logps: list[list[float]] = [[] for _ in range(num_answers)]
        uniforms_BT = uniforms_BT.to(self.device)

        def drawn(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
            tokens_B, logps_B = draw(
                logits_BV,
                uniforms_BT[rows, step - 1],
                sampling,
                excluded=stop_tokens if step <= min_new_tokens else (),
            )
            for row, logp in zip(rows, logps_B.tolist(), strict=True):
                logps[row].append(logp)
            return tokens_B

        answers = self._continue(
            prompts,
            drawn,
            copies=num_answers // max(len(prompts), 1),
            max_new_tokens=max_new_tokens,
            stop_tokens=stop_tokens,
        )
        return [SampledAnswer(*both) for both in zip(answers, logps, strict=True)]

    @torch.inference_mode()
    def _continue(
        self,
        prompts: Sequence[Sequence[int]],
        choose: Callable[[Tensor, list[int], int], Tensor],
        *,
        copies: int = 1,
        max_new_tokens: int,
        stop_tokens: Collection[int],
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return so many continuations of each prompt, side by side.

        Args:
            prompts: Tokens of each.
            choose: From logits, [B, vocabulary], the rows that still go on and the number of the
                token, counted from 1, to the tokens, [B] int64.
            copies: Continuations of each prompt.
            max_new_tokens: As in `generate`, like the rest.
            stop_tokens: See there.
            progress: See there.
        """
        if not prompts:
            return []
        rows = list(range(copies * len(prompts)))
        answers: list[list[int]] = [[] for _ in rows]
        lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        cache = DecodingCache(len(prompts), int(lengths_B.max()) + max_new_tokens)
        hidden_BH = self._prefill(prompts, cache)
        if copies > 1:
            prompt_B = torch.arange(len(prompts), device=self.device).repeat_interleave(copies)
            hidden_BH, lengths_B = hidden_BH[prompt_B], lengths_B[prompt_B]
            cache.keep(prompt_B)
        num_done = num_tokens = 0
        for step in count(1):
            tokens = choose(self.model.logits(hidden_BH[:, None]), rows, step).tolist()
            for row, token in zip(rows, tokens, strict=True):
                answers[row].append(token)
            going = [
                n
                for n, (row, token) in enumerate(zip(rows, tokens, strict=True))
                if token not in stop_tokens and len(answers[row]) < max_new_tokens
            ]
            num_done += len(rows) - len(going)
            num_tokens += len(rows)
            if progress is not None and (step % _STEPS_TOLD == 0 or not going):
                progress(num_done, num_tokens)
                num_done = num_tokens = 0
            if not going:
                break
            if len(going) < len(rows):
                rows = [rows[n] for n in going]
                lengths_B = lengths_B[going]
                cache.keep(torch.tensor(going, device=self.device))
            tokens_B = torch.tensor([answers[row][-1] for row in rows])
            attention = step_attention(cache, lengths_B, self._window)
            hidden_BH = self._decode(tokens_B, lengths_B, attention)
            lengths_B = lengths_B + 1
        return answers

    def _prefill(self, prompts: Sequence[Sequence[int]], cache: DecodingCache) -> Tensor:
        """Fill the cache with the prompts; return the hidden state at the end of each."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        starts = [0, *lengths.cumsum(0).tolist()]
        hidden_TH = self._decode(
            torch.tensor([token for prompt in prompts for token in prompt]),
            torch.cat([torch.arange(len(prompt)) for prompt in prompts]),
            PrefillAttention(starts=starts, cache=cache),
        )
        return hidden_TH[lengths.cumsum(0) - 1]


class RewardModel(ScoringModel):
    """A reward model, in the scale that was recorded for it."""

    head: Head = "reward"
    mean = 0.0
    std = 1.0

    @classmethod
    def load(
        cls, folder: Path, *, precision: Precision, parallel: ParallelConfig = _SINGLE
    ) -> Self:
        """Load a reward model folder with its head and its scale.

        Args:
            folder: The model.
            precision: Type of its weights.
            parallel: Layout of the job; each rank holds the whole model.

        Raises:
            DataError: The folder holds no reward model that can be loaded.
        """
        mean, std = _read_scale(folder / REWARD_SCALE_FILE)
        reward = cls._build(folder, precision, parallel)
        reward.mean, reward.std = mean, std
        return reward

    @torch.inference_mode()
    def passes(self, trees: Sequence[Tree], *, max_tokens: int) -> Passes:
        """Yield the reward at the last token of each branch; see `ScoringModel.score`.

        Rewards are in standard deviations from the mean over the set of `reward_scale.json`.
        """
        for packed, batch in pack_trees(
            trees, max_tokens=max_tokens, root=common_root(trees), feed_last_token=True
        ):
            raw_B = self.model.output_layer(self.hidden(batch)[batch.branch_last_B])
            yield by_tree(packed, (raw_B.double() - self.mean) / self.std), batch.num_tokens

    def score_rows(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int, progress: Progress | None = None
    ) -> list[float]:
        """Return the reward of each row of at least two tokens; the rest is as in `score`."""
        trees = [Tree(row[:1], [Branch.scored(row[1:])]) for row in rows]
        rewards = self.score(trees, max_tokens=max_tokens, progress=progress)
        return [reward for (reward,) in rewards]


class AttributeModel(FrozenModel):
    """A model that rates answers by the attributes of SteerLM."""

    head: Head = "attributes"
    scale: AttributeScale

    @classmethod
    def load(
        cls, folder: Path, *, precision: Precision, parallel: ParallelConfig = _SINGLE
    ) -> Self:
        """Load an attribute model folder with its head, their names and means.

        Args:
            folder: The model.
            precision: Type of its weights.
            parallel: Layout of the job; each rank holds the whole model.

        Raises:
            DataError: The folder holds no attribute model that can be loaded.
        """
        scale = AttributeScale.load(folder)
        model = cls._build(folder, precision, parallel, num_attributes=len(scale.names))
        model.model.output_layer.load(folder / ATTRIBUTE_HEAD_FILE)
        model.scale = scale
        return model

    @torch.inference_mode()
    def rate_trees(
        self, trees: Sequence[Tree], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[list[float]]]:
        """Return for each tree the attributes of the conversation that ends with each branch.

        They come in the order of `scale.names`, and are neither rounded nor kept within 0 to 4.
        """
        means_K = torch.tensor(self.scale.means, dtype=torch.float64)
        ratings: list[list[list[float]]] = []
        for packed, batch in pack_trees(
            trees, max_tokens=max_tokens, root=common_root(trees), feed_last_token=True
        ):
            raw_BK = self.model.output_layer(self.hidden(batch)[batch.branch_last_B])
            ratings += by_tree(packed, raw_BK.double().cpu() + means_K)
            if progress is not None:
                progress(len(packed), batch.num_tokens)
        return ratings

    def rate(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[float]]:
        """Return the attributes of each row of at least two tokens, as in `rate_trees`."""
        trees = [Tree(row[:1], [Branch.scored(row[1:])]) for row in rows]
        ratings = self.rate_trees(trees, max_tokens=max_tokens, progress=progress)
        return [of_row for (of_row,) in ratings]


def _read_scale(path: Path) -> tuple[float, float]:
    try:
        scale = json.loads(path.read_text(encoding="utf-8"))
        mean, std = float(scale["mean"]), float(scale["std"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the folder of a reward model.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: must hold the numbers mean and std ({error!r}).") from None
    if not std > 0:
        raise DataError(f"{path}: std must be above 0, not {std}.")
    return mean, std
