"""KTO's KL term and loss are those of the global batch, however it is cut into microbatches."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignflow.training.chat import TokenizedChat
from alignflow.training.config import DPOConfig
from alignflow.training.feed import Feed
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.preference import MismatchKL, response_loss
from alignflow.training.responses import mismatched_rows, pack_referenced, pack_responses
from alignflow.training.rows import RowWriter, TokenRows

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]

CONFIG = DPOConfig(loss="kto", beta=0.5, undesirable_weight=1.5, precision="fp32", max_length=64)
LENGTHS = [(9, 5), (3, 7), (6, 2), (4, 11), (8, 8), (2, 3)]
ITEMS = np.array([4, 0, 3, 5, 1])


@pytest.fixture
def rows(tmp_path: Path) -> TokenRows:
    """Responses of random tokens to prompts of random tokens, every other one desirable."""
    generator = np.random.default_rng(0)
    with RowWriter(tmp_path / "own", "digest") as writer:
        for number, (prompt, response) in enumerate(LENGTHS):
            tokens_T = generator.integers(1, 97, prompt + response, dtype=np.int32)
            chat = TokenizedChat(tokens_T, np.arange(len(tokens_T)) >= prompt)
            writer.append([chat], (float(number % 2),), num_truncated=0)
    written = TokenRows.open(tmp_path / "own", digest="digest", rows_per_item=1)
    assert written is not None
    return written


@pytest.fixture
def others(rows: TokenRows, tmp_path: Path) -> TokenRows:
    return mismatched_rows(rows, tmp_path / "other", max_length=64, is_writer=True)


@pytest.fixture
def run(model_folder: ModelFolder) -> Iterator[Run]:
    with build_run(CONFIG, model_folder("llama3")[0], head="lm", num_steps=1) as run:
        yield run


def naive_logps(rows: TokenRows, model: PreTrainedModel) -> Tensor:
    logps = []
    for index in range(len(rows)):
        row = rows.row(index)
        tokens_T = torch.from_numpy(row.tokens_T.astype(np.int64))
        with torch.no_grad():
            logps_TV = model(tokens_T[None]).logits[0].log_softmax(-1)
        logps_T = logps_TV[:-1].gather(1, tokens_T[1:, None])[:, 0]
        logps.append(logps_T[torch.from_numpy(row.is_learnt_T[1:].copy())].sum())
    return torch.stack(logps)


def kl_of(run: Run, others: TokenRows, reference_logps: Tensor, *, max_tokens: int) -> MismatchKL:
    make_batch = partial(pack_referenced, reference_logps=reference_logps)
    feed = Feed(others, make_batch, max_tokens=max_tokens, rank=0, num_ranks=1)
    return MismatchKL(run, train=feed, held_out=feed)


@pytest.mark.parametrize("max_tokens", [1, 24, 1000])
def test_the_term_is_the_mean_log_ratio_of_the_global_batch(
    model_folder: ModelFolder, run: Run, others: TokenRows, max_tokens: int
) -> None:
    policy = naive_logps(others, model_folder("llama3")[1])
    reference = policy - torch.arange(6.0)
    kl = kl_of(run, others, reference, max_tokens=max_tokens)
    kl.measure("train", ITEMS)
    # Log ratios 4, 0, 3, 5 and 1.
    assert kl.nats == pytest.approx(13 / 5, abs=1e-4)
    kl.measure("held_out", ITEMS[:2])
    assert kl.nats == pytest.approx(2, abs=1e-4)


def test_a_policy_that_moved_to_other_responses_has_none(
    model_folder: ModelFolder, run: Run, others: TokenRows
) -> None:
    policy = naive_logps(others, model_folder("llama3")[1])
    kl = kl_of(run, others, policy + 1, max_tokens=1000)
    kl.measure("train", ITEMS)
    assert kl.nats == 0


def test_microbatches_change_neither_loss_nor_gradient(
    model_folder: ModelFolder, rows: TokenRows, others: TokenRows
) -> None:
    folder, model = model_folder("llama3")
    reference = naive_logps(rows, model) - torch.tensor([0.5, -1, 2, 0, 1, -2])
    results = []
    for max_tokens in (1, 24, 1000):
        run = build_run(CONFIG, folder, head="lm", num_steps=1)
        kl = kl_of(run, others, naive_logps(others, model) - 0.7, max_tokens=max_tokens)
        kl.measure("train", ITEMS)
        make_batch = partial(pack_responses, reference_logps=reference)
        feed = Feed(rows, make_batch, max_tokens=max_tokens, rank=0, num_ranks=1)
        loss = partial(response_loss, kl=kl, config=CONFIG)
        results.append(run.train_step(feed.batches(ITEMS), loss))
    assert results[0]["kl"] == pytest.approx(0.7, abs=1e-4)
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-4)
