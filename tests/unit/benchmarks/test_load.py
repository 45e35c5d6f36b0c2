"""What the load benchmark makes of its readings."""

import pytest
from load import percentile


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (75, 3.0), (95, 4.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_was_seen(percent: int, expected: float) -> None:
    # Of four values two are at most 2, three at most 3, and 95 % of four are all of them.
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected
