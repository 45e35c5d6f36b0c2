"""Training on a CUDA device: tokens/s, TFLOP/s, model FLOPs utilisation and memory, TRL beside it.

    python benchmarks/gpu.py [--stages NAME ...] [--sizes NAME ...] [--length N] [--tokens N]
        [--without-trl] [--write]

Each measurement is a process of its own, the training job that a recipe would start, in bf16 with
fp32 master weights, on random weights and rows of random words that are all equally long, half of
each row the answer. TRL trains on the same rows where its environment is there or can be made.
Utilisation is the share of the peak that is measured beforehand, on large products of matrices.
A microbatch that doesn't fit is halved until it does. Weights that don't fit the device with their
gradients and optimizer are frozen, and LoRA adapters trained instead. Exits with 2 without CUDA.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flops import Work, num_parameters, rollout_flops, training_flops
from models import make_model
from pydantic import TypeAdapter
from results import Table, add_write_option, options_given, update
from shapes import SHAPES
from sides import RunReport, Side, our_side, trl_side
from synthetic import write_demonstrations, write_pairs
from trl_settings import TRL, TrlOptions
from workload import Workload, make_workload

from alignflow.jobs.run_folder import RunFolder
from alignflow.training.config import (
    LoRAConfig,
    PPOConfig,
    RewardModelConfig,
    StageConfig,
    TrainerConfig,
)
from alignflow.training.data import DEMONSTRATIONS, PREFERENCES, PROMPTS, load_rows
from alignflow.training.megatron.architecture import Architecture, read_architecture
from alignflow.training.packing import pack

STAGES = {"sft": "sft", "rm": "reward_model", "dpo": "dpo", "ppo": "ppo"}
TRL_STAGES = ("sft", "rm", "dpo")
KINDS = {
    "sft": DEMONSTRATIONS,
    "reward_model": PREFERENCES,
    "dpo": PREFERENCES,
    "ppo": PROMPTS,
}

TIMED_RUNS = 3
STEPS_PER_RUN = 2
_TEMPLATE_TOKENS = 16
"""Room in a prompt for what the chat template adds to half of a row."""
_STATE_BYTES = 18
"""Of a trained weight: bf16 itself, and in fp32 gradient, master weight and two moments."""
_FROZEN_BYTES = 2
_STATE_SHARE = 0.95
"""Most of a device's memory that weights may take with their state, to leave activations room."""

TITLE = "Training on CUDA"
ABOUT = (
    "Written by `benchmarks/gpu.py --write`. Random weights, bf16 with fp32 master weights, rows "
    "of random words that are all equally long, half of each row the answer. A token counts once "
    "in each row, padding never; in PPO, prompts and answers of a rollout, whatever number of "
    "times the models read them. TFLOP/s are those that the step needs: matrix products of the "
    "layers, of attention by the lengths of rows, and of the LM head at scored positions; a prompt "
    "that the rows of a pair share counts once where it is computed once. MFU is their share of "
    "the peak, measured on large products of bf16 matrices."
)


@dataclass(frozen=True)
class Point:
    """What is measured at once."""

    stage: str
    """A name in `STAGES`."""
    size: str
    """A name in `SHAPES`."""
    length: int
    """Tokens of a row."""
    num_tokens: int
    """Of a step, about."""
    lora: LoRAConfig | None = None


@dataclass(frozen=True)
class Speed:
    """What a side did."""

    tokens_per_s: float
    peak_bytes: int
    flops_per_s: float = math.nan
    """Not counted for TRL."""


class DoesNotFitError(Exception):
    """Not even the smallest microbatch fits."""


def main() -> None:
    """Measure every stage and size, each row printed and written as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    sizes = ["135M", "360M", "1B", "3B", "8B"]
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=sizes)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--without-trl", action="store_true")
    add_write_option(parser, "gpu")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "This benchmark measures training on a CUDA device, and torch finds none here.",
            file=sys.stderr,
        )
        sys.exit(2)
    device = torch.device("cuda")
    held = torch.cuda.get_device_properties(device).total_memory
    peak = matrix_peak(device, size=8192)
    print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in bf16 products", flush=True)
    also = [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}", TRL.replace("==", " ")]
    options = options_given(parser, args, but=("stages", "sizes"))
    for size in args.sizes:
        for stage in args.stages:
            point = fitting(Point(stage, size, args.length, args.tokens), held)
            with tempfile.TemporaryDirectory() as scratch:
                table = measured(point, peak, Path(scratch), with_trl=not args.without_trl)
            print(table, flush=True)
            if args.write:
                update(args.write, TITLE, f"{ABOUT} Options: {options}.", table, also=also)


def matrix_peak(device: torch.device, *, size: int, repeats: int = 20) -> float:
    """Return the operations a second of products of square bf16 matrices, the best of a few."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        _wait_for(device)
        began = time.perf_counter()
        torch.mm(left, right)
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return float(2 * size**3 / min(seconds))


