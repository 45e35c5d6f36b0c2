"""Responses for SteerLM 2.0 to learn from: sampled as asked, rated, and judged by the SFT model.

Each part of the work is done by one model, which is loaded when the one before has gone, and is
kept in the run folder: a job that is started again goes on after it. Each rank takes its share of
the prompts with a whole copy of the model.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignflow.data_validation.canonical import Split
from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.training.chat import ChatTokenizer, TokenizedChat
from alignflow.training.collectives import (
    from_all_ranks,
    max_over_ranks,
    num_ranks,
    rank,
    wait_for_all,
)
from alignflow.training.data import written_once
from alignflow.training.feed import Feed
from alignflow.training.forward import leaving_together, stop_if_asked
from alignflow.training.packing import Items, pack, split_over_ranks
from alignflow.training.reference import ReferencePass, kept_tensors, pass_logps
from alignflow.training.rollout import Drawing, Prompts, answer_trees, draw_answers
from alignflow.training.rows import RowWriter, TokenRows

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.inference import LanguageModel, SampledAnswer
    from alignflow.training.megatron.judges import AttributeModel

_FOLDER = "tokens"
"""Where in the run folder responses are kept; the pipeline removes it once the model is made."""
_CHUNK = 32
"""Prompts of a rank whose answers are saved at once."""


@dataclass(frozen=True)
class Questions:
    """P prompts of a split, each as the model is asked, and without the ratings it is asked for."""

    rows: TokenRows
    """Each row is a prompt."""
    asked_P: Items
    """Rows that ask for ratings."""
    plain_P: Items
    """Rows of the same prompts without."""

    @classmethod
    def of(cls, prompts: TokenRows, *, at_most: int | None, seed: int | None = None) -> Self:
        """Return the different prompts of a split.

        Args:
            prompts: Items as `data.steered_prompts` makes them.
            at_most: How many are taken; None takes all.
            seed: Of the choice; None takes the first ones.
        """
        items = Prompts.distinct(prompts).items
        if seed is not None:
            items = np.random.default_rng(seed).permutation(items)
        asked_P = 2 * np.sort(items[:at_most])
        return cls(prompts.singly(), asked_P, asked_P + 1)

    def __len__(self) -> int:
        """P."""
        return len(self.asked_P)


@dataclass(frozen=True)
class SteeredResponses:
    """K responses to each of P prompts: the rows of an item."""

    asked: TokenRows
    """After the prompts that ask for ratings; labelled with `drawn_logps`."""
    plain: TokenRows
    """The same responses after the prompts alone; labelled with `has_ended`."""

    @property
    def drawn_logps(self) -> Tensor:
        """Log-probability of each response when it was sampled, [P, K] float32, in nats."""
        return torch.from_numpy(self.asked.labels_IL)

    @property
    def has_ended(self) -> Tensor:
        """Whether each response ended by itself, [P, K] bool."""
        return torch.from_numpy(self.plain.labels_IL).bool()

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [P, K] int64."""
        starts = np.concatenate([[0], np.cumsum(self.asked.is_learnt)])[self.asked.starts_R1]
        return torch.from_numpy(np.diff(starts)).view(-1, self.asked.rows_per_item)

    def answers_of(self, item: int) -> list[list[int]]:
        """Return the tokens of the responses to a prompt."""
        rows = (self.plain.row(row) for row in self.plain.rows_of(np.array([item])))
        return [row.tokens_T[row.is_learnt_T].tolist() for row in rows]


def sample_responses(
    load: Callable[[], "LanguageModel"],
    questions: Mapping[Split, Questions],
    drawing: Drawing,
    folder: RunFolder,
    *,
    seed: int,
    identity: str,
) -> dict[Split, SteeredResponses]:
    """Return what a model answers to the prompts of each split that ask for ratings.

    Args:
        load: Loads the model, where there is something left to sample; called by all ranks.
        questions: The prompts.
        drawing: How to draw.
        folder: Keeps the answers, and hears of the progress.
        seed: What the draws follow from.
        identity: Of all that determines the answers; those of another one count as none.
    """
    model: LanguageModel | None = None
    chunks = [
        (split, number, part)
        for split, of_split in questions.items()
        for number, part in enumerate(_chunks(of_split.asked_P))
    ]
    for step, (split, number, part) in enumerate(chunks, start=1):
        stop_if_asked()
        path = _chunk_path(folder, split, number)
        # What the first rank sees holds for all: ranks on several machines may see it later.
        is_kept = rank() == 0 and _read_chunk(path, identity) is not None
        if not from_all_ranks(is_kept)[0]:
            model = load() if model is None else model
            key = (seed, list(questions).index(split))
            rows = questions[split].rows
            mine = split_over_ranks(part, np.diff(rows.starts_R1), num_ranks())[rank()]
            draw = partial(draw_answers, model, rows, mine, drawing, key=key)
            answers = from_all_ranks(leaving_together(draw))
            if rank() == 0:
                _write_chunk(path, identity, part, answers)
        _tell(folder, "sample", step, len(chunks))
    del model
    wait_for_all()
    return {
        split: _responses(folder, split, of_split, drawing, identity)
        for split, of_split in questions.items()
    }


