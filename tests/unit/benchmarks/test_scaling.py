"""Strong scaling: which layouts are compared, and what the table says of them."""

from results import Table
from scaling import COLUMNS, Scaled, layouts, scaling_table


def test_two_processes_have_the_cores_of_one_and_twice_those_of_the_other() -> None:
    found = layouts([0, 2, 4, 6, 8], num_heads=4)
    assert [(each.parallel.world_size, each.cores) for each in found] == [
        (1, (0, 2)),
        (1, (0, 2, 4, 6)),
        (2, (0, 2, 4, 6)),
        (2, (0, 2, 4, 6)),
    ]
    assert [each.parallel.tensor_model_parallel_size for each in found] == [1, 1, 1, 2]


def test_an_odd_number_of_heads_is_not_split() -> None:
    assert len(layouts([0, 1], num_heads=9)) == 3


def test_speed_up_is_over_one_process_and_efficiency_by_cores() -> None:
    rates = (100.0, 160.0, 180.0)
    done = [
        Scaled(layout, rate, 1000 / rate, 2**30, [3.0, 2.5])
        for layout, rate in zip(layouts([0, 1], num_heads=9), rates, strict=True)
    ]
    assert scaling_table(done) == Table(
        COLUMNS,
        (
            ("1 process", "1", "100", "10.000", "1.00", "100%", "1.00 GiB", "2.5000"),
            ("1 process", "2", "160", "6.250", "1.00", "80%", "1.00 GiB", "2.5000"),
            # 180 / 160, and 180 / (2 * 100).
            (
                "2 processes, data parallel",
                "2",
                "180",
                "5.556",
                "1.12",
                "90%",
                "1.00 GiB",
                "2.5000",
            ),
        ),
    )