def fitting(point: Point, held_bytes: int) -> Point:
    """Return the point, with adapters if a device of so much memory can't train its weights."""
    fits = state_bytes(point) < _STATE_SHARE * held_bytes
    return point if fits else replace(point, lora=LoRAConfig())


def state_bytes(point: Point) -> int:
    """Return what all weights of the stage's models take in training, activations left out.

    PPO trains actor and critic, and holds reference and reward model besides.
    """
    with tempfile.TemporaryDirectory() as folder:
        of_one = num_parameters(_architecture(point.size, Path(folder)))
    if point.stage == "ppo":
        return 2 * (_STATE_BYTES + _FROZEN_BYTES) * of_one
    return _STATE_BYTES * of_one


def measured(point: Point, peak: float, scratch: Path, *, with_trl: bool) -> Table:
    """Train on both sides, on whatever device the jobs find, and return the point's row."""
    make_model(point.size, scratch / "model")
    workload = made_workload(point, scratch)
    ours = _speed(lambda: our_speed(point, workload, scratch))
    # TRL's adapters are another package's.
    has_twin = with_trl and point.stage in TRL_STAGES and point.lora is None
    theirs = _speed(lambda: trl_speed(point, workload, scratch)) if has_twin else "-"
    row = {
        "stage and model": f"{point.stage} {point.size}",
        "trained": "all weights" if point.lora is None else f"LoRA, rank {point.lora.rank}",
        "tokens/s": _tokens_per_s(ours),
        "TFLOP/s": "-",
        "MFU": "-",
        "peak, TFLOP/s": f"{peak / 1e12:.3g}",
        "memory": _memory(ours),
        "TRL, tokens/s": _tokens_per_s(theirs),
        "ratio": "-",
        "TRL, memory": _memory(theirs),
    }
    if isinstance(ours, Speed):
        row |= {
            "TFLOP/s": f"{ours.flops_per_s / 1e12:.3g}",
            "MFU": f"{ours.flops_per_s / peak:.1%}",
        }
    if isinstance(ours, Speed) and isinstance(theirs, Speed):
        row["ratio"] = f"{ours.tokens_per_s / theirs.tokens_per_s:.2f}"
    return Table(tuple(row), (tuple(row.values()),))


def made_workload(point: Point, scratch: Path) -> Workload:
    """Write rows and return them in the order of the steps; the model is there already."""
    config = stage_config(point)
    num_steps = (1 + TIMED_RUNS) * STEPS_PER_RUN
    rows = scratch / "rows.jsonl"
    write_rows = write_demonstrations if point.stage == "sft" else write_pairs
    count = num_steps * _step_rows(config)
    write_rows(rows, scratch / "model", length=point.length, count=count)
    if isinstance(config, PPOConfig):
        # The job takes the prompts of the pairs.
        config = RewardModelConfig(
            max_length=config.max_length, global_batch_size=_step_rows(config), seed=config.seed
        )
    return make_workload(
        config, [str(rows)], scratch / "model", scratch, num_steps=num_steps, has_cuts=False
    )


