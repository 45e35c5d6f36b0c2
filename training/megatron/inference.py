"""A language model that is only asked: log-probabilities of continuations, logits, answers.

Every pass feeds one packed sequence to the decoder, with an attention of `caching.py` that says who
sees whom. Hidden states are turned into logits for the positions that are asked about only, a slice
at a time, so memory stays bounded however large the vocabulary is.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.config import ParallelConfig, Precision
from alignflow.training.megatron.caching import DecodingCache, PrefillAttention, step_attention
from alignflow.training.megatron.frozen import SINGLE_PROCESS, FrozenModel, Progress
from alignflow.training.megatron.model import Head
from alignflow.training.megatron.trees import Tree, TreeBatch, by_tree, common_root, pack_trees
from alignflow.training.sampling import Sampling, draw

# Logits of one slice: 64 MiB in float32.
_LOGIT_ELEMENTS = 2**24

# Tokens of each answer between two calls of its progress: a second or so of a slow model.
_STEPS_TOLD = 8


@dataclass(frozen=True)
class SampledAnswer:
    """A continuation that was drawn token by token."""

    tokens: list[int]
    """With the token that ended it, where one did."""
    logps: list[float]
    """Log-probability in nats of each, at the temperature it was drawn at."""


class LanguageModel(FrozenModel):
    """A policy: log-probabilities, logits, greedy and sampled answers."""

    head: Head = "lm"

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        precision: Precision,
        parallel: ParallelConfig = SINGLE_PROCESS,
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

    def score(
        self, trees: Sequence[Tree], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[float]]:
        """Return for each tree the summed log-probability, in nats, of each branch.

        What all prefixes begin with is computed once, each tree's prefix once for its branches.

        Args:
            trees: Prefixes and their continuations.
            max_tokens: Most tokens of one pass; a single larger tree forms its own.
            progress: Told what each pass did.
        """
        sums: list[list[float]] = []
        for packed, batch in pack_trees(trees, max_tokens=max_tokens, root=common_root(trees)):
            logprobs_N = self.logprobs(batch, self.hidden(batch)[batch.read_index_P])
            sums += by_tree(packed, batch.branch_sums(logprobs_N.double()))
            if progress is not None:
                progress(len(packed), batch.num_tokens)
        return sums

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
        progress: Progress | None = None,
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
            progress: As in `generate`.
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
            progress=progress,
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