def rate_responses(
    load: Callable[[], "AttributeModel"],
    questions: Mapping[Split, Questions],
    responses: Mapping[Split, SteeredResponses],
    chat: ChatTokenizer,
    folder: RunFolder,
    *,
    num_attributes: int,
    max_tokens: int,
    identity: str,
) -> dict[str, Tensor]:
    """Return how an attribute model rates the responses, [P, K, attributes] float32, by split.

    Args:
        load: Loads the model, where the ratings aren't there yet; called by all ranks.
        questions: The prompts.
        responses: Answers to them, which are rated as answers to the prompts alone.
        chat: Says how an answer ends.
        folder: Keeps the ratings, and hears of the progress.
        num_attributes: How many the model rates.
        max_tokens: Most tokens of one pass.
        identity: Of model and responses.
    """

    def compute() -> dict[str, Tensor]:
        model = load()
        total = sum(len(_chunks(of_split.plain_P)) for of_split in questions.values())
        rated: dict[str, Tensor] = {}
        step = 0
        for split, of_split in questions.items():
            rows = responses[split].plain
            shape = (len(of_split), rows.rows_per_item, num_attributes)
            ratings = torch.full(shape, -torch.inf)
            for part in _chunks(np.arange(len(of_split))):
                stop_if_asked()
                mine = split_over_ranks(part, rows.item_lengths, num_ranks())[rank()]
                answers = {
                    int(of_split.plain_P[item]): responses[split].answers_of(item)
                    for item in mine.tolist()
                }
                trees = answer_trees(of_split.rows, answers, chat)
                for item, rating in zip(
                    mine.tolist(), model.rate_trees(trees, max_tokens=max_tokens), strict=True
                ):
                    ratings[item] = torch.tensor(rating)
                _tell(folder, "rate", step := step + 1, total)
            rated[split] = max_over_ranks(ratings)
        return rated

    return kept_tensors(folder.path / "ratings.safetensors", compute, identity=identity)


def prior_logps(
    load: Callable[[], "LanguageModel"],
    responses: Mapping[Split, SteeredResponses],
    folder: RunFolder,
    *,
    max_tokens: int,
    identity: str,
) -> dict[str, Tensor]:
    """Return the log-probability of each response after the prompt alone, [P * K], by split.

    Args:
        load: Loads the model, where the numbers aren't there yet; called by all ranks.
        responses: What is scored.
        folder: Keeps the numbers, and hears of the progress.
        max_tokens: Most tokens of one pass.
        identity: Of model and responses.
    """

    def compute() -> dict[str, Tensor]:
        passes: dict[str, ReferencePass] = {
            split: ReferencePass(
                Feed(of_split.plain, pack, max_tokens, rank(), num_ranks()),
                _chunks(np.arange(len(of_split.plain))),
            )
            for split, of_split in responses.items()
        }
        return pass_logps(load(), folder, passes, phase="prior")

    return kept_tensors(folder.path / "prior.safetensors", compute, identity=identity)


def _chunks(items: Items) -> list[Items]:
    size = _CHUNK * num_ranks()
    return [items[start : start + size] for start in range(0, len(items), size)]


def _tell(folder: RunFolder, phase: str, step: int, num_steps: int) -> None:
    if rank() == 0:
        line = {"phase": phase, "step": step, "num_steps": num_steps, "time": time.time()}
        folder.append_metrics(line)


def _chunk_path(folder: RunFolder, split: Split, number: int) -> Path:
    return folder.path / _FOLDER / "sampled" / f"{split}-{number:06d}.json"


def _write_chunk(
    path: Path,
    identity: str,
    part: Items,
    answers: Sequence[Mapping[int, Sequence["SampledAnswer"]]],
) -> None:
    """Write the answers to some prompts, in the order of the prompts."""
    by_row = {row: of_row for of_rank in answers for row, of_row in of_rank.items()}
    content = {
        "identity": identity,
        "answers": [
            [{"tokens": each.tokens, "logp": sum(each.logps)} for each in by_row[row]]
            for row in part.tolist()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content) + "\n")


def _read_chunk(path: Path, identity: str) -> list[list[dict[str, Any]]] | None:
    """Return the answers of a chunk that was written under the identity, or None."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["identity"] != identity:
        return None
    answers: list[list[dict[str, Any]]] = content["answers"]
    return answers


def _responses(
    folder: RunFolder, split: Split, questions: Questions, drawing: Drawing, identity: str
) -> SteeredResponses:
    """Return the rows of all answers of a split, which lie there chunk by chunk."""

    def write(writer: RowWriter, *, is_asked: bool) -> None:
        rows_P = questions.asked_P if is_asked else questions.plain_P
        for number, part in enumerate(_chunks(rows_P)):
            answers = _read_chunk(_chunk_path(folder, split, number), identity)
            if answers is None:
                raise RuntimeError(f"the answers of chunk {number} of {split} are gone")
            for row, of_row in zip(part.tolist(), answers, strict=True):
                prompt = questions.rows.row(row).tokens_T
                ended = [each["tokens"][-1] in drawing.stop_tokens for each in of_row]
                labels = [each["logp"] for each in of_row] if is_asked else map(float, ended)
                writer.append(
                    [_answered(prompt, each["tokens"]) for each in of_row],
                    tuple(labels),
                    num_truncated=ended.count(False),
                )

    asked, plain = (
        written_once(
            folder.path / _FOLDER / f"{split}_{name}",
            f"{identity} {split} {name}",
            drawing.num_samples,
            partial(write, is_asked=is_asked),
            is_writer=rank() == 0,
        )
        for name, is_asked in (("asked", True), ("plain", False))
    )
    return SteeredResponses(asked, plain)


def _answered(prompt: NDArray[np.int32], answer: Sequence[int]) -> TokenizedChat:
    is_learnt_T = np.repeat([False, True], [len(prompt), len(answer)])
    return TokenizedChat(np.concatenate([prompt, np.array(answer, dtype=np.int32)]), is_learnt_T)
