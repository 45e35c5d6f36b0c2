"""Parts judged elsewhere: in the order of the sources, with no more on their way than allowed."""

from collections.abc import Iterator

import pytest
from part_threads import Threads

from alignflow.data_validation import parts
from alignflow.data_validation.blocks import Block, JsonBlock
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.judging import BlockJudge, JudgedBlock
from alignflow.data_validation.parts import SubmittedParts
from alignflow.errors import DataError

JUDGE = BlockJudge("preference", RowLimits(), BenchmarkTexts(()))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BLOCKS", 2)


def source(number: int, num_blocks: int, *, broken: bool = False) -> Iterator[Block]:
    for block in range(num_blocks):
        yield JsonBlock(
            block * 10 + 1, [b'{"prompt": "%d-%d-%d"}' % (number, block, i) for i in range(10)], 64
        )
    if broken:
        raise DataError(f"source {number} is broken")


def firsts(judged: Iterator[tuple[Block, JudgedBlock]]) -> list[bytes | None]:
    return [block.row(0).original for block, _ in judged]


def expected(number: int, num_blocks: int) -> list[bytes]:
    return [b'{"prompt": "%d-%d-0"}' % (number, block) for block in range(num_blocks)]


def test_blocks_come_back_in_order_and_few_are_ahead() -> None:
    threads = Threads(parts_ahead=3)
    with SubmittedParts(JUDGE, threads) as judging:
        assert firsts(judging.judged(source(0, 15))) == expected(0, 15)
    # 15 blocks, two to a part.
    assert threads.num_parts == 8
    assert threads.most_ahead == 3


def test_what_is_known_of_a_block_is_what_its_judge_says() -> None:
    with SubmittedParts(JUDGE, Threads(parts_ahead=2)) as judging:
        for block, judged in judging.judged(source(0, 3)):
            assert judged.refused == JUDGE.judge(block).refused
            assert judged.refused


def test_later_sources_are_begun_while_there_is_room_and_wait_their_turn() -> None:
    threads = Threads(parts_ahead=4)
    with SubmittedParts(JUDGE, threads) as judging:
        first = judging.judged(source(0, 6))
        assert threads.num_parts == 3
        assert judging.has_room
        second = judging.judged(source(1, 6))
        assert threads.num_parts == 4
        assert not judging.has_room
        assert firsts(first) == expected(0, 6)
        assert firsts(second) == expected(1, 6)
    assert threads.most_ahead == 4


def test_a_source_goes_on_though_later_ones_have_the_room() -> None:
    with SubmittedParts(JUDGE, Threads(parts_ahead=1)) as judging:
        first, second = judging.judged(source(0, 4)), judging.judged(source(1, 4))
        assert firsts(second) == expected(1, 4)
        assert firsts(first) == expected(0, 4)


def test_an_error_comes_after_what_was_read_before_it() -> None:
    with SubmittedParts(JUDGE, Threads(parts_ahead=8)) as judging:
        broken = judging.judged(source(0, 5, broken=True))
        assert firsts(judging.judged(source(1, 2))) == expected(1, 2)
        seen = [next(broken)[0].first_line for _ in range(5)]
        assert seen == [1, 11, 21, 31, 41]
        with pytest.raises(DataError, match="source 0 is broken"):
            next(broken)


def test_where_nothing_may_be_read_ahead_nothing_is_sent() -> None:
    threads = Threads(parts_ahead=8)
    blocks = source(0, 4)
    with SubmittedParts(JUDGE, threads) as judging:
        judged = judging.judged(blocks, reads_ahead=False)
        next(judged)
        # The next block was not taken yet.
        assert next(blocks).first_line == 11
    assert threads.num_parts == 0
