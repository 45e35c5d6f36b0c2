"""An executor of parts in threads of this process."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from alignflow.data_validation.blocks import Block
from alignflow.data_validation.judging import BlockJudge, JudgedBlock
from alignflow.data_validation.parts import judge_part


class Threads:
    """Judges parts in threads, and counts how many are on their way."""

    def __init__(self, parts_ahead: int) -> None:
        self.parts_ahead = parts_ahead
        self.most_ahead = self.num_parts = self._num_ahead = 0
        self._threads = ThreadPoolExecutor(2)

    def submit(self, judge: BlockJudge, blocks: Sequence[Block]) -> "Pending":
        self.num_parts += 1
        self._num_ahead += 1
        self.most_ahead = max(self.most_ahead, self._num_ahead)
        return Pending(self, self._threads.submit(judge_part, judge, blocks))

    def received(self) -> None:
        self._num_ahead -= 1


class Pending:
    def __init__(self, threads: Threads, future: Future[list[JudgedBlock]]) -> None:
        self._threads, self._future = threads, future

    def result(self) -> list[JudgedBlock]:
        self._threads.received()
        return self._future.result()
