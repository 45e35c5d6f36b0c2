"""Responses that are judged one by one, and those put to prompts that aren't theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from alignflow.errors import DataError
from alignflow.training.chat import TokenizedChat
from alignflow.training.responses import mismatched_rows, pack_responses
from alignflow.training.rows import RowWriter, TokenRows

Response = tuple[Sequence[int], Sequence[int]]
"""Tokens of the prompt and of the response; the response's last one is not learnt."""


def response_rows(folder: Path, *responses: Response) -> TokenRows:
    with RowWriter(folder, "digest") as writer:
        for number, (prompt, response) in enumerate(responses):
            tokens_T = np.array([*prompt, *response], np.int32)
            is_learnt_T = np.arange(len(tokens_T)) >= len(prompt)
            is_learnt_T[-1] = False
            chat = TokenizedChat(tokens_T, is_learnt_T)
            writer.append([chat], (float(number % 2 == 0),), num_truncated=0)
    rows = TokenRows.open(folder, digest="digest", rows_per_item=1)
    assert rows is not None
    return rows


def mismatched(
    rows: TokenRows, tmp_path: Path, *, max_length: int = 99, is_writer: bool = True
) -> TokenRows:
    return mismatched_rows(rows, tmp_path / "other", max_length=max_length, is_writer=is_writer)


def tokens(rows: TokenRows) -> list[list[int]]:
    return [rows.row(index).tokens_T.tolist() for index in range(len(rows))]


def test_each_prompt_gets_the_response_half_a_set_away(tmp_path: Path) -> None:
    rows = response_rows(
        tmp_path / "own",
        *(([1], [10, 0]), ([2, 2], [20, 21, 0]), ([3], [30, 0]), ([4], [40, 0])),
    )
    others = mismatched(rows, tmp_path)
    assert tokens(others) == [[1, 30, 0], [2, 2, 40, 0], [3, 10, 0], [4, 20, 21, 0]]
    assert [others.row(index).is_learnt_T.tolist() for index in (0, 3)] == [
        [False, True, False],
        [False, True, True, False],
    ]


def test_a_response_to_the_same_prompt_is_passed_over(tmp_path: Path) -> None:
    # Half a set from the first response stands another one to its prompt.
    rows = response_rows(
        tmp_path / "own", *(([1], [10, 0]), ([2], [20, 0]), ([1], [11, 0]), ([4], [40, 0]))
    )
    assert tokens(mismatched(rows, tmp_path)) == [[1, 40, 0], [2, 40, 0], [1, 20, 0], [4, 20, 0]]


def test_responses_of_pairs_are_put_to_other_prompts_once_each(tmp_path: Path) -> None:
    pairs = [([prompt], [10 * prompt + answer, 0]) for prompt in range(1, 6) for answer in (1, 2)]
    others = mismatched(response_rows(tmp_path / "own", *pairs), tmp_path)
    assert all(row[1] // 10 != row[0] for row in tokens(others))
    assert sorted(row[1] for row in tokens(others)) == sorted(pair[1][0] for pair in pairs)


def test_what_is_too_long_with_another_prompt_is_cut_and_has_something_to_score(
    tmp_path: Path,
) -> None:
    rows = response_rows(tmp_path / "own", ([1, 1, 1], [10, 0]), ([2], [20, 21, 22, 0]))
    others = mismatched(rows, tmp_path, max_length=5)
    assert tokens(others) == [[1, 1, 1, 20, 21], [2, 10, 0]]
    assert others.row(0).is_learnt_T.sum() == 2
    assert others.summary.num_truncated == 1


def test_other_ranks_map_what_the_writer_wrote(tmp_path: Path) -> None:
    rows = response_rows(tmp_path / "own", ([1], [10, 0]), ([2], [20, 0]))
    written = mismatched(rows, tmp_path)
    assert tokens(mismatched(rows, tmp_path, is_writer=False)) == tokens(written)


def test_a_set_of_one_prompt_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    rows = response_rows(tmp_path / "own", ([1], [10, 0]), ([1], [20, 0]))
    with pytest.raises(DataError, match="all 2 rows of a split have the same prompt"):
        mismatched(rows, tmp_path)
    assert len(mismatched(response_rows(tmp_path / "empty"), tmp_path)) == 0


def test_a_batch_carries_labels_and_reference_by_item(tmp_path: Path) -> None:
    rows = response_rows(tmp_path / "own", ([1], [10, 0]), ([2], [20, 21, 0]), ([3], [30, 0]))
    batch = pack_responses(rows, np.array([1, 0]), -torch.arange(3.0))
    assert batch.tokens_T.tolist() == [2, 20, 21, 0, 1, 10, 0]
    assert batch.response_rows_B.tolist() == [0, 1]
    assert batch.reference_B.tolist() == [-1, 0]
    assert batch.is_desirable_B.tolist() == [False, True]


def test_an_empty_share_of_a_batch_holds_no_response(tmp_path: Path) -> None:
    rows = response_rows(tmp_path / "own", ([1], [10, 0]))
    batch = pack_responses(rows, np.array([], dtype=np.int64), torch.zeros(1))
    assert (batch.num_rows, batch.response_rows_B.numel(), batch.is_desirable_B.numel()) == (
        1,
        0,
        0,
    )
