"""Two answers to one prompt, as the judge is asked about them: twice, in both orders."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from alignflow.data_validation.canonical import read_split
from alignflow.evaluation.answer_judge.config import AnswerJudgeConfig
from alignflow.evaluation.bootstrap import Floats
from alignflow.evaluation.measures import Items
from alignflow.evaluation.pairs import encode_pairs
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.data import PREFERENCES
from alignflow.training.megatron.trees import Branch, Tree

_VERDICTS = {"chosen": "A", "rejected": "B"}
"""As the two responses to a question."""
_NUM_ORDERS = 2


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt."""

    prompt: list[Message]
    first: str
    other: str

    def questions(self, instructions: str) -> tuple[str, str]:
        """Return what the judge is asked with the first answer as A, and with it as B."""
        prompt = _as_text(self.prompt)
        return (
            question(instructions, prompt, self.first, self.other),
            question(instructions, prompt, self.other, self.first),
        )


def _as_text(prompt: Sequence[Message]) -> str:
    """Return a single turn as it is, of several each with its role."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def question(instructions: str, prompt: str, answer_a: str, answer_b: str) -> str:
    """Return the instructions with the texts in their places.

    All at once: a text may hold what looks like the place of another.
    """
    texts = {"{prompt}": prompt, "{answer_a}": answer_a, "{answer_b}": answer_b}
    return re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], instructions)


def held_out_comparisons(dataset: Path, number: int) -> list[Comparison]:
    """Return the first held-out pairs, the chosen response first.

    Raises:
        DataError: The dataset can't be read.
    """
    return [
        Comparison(record["prompt"], record["chosen"], record["rejected"])
        for record in islice(read_split(dataset, "held_out"), number)
    ]


def read_answers(evaluation: Path) -> dict[str, dict[str, Any]]:
    """Return the sample answers of an evaluation by the id of their prompt."""
    lines = (evaluation / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    samples = [json.loads(line) for line in lines if line]
    return dict(zip(Items.of(sample["prompt"] for sample in samples).ids, samples, strict=True))


def compared_answers(first: Path, other: Path) -> list[Comparison]:
    """Return the answers of two evaluations to the prompts that both models answered."""
    answers, others = read_answers(first), read_answers(other)
    return [
        Comparison(sample["prompt"], sample["answer"], others[name]["answer"])
        for name, sample in answers.items()
        if name in others
    ]


@dataclass(frozen=True)
class Asked:
    """Comparisons that a judge can be asked about."""

    comparisons: list[Comparison]
    trees: list[Tree]
    """Two a comparison, one an order: the question, and the verdicts A and B as its branches."""
    num_left_out: int
    """Comparisons that are too long for it, or that its chat template can't hold."""

    @classmethod
    def of(
        cls, comparisons: Sequence[Comparison], judge: AnswerJudgeConfig, chat: ChatTokenizer
    ) -> Self:
        """Put comparisons into the judge's words and tokens.

        To the tokenizer a question is a prompt, and the two verdicts are a pair of responses.
        """
        records = [
            {"id": number, "prompt": [{"role": "user", "content": text}], **_VERDICTS}
            for number, comparison in enumerate(comparisons)
            for text in comparison.questions(judge.instructions)
        ]
        pairs = encode_pairs(records, PREFERENCES, chat, max_length=judge.max_length)
        orders: dict[int, list[Tree]] = {}
        for record, tree in zip(pairs.records, pairs.trees, strict=True):
            orders.setdefault(record["id"], []).append(_up_to_the_verdict(tree))
        asked = {number: trees for number, trees in orders.items() if len(trees) == _NUM_ORDERS}
        return cls(
            [comparisons[number] for number in asked],
            [tree for trees in asked.values() for tree in trees],
            num_left_out=len(comparisons) - len(asked),
        )

    def margins(self, logprobs: Iterable[Sequence[float]]) -> Floats:
        """Return by how much the first answer is preferred, in nats, in each order: [N, 2].

        Args:
            logprobs: Log-probabilities of the branches of each tree.
        """
        logprobs_N22 = np.array(list(logprobs), dtype=np.float64).reshape(-1, 2, 2)
        # The first answer is A in the first order and B in the second.
        margins_N2: Floats = -np.diff(logprobs_N22)[..., 0] * [1, -1]
        return margins_N2


def _up_to_the_verdict(tree: Tree) -> Tree:
    """Leave of two responses the first token in which they differ, and those before it.

    A template may let both begin alike, with an empty block of thoughts.
    """
    a, b = (branch.tokens for branch in tree.branches)
    at = next(at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    is_scored = [False] * at + [True]
    return Tree(tree.prefix, [Branch(tokens[: at + 1], is_scored) for tokens in (a, b)])