def stage_config(point: Point, *, num_parts: int = 1) -> StageConfig:
    """Return the config of the stage, a step of which is computed in at least so many parts."""
    rows_per_item = 1 if point.stage in ("sft", "ppo") else 2
    num_items = max(1, point.num_tokens // (rows_per_item * point.length))
    common = {
        "stage": STAGES[point.stage],
        "precision": "bf16",
        "global_batch_size": num_items,
        "max_length": point.length,
        "microbatch_tokens": max(point.length, point.num_tokens // num_parts),
        "learning_rate": 1e-6,
        "warmup_fraction": 0.0,
        "lora": point.lora,
    }
    if point.stage == "ppo":
        common |= {
            "rollout_prompts": num_items,
            "max_new_tokens": point.length // 2 - _TEMPLATE_TOKENS,
            "generation_tokens": point.num_tokens,
            "ppo_epochs": 1,
        }
    config: StageConfig = TypeAdapter(StageConfig).validate_python(common)
    return config


def our_speed(point: Point, workload: Workload, scratch: Path) -> Speed:
    """Return what the job does with the largest microbatches that fit.

    Raises:
        DoesNotFitError: None does.
    """

    def start(num_parts: int) -> Side:
        config = stage_config(point, num_parts=num_parts)
        folder = scratch / f"ours-{num_parts}"
        return our_side(config, workload, folder, steps_per_run=STEPS_PER_RUN)

    runs, num_parts = _first_that_fits(start, _halvings(point))
    config = stage_config(point, num_parts=num_parts)
    seconds = statistics.median(run.seconds for run in runs)
    folder = RunFolder(scratch / f"ours-{num_parts}")
    tokens, flops = _tokens_and_flops(point, config, workload, scratch, folder)
    return Speed(tokens / seconds, runs[-1].peak_bytes, flops / seconds)


def trl_speed(point: Point, workload: Workload, scratch: Path) -> Speed | None:
    """Return what TRL does with the most rows at a time that fit, None where it can't be had.

    Raises:
        DoesNotFitError: Not even one row fits.
    """
    config = stage_config(point)

    def start(num_parts: int) -> Side:
        options = TrlOptions(batch=config.global_batch_size // num_parts)
        folder = scratch / f"trl-{num_parts}"
        return trl_side(config, options, workload, folder, steps_per_run=STEPS_PER_RUN)

    parts = [parts for parts in _halvings(point) if config.global_batch_size % parts == 0]
    try:
        runs, _ = _first_that_fits(start, parts)
    except subprocess.CalledProcessError as error:
        print(f"TRL can't be installed ({error}); going on without it.", file=sys.stderr)
        return None
    seconds = statistics.median(run.seconds for run in runs)
    return Speed(sum(workload.tokens[:STEPS_PER_RUN]) / seconds, runs[-1].peak_bytes)


def _tokens_and_flops(
    point: Point, config: StageConfig, workload: Workload, scratch: Path, folder: RunFolder
) -> tuple[int, int]:
    """Return tokens and operations of a run; all rows are equally long, and so all runs alike."""
    architecture = read_architecture(workload.model)
    if not isinstance(config, PPOConfig):
        work = step_work(config, workload, scratch)
        flops = STEPS_PER_RUN * training_flops(architecture, work, point.lora)
        return sum(workload.tokens[:STEPS_PER_RUN]), flops
    rows = [row for row in folder.metric_reader().read_new() if row["phase"] == "train"]
    answer = round(statistics.mean(row["ppo/response_tokens"] for row in rows))
    prompts = load_rows(
        workload.dataset,
        "train",
        PROMPTS,
        model=workload.model,
        max_length=config.max_prompt_tokens,
        cache=scratch / "prompts",
        is_writer=True,
    )
    lengths = [(int(prompts.item_lengths[0]), answer)] * config.rollout_prompts
    flops = rollout_flops(architecture, lengths, epochs=config.ppo_epochs, lora=point.lora)
    return STEPS_PER_RUN * sum(map(sum, lengths)), STEPS_PER_RUN * flops


def step_work(config: StageConfig, workload: Workload, scratch: Path) -> Work:
    """Return what the first step of SFT, reward model or DPO goes over."""
    rows = load_rows(
        workload.dataset,
        "train",
        KINDS[config.stage],
        model=workload.model,
        max_length=config.max_length,
        cache=scratch / "tokens",
        is_writer=True,
    )
    if _has_transformer_engine(config):
        rows = rows.unshared()
    items = np.arange(config.global_batch_size)
    work = Work.of(pack(rows, items))
    return replace(work, num_scored=0) if config.stage == "reward_model" else work


def _has_transformer_engine(config: TrainerConfig) -> bool:
    """Whether the job takes its layers, which compute a shared prompt in each row."""
    from alignflow.training.megatron.core import HAVE_TE  # takes seconds, and a refusal has none

    return HAVE_TE and torch.cuda.is_available() and config.lora is None


def _first_that_fits(
    start: Callable[[int], Side], numbers_of_parts: Sequence[int]
) -> tuple[list[RunReport], int]:
    """Return the timed runs of the first side that has memory enough, and in how many parts.

    Raises:
        DoesNotFitError: None has.
    """
    for num_parts in numbers_of_parts:
        try:
            with start(num_parts) as side:
                side.run()
                return [side.run() for _ in range(TIMED_RUNS)], num_parts
        except SystemExit as error:
            if "out of memory" not in str(error).lower():
                raise
    raise DoesNotFitError


def _halvings(point: Point) -> list[int]:
    """Return in how many parts a step may be computed, down to single rows."""
    numbers = [1]
    while numbers[-1] * 2 <= point.num_tokens // point.length:
        numbers.append(numbers[-1] * 2)
    return numbers


def _speed(measure: Callable[[], Speed | None]) -> Speed | str:
    """Return what is measured, or in a phrase why it isn't."""
    try:
        return measure() or "-"
    except DoesNotFitError:
        return "out of memory"


def _tokens_per_s(speed: Speed | str) -> str:
    return f"{speed.tokens_per_s:,.0f}" if isinstance(speed, Speed) else speed


def _memory(speed: Speed | str) -> str:
    return f"{speed.peak_bytes / 2**30:.2f} GiB" if isinstance(speed, Speed) else "-"


def _step_rows(config: StageConfig) -> int:
    return config.rollout_prompts if isinstance(config, PPOConfig) else config.global_batch_size


def _architecture(size: str, folder: Path) -> Architecture:
    from transformers import LlamaConfig

    shape: dict[str, Any] = SHAPES[size]
    LlamaConfig(**shape).save_pretrained(folder)
    return read_architecture(folder)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
