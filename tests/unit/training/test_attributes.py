import json
import math
from pathlib import Path

import numpy as np
import pytest

from alignflow.data_validation.canonical import ATTRIBUTES
from alignflow.errors import DataError
from alignflow.training.attributes import AttributeScale, pack_rated
from alignflow.training.rows import RowSummary, TokenRows


def rated_rows(*ratings: dict[str, float]) -> TokenRows:
    """Rows of two tokens."""
    values = [[row.get(name, math.nan) for name in ATTRIBUTES] for row in ratings]
    return TokenRows(
        tokens=np.arange(2 * len(ratings), dtype=np.int32),
        is_learnt=np.array([False, True] * len(ratings)),
        starts_R1=np.arange(0, 2 * len(ratings) + 1, 2),
        shared_I=np.zeros(len(ratings), dtype=np.int64),
        labels_IL=np.array(values, dtype=np.float32).reshape(-1, len(ATTRIBUTES)),
        rows_per_item=1,
        summary=RowSummary("digest", 0, {}, ()),
    )


def test_scale_has_the_attributes_that_are_rated_and_their_means() -> None:
    scale = AttributeScale.of_rows(
        rated_rows({"verbosity": 1, "quality": 4}, {"quality": 1}, {"verbosity": 2})
    )
    assert scale == AttributeScale(("quality", "verbosity"), (2.5, 1.5))


def test_labels_are_ratings_less_their_means_whatever_the_split() -> None:
    scale = AttributeScale(("quality", "verbosity"), (2.5, 1.5))
    labels = scale.labels_of(rated_rows({"quality": 3, "humor": 4}, {"verbosity": 0})).tolist()
    assert labels[0][0] == 0.5
    assert labels[1][1] == -1.5
    assert math.isnan(labels[0][1])
    assert math.isnan(labels[1][0])


def test_ratings_follow_their_rows_into_a_batch() -> None:
    rows = rated_rows({"quality": 0}, {"quality": 1}, {"quality": 4})
    labels = AttributeScale(("quality",), (1.0,)).labels_of(rows)
    batch = pack_rated(rows, np.array([2, 0]), labels)
    assert batch.labels_RK.tolist() == [[3.0], [-1.0]]
    assert batch.tokens_T.tolist() == [4, 5, 0, 1]


def test_nothing_is_known_of_the_row_of_an_empty_batch() -> None:
    rows = rated_rows({"quality": 0})
    batch = pack_rated(
        rows, np.array([], dtype=np.int64), AttributeScale.of_rows(rows).labels_of(rows)
    )
    assert batch.num_rows == 1
    assert batch.labels_RK.isnan().all()


def test_rows_without_a_rating_have_no_scale() -> None:
    with pytest.raises(DataError, match="no training row has a rating"):
        AttributeScale.of_rows(rated_rows({}, {}))


def test_scale_comes_back_from_its_file(tmp_path: Path) -> None:
    scale = AttributeScale(("quality", "violence"), (2.5, 1 / 3))
    scale.save(tmp_path)
    assert AttributeScale.load(tmp_path) == scale


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ({"names": ["quality"]}, "lists names and means"),
        ({"names": ["quality"], "means": []}, "as many means as names"),
        ({"names": ["charm"], "means": [1]}, "of known attributes"),
    ],
)
def test_scale_that_is_missing_or_broken_is_refused(
    tmp_path: Path, content: dict[str, object] | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "attributes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=problem):
        AttributeScale.load(tmp_path)
