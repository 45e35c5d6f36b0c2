import pytest
from pydantic import ValidationError

from alignflow.reporting.histograms import histogram
from alignflow.reporting.model import Distribution


def test_outline_is_worked_out_by_hand() -> None:
    # 8 to 92 pixels for -1 to 1; 8 to 78 for the tallest bin, 3 of 4, down to 0: 1 of 4 is 70 / 3
    # above the bottom.
    data = Distribution(
        title="Margin", edges=[-1, 0, 1], counts={"aligned": [1, 3]}, means={"aligned": 0.25}
    )
    chart = histogram(data, width=100, height=100)
    (outline,) = chart.outlines
    assert outline.path == "M8.0 78.0L8.0 54.7L50.0 54.7L50.0 8.0L92.0 8.0L92.0 78.0"
    assert (outline.label, outline.words) == ("aligned", "mean 0.25")
    assert chart.zero == 50.0
    assert chart.x_ticks[0].at == 8.0


def test_models_of_different_sizes_are_as_high_as_their_shares() -> None:
    counts = {"base": [2, 2], "aligned": [50, 50]}
    data = Distribution(title="", edges=[0, 5, 10], counts=counts, means={"base": 5, "aligned": 5})
    chart = histogram(data, width=100, height=100)
    assert len({outline.path for outline in chart.outlines}) == 1
    assert chart.zero is None


@pytest.mark.parametrize("counts", [[1], [0, 0]])
def test_bins_without_items_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValidationError, match=r"counts\.base must be 2 and not all 0"):
        Distribution(title="", edges=[0, 1, 2], counts={"base": counts}, means={"base": 1})
