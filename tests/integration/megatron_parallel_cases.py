"""What `test_megatron_parallel.py` starts under torchrun: every case of one world size in turn.

Usage: megatron_parallel_cases.py MODELS_FOLDER OUT_FOLDER. Writes OUT_FOLDER/results.json, and each
case's checkpoint and export beside it.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.config import ParallelConfig, Recompute, SFTConfig
from alignflow.training.losses import SummedLoss
from alignflow.training.megatron.core import parallel_state
from alignflow.training.megatron.model import Head
from alignflow.training.megatron.run import ComputeLoss, Run, build_run

Layout = dict[str, ParallelConfig | Recompute]
"""Fields of a config."""


def layout(
    tensor: int = 1, pipeline: int = 1, recompute: Recompute = "none", **more: int
) -> Layout:
    parallel = ParallelConfig.model_validate(
        {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline, **more}
    )
    return {"parallel": parallel, "recompute": recompute}


LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {"one": layout()},
    2: {
        "tensor": layout(tensor=2),
        "pipeline": layout(pipeline=2),
        "data": layout(data_parallel_size=2),
        "sharded": layout(data_parallel_size=2, use_distributed_optimizer=True),
        "sequence": layout(tensor=2, sequence_parallel=True, recompute="selective"),
        "context": layout(context_parallel_size=2, recompute="full"),
    },
    4: {
        "tensor-pipeline": layout(tensor=2, pipeline=2),
        "tensor-data": layout(tensor=2, data_parallel_size=2),
        "pipeline-data": layout(pipeline=2, data_parallel_size=2),
        "sequence-pipeline": layout(2, 2, "full", sequence_parallel=True),
        "sequence-sharded": layout(
            *(2, 1, "selective"),
            sequence_parallel=True,
            data_parallel_size=2,
            use_distributed_optimizer=True,
        ),
        "pipeline-sharded": layout(
            *(1, 2, "full"), data_parallel_size=2, use_distributed_optimizer=True
        ),
        "context-sequence": layout(2, sequence_parallel=True, context_parallel_size=2),
        "context-pipeline": layout(1, 2, "selective", context_parallel_size=2),
        "context-sharded": layout(
            context_parallel_size=2, data_parallel_size=2, use_distributed_optimizer=True
        ),
    },
}
CONFIG = SFTConfig(max_length=64, precision="fp32", learning_rate=3e-3, weight_decay=0.1)
# Lengths of the rows of each microbatch; data-parallel ranks get two and one of the three.
MICROBATCHES = ((5, 9, 2), (17,), (4, 4, 11))


def main(folder: Path, out: Path) -> None:
    results: dict[str, dict[str, object]] = {}
    for at, changes in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        # Context parallelism shares key-value heads, of which the other model has one.
        for model in ("untied",) if "context" in at else ("tied", "untied"):
            for head, loss in LOSSES.items():
                config = CONFIG.replaced(**changes)
                run = build_run(config, folder / model, head=head, num_steps=8)
                name = f"{model}-{head}"
                source = out / source_of(at) / name / "checkpoint"
                results.setdefault(at, {})[name] = train(run, loss, out / at / name, source)
                parallel_state.destroy_model_parallel()
    run.close()
    if os.environ["RANK"] == "0":
        (out / "results.json").write_text(json.dumps(results))


def source_of(at: str) -> str:
    """Return the layout whose checkpoint is loaded under this one; the two-process run is first."""
    if "sharded" in at:
        return "sharded"
    return "tensor" if at in LAYOUTS[1] | LAYOUTS[2] else "one"


def train(run: Run, loss: ComputeLoss, out: Path, source: Path) -> dict[str, object]:
    """Score, train, checkpoint, train on, go back, train on again, export; go on from elsewhere."""
    batches = [packed(lengths, seed) for seed, lengths in enumerate(MICROBATCHES)]
    own = batches[run.data_parallel_rank :: run.data_parallel_size]
    scores = [output.tolist() for output in run.forward(batches)]
    steps = [run.train_step(own, loss) for _ in range(3)]
    run.save_checkpoint(out / "checkpoint", {"next_row": 7})
    trained_scores = [output.tolist() for output in run.forward(batches)]
    continued = [run.train_step(own, loss) for _ in range(2)]
    state = run.load_checkpoint(out / "checkpoint")
    repeated = [run.train_step(own, loss) for _ in range(2)]
    run.export(out / "export")
    run.load_checkpoint(source)
    moved_scores = [output.tolist() for output in run.forward(batches)]
    return {
        "scores": scores,
        "trained_scores": trained_scores,
        "steps": steps + continued,
        "moved_scores": moved_scores,
        "moved_steps": [run.train_step(own, loss) for _ in range(2)],
        "repeats": continued == repeated and state == {"next_row": 7},
    }


def packed(lengths: Sequence[int], seed: int) -> PackedBatch:
    """Return rows of random tokens; the second half of each is scored."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(0, 97, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    scored = [
        torch.arange(start + length // 2, start + length - 1)
        for start, length in zip(starts.tolist(), lengths, strict=False)
    ]
    index = torch.cat(scored)
    return PackedBatch(
        tokens_T=tokens,
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        row_tokens_S=torch.arange(len(tokens)),
        row_starts_R1=starts.int(),
        score_index_N=index,
        targets_N=tokens[index + 1],
        score_row_N=torch.cat([torch.full_like(s, row) for row, s in enumerate(scored)]),
        row_last_R=starts[1:] - 1,
    )


def token_loss(logprobs_N: Tensor, batch: PackedBatch) -> SummedLoss:
    return SummedLoss(
        total=-logprobs_N.sum(),
        units=torch.tensor(logprobs_N.numel(), dtype=torch.int32),
        metrics={"probability": logprobs_N.detach().exp().sum()},
    )


def row_loss(scores_R: Tensor, batch: PackedBatch) -> SummedLoss:
    targets_R = batch.tokens_T[batch.row_last_R] / 97
    return SummedLoss(
        total=(scores_R - targets_R).square().sum(),
        units=torch.tensor(scores_R.numel(), dtype=torch.int32),
        metrics={"score": scores_R.detach().sum()},
    )


LOSSES: dict[Head, ComputeLoss] = {"lm": token_loss, "reward": row_loss}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
