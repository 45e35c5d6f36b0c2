"""Strong scaling: the same steps by one process and by two, on the same cores and on half of them.

    python benchmarks/scaling.py [--model SOURCE] [--steps N] [--write]

Every layout is a job that is started as a pipeline starts it, on the same rows, global batches and
initial weights: SFT in bf16 on rows of random words that are all equally long, half of each of them
scored. The first step warms up, the median of the others counts. Exits with 1 if the loss of any
step depends on the layout, and with 2 where there is one core only.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models import make_model
from results import Table, add_write_option, options_given, write
from synthetic import write_demonstrations
from workload import Workload, make_workload

from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.jobs.wait import wait_for
from alignflow.training.config import ParallelConfig, SFTConfig, TrainingJob
from alignflow.training.megatron.architecture import read_architecture

TOLERANCE = 0.02
"""How far the losses of a step may be apart, in nats a token: bf16 rounds by layout."""

ABOUT = (
    "`make bench` runs `benchmarks/scaling.py --write`: the SFT job in bf16 with fp32 master "
    "weights on rows of random words that are all equally long, half of each row scored; the same "
    "rows, global batches and initial weights in every layout. A pipeline would start the jobs in "
    "the same way, two processes by torchrun over gloo. The median of all steps but the first."
)
COLUMNS = (
    "layout",
    "cores",
    "tokens/s",
    "s a step",
    "speed-up over one process on as many cores",
    "efficiency beside one process on half the cores",
    "memory of a process",
    "loss of the last step",
)


@dataclass(frozen=True)
class Layout:
    """A number of processes on some cores."""

    name: str
    parallel: ParallelConfig
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Scaled:
    """What a layout did."""

    layout: Layout
    tokens_per_s: float
    seconds: float
    """Of a step, like the rate a median."""
    peak_bytes: int
    """The most memory that the first process held."""
    losses: list[float]


def main() -> None:
    """Run every layout and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="113M", help="a size of shapes.py or a model source")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--steps", type=int, default=6)
    add_write_option(parser, "scaling")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("Scaling from one to two processes needs two cores; one is there.", file=sys.stderr)
        sys.exit(2)
    config = SFTConfig(
        precision="bf16",
        global_batch_size=args.batch,
        max_length=args.length,
        max_steps=args.steps,
        warmup_fraction=0.0,
    )
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        workload = made_workload(config, args.model, scratch)
        num_heads = read_architecture(workload.model).num_heads
        done = []
        for number, layout in enumerate(layouts(cores, num_heads)):
            done.append(run(config, workload, layout, scratch / f"job-{number}"))
            print(f"{layout.name}, {len(layout.cores)} cores: {done[-1].seconds:.3f} s", flush=True)
    steps = zip(*(each.losses for each in done), strict=True)
    apart = max(max(losses) - min(losses) for losses in steps)
    table = scaling_table(done)
    loss_line = f"Losses of a step differ by at most {apart:.4f} between layouts."
    print(table, loss_line, sep="\n\n")
    if args.write:
        options = f"Options: {options_given(parser, args, but=())}"
        write(args.write, "From one process to two", ABOUT, [table, loss_line, options])
    # Written so that NaN fails too.
    sys.exit(0 if apart <= TOLERANCE else 1)


def made_workload(config: SFTConfig, model: str, scratch: Path) -> Workload:
    """Return the model and the rows of as many steps as the config has."""
    assert config.max_steps is not None
    make_model(model, scratch / "model")
    rows = scratch / "rows.jsonl"
    count = config.max_steps * config.global_batch_size
    write_demonstrations(rows, scratch / "model", length=config.max_length, count=count)
    return make_workload(
        config, [str(rows)], scratch / "model", scratch, num_steps=config.max_steps, has_cuts=False
    )


def layouts(cores: Sequence[int], num_heads: int) -> list[Layout]:
    """Return one process on half of the cores and on all, and two processes on all.

    Args:
        cores: An even number of them is used.
        num_heads: Attention heads of the model; tensor parallelism splits an even number.
    """
    half = tuple(cores[: len(cores) // 2])
    whole = tuple(cores[: 2 * len(half)])
    found = [
        Layout("1 process", ParallelConfig(), half),
        Layout("1 process", ParallelConfig(), whole),
        Layout("2 processes, data parallel", ParallelConfig(data_parallel_size=2), whole),
    ]
    if num_heads % 2 == 0:
        tensor = ParallelConfig(tensor_model_parallel_size=2)
        found.append(Layout("2 processes, tensor parallel", tensor, whole))
    return found


def run(config: SFTConfig, workload: Workload, layout: Layout, folder: Path) -> Scaled:
    """Train as a job under the layout.

    Raises:
        JobError: The job failed.
    """
    job = TrainingJob(
        stage=config.replaced(parallel=layout.parallel),
        model=workload.model,
        dataset=workload.dataset,
    )
    num_processes = layout.parallel.world_size
    spec = JobSpec(
        name=folder.name,
        module="alignflow.training",
        config=job.model_dump(mode="json"),
        processes_per_node=num_processes,
        env={
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(len(layout.cores) // num_processes),
        },
    )
    run_folder = RunFolder(folder)
    with _on_cores(layout.cores):
        submitted = LocalLauncher().submit(spec, run_folder)
    result = wait_for(submitted, run_folder)
    rows = [row for row in run_folder.metric_reader().read_new() if row["phase"] == "train"]
    rates = [row["tokens_per_s"] for row in rows[1:]]
    return Scaled(
        layout,
        tokens_per_s=statistics.median(rates),
        seconds=workload.tokens[0] / statistics.median(rates),
        peak_bytes=result.details["peak_memory_bytes"],
        losses=[row["sft/loss"] for row in rows],
    )


def scaling_table(done: Sequence[Scaled]) -> Table:
    """Return the table of the layouts, of which the first two are one process."""
    half, whole = done[:2]
    return Table(
        COLUMNS,
        tuple(
            (
                each.layout.name,
                str(len(each.layout.cores)),
                f"{each.tokens_per_s:,.0f}",
                f"{each.seconds:.3f}",
                f"{each.tokens_per_s / (half if each is half else whole).tokens_per_s:.2f}",
                f"{_efficiency(each, half):.0%}",
                f"{each.peak_bytes / 2**30:.2f} GiB",
                f"{each.losses[-1]:.4f}",
            )
            for each in done
        ),
    )


def _efficiency(each: Scaled, half: Scaled) -> float:
    """Return the speed-up over one process on half the cores, as a share of the cores' growth."""
    num_times = len(each.layout.cores) / len(half.layout.cores)
    return each.tokens_per_s / half.tokens_per_s / num_times


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Leave only these cores to what is started inside."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    main()
