"""Which prompts are answered, and how their responses are packed and weighed."""

from pathlib import Path

import numpy as np
import torch

from alignflow.training.chat import TokenizedChat
from alignflow.training.losses import steerlm2_loss
from alignflow.training.packing import pack
from alignflow.training.rows import RowWriter, TokenRows
from alignflow.training.steered_responses import Questions, SteeredResponses
from alignflow.training.weighed import pack_weighed, weighed_loss


def written(folder: Path, items: list[list[tuple[list[int], list[int]]]]) -> TokenRows:
    """Rows of prompts and answers; each item has as many as the first."""
    with RowWriter(folder, "digest") as writer:
        for item in items:
            writer.append(
                [
                    TokenizedChat(
                        np.array([*prompt, *answer], dtype=np.int32),
                        np.repeat([False, True], [len(prompt), len(answer)]),
                    )
                    for prompt, answer in item
                ],
                tuple(-float(len(answer)) for _, answer in item),
                num_truncated=0,
            )
    rows = TokenRows.open(folder, digest="digest", rows_per_item=len(items[0]))
    assert rows is not None
    return rows


def prompts(folder: Path) -> TokenRows:
    """Five prompts, as asked and plain; the first comes again."""
    return written(folder, [[([9, n], []), ([n], [])] for n in (1, 2, 1, 3, 4)])


def test_each_prompt_is_answered_once(tmp_path: Path) -> None:
    questions = Questions.of(prompts(tmp_path), at_most=None)
    asked = [questions.rows.row(row).tokens_T.tolist() for row in questions.asked_P]
    plain = [questions.rows.row(row).tokens_T.tolist() for row in questions.plain_P]
    assert asked == [[9, 1], [9, 2], [9, 3], [9, 4]]
    assert plain == [[1], [2], [3], [4]]


def test_the_seed_chooses_which_prompts_are_answered(tmp_path: Path) -> None:
    rows = prompts(tmp_path)
    first = Questions.of(rows, at_most=2)
    assert first.asked_P.tolist() == [0, 2]
    chosen = [Questions.of(rows, at_most=2, seed=seed).asked_P.tolist() for seed in range(8)]
    assert all(len(set(each)) == 2 and each == sorted(each) for each in chosen)
    assert len({tuple(each) for each in chosen}) > 1
    assert chosen[3] == Questions.of(rows, at_most=2, seed=3).asked_P.tolist()


RESPONSES = [
    [([9, 1], [5, 6, 7]), ([9, 1], [5, 8])],
    [([9, 2], [4]), ([9, 2], [4])],
    [([9, 3, 3], [6, 6]), ([9, 3, 3], [7])],
]


def test_lengths_are_those_of_the_responses(tmp_path: Path) -> None:
    rows = written(tmp_path, RESPONSES)
    responses = SteeredResponses(rows, rows)
    assert responses.lengths.tolist() == [[3, 2], [1, 1], [2, 1]]
    assert responses.drawn_logps.tolist() == [[-3, -2], [-1, -1], [-2, -1]]
    assert responses.answers_of(0) == [[5, 6, 7], [5, 8]]


def test_responses_that_are_all_the_same_are_scored_each(tmp_path: Path) -> None:
    """What two responses begin with is computed once, even where that is all of them."""
    rows = written(tmp_path, RESPONSES)
    items = np.array([1, 0])
    shared, whole = pack(rows, items), pack(rows.unshared(), items)
    assert shared.num_tokens == 3 + 6
    assert whole.num_tokens == 6 + 9
    assert torch.equal(shared.targets_N, whole.targets_N)
    assert torch.equal(shared.score_row_N, whole.score_row_N)
    for batch in (shared, whole):
        before_N = batch.tokens_T[batch.score_index_N]
        assert before_N.tolist() == [2, 2, 1, 5, 6, 1, 5]


def test_weights_follow_their_prompts(tmp_path: Path) -> None:
    rows = written(tmp_path, RESPONSES)
    sampler = torch.tensor([-3.0, -2, -1, -1.5, -2.5, -0.5])
    target_PK = torch.tensor([[-9.0, -8], [-7, -6], [-5, -4]], dtype=torch.float64)
    batch = pack_weighed(rows, np.array([2, 0]), sampler_logps=sampler, target_PK=target_PK)
    assert batch.sampler_PK.tolist() == [[-2.5, -0.5], [-3, -2]]
    assert batch.target_PK.tolist() == [[-5, -4], [-9, -8]]
    assert batch.target_PK.dtype == torch.float32
    # Tokens in the batch's order: 6 6, 7 of the third prompt, 5 6 7, 5 8 of the first.
    logps_N = -torch.arange(1.0, 9.0)
    policy_PK = torch.tensor([[-3.0, -3], [-15, -15]])
    expected = steerlm2_loss(policy_PK, batch.sampler_PK, batch.target_PK)
    loss = weighed_loss(logps_N, batch)
    assert loss.units == 2
    torch.testing.assert_close(loss.total, expected.total)


def test_a_rank_without_prompts_adds_nothing(tmp_path: Path) -> None:
    rows = written(tmp_path, RESPONSES)
    nothing = np.array([], dtype=np.int64)
    batch = pack_weighed(rows, nothing, sampler_logps=torch.zeros(6), target_PK=torch.zeros(3, 2))
    logps_N = torch.empty(0, requires_grad=True)
    loss = weighed_loss(logps_N, batch)
    assert (float(loss.total.detach()), int(loss.units)) == (0.0, 0)
    assert all(float(value) == 0 for value in loss.metrics.values())
    loss.total.backward()  # type: ignore[no-untyped-call]
