"""Blocks judged by several processes at once, and handed on in their order.

A worker is a Python process of its own, with a socket to this one. It ends when the socket does,
however this process came to its end.
"""

import os
import queue
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from itertools import cycle
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, NoReturn

from alignflow.closing import Closing
from alignflow.data_validation.blocks import Block
from alignflow.data_validation.judging import BlockJudge, JudgedBlock
from alignflow.errors import WorkerError

_AHEAD = 2
"""Blocks that each worker has at most: one in work, one to go on with."""
_FEW_ROWS = 20_000
"""A worker takes about as long to start as these take to judge."""

_ENVIRONMENT = {
    # One process a core is enough.
    "POLARS_MAX_THREADS": "1",
    # What a block takes stays with the process for the next one.
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
}


class Workers(Closing):
    """Judges blocks in as many processes as there are cores, or here where there are few rows.

    A context manager: no process outlives it.

    Args:
        judge: What judges a block; it is sent to the workers.
        number: How many processes, where there are many rows.
    """

    def __init__(self, judge: BlockJudge, number: int | None = None) -> None:
        self._judge = judge
        self._number = number or len(os.sched_getaffinity(0))
        self._workers: list[_Worker] = []

    def close(self) -> None:
        """End the workers, whatever they are at."""
        while self._workers:
            self._workers.pop().end()

    def judged(
        self, blocks: Iterable[Block], *, reads_ahead: bool = True
    ) -> Generator[tuple[Block, JudgedBlock], None, None]:
        """Yield each block with what is known of its rows, in order.

        Args:
            blocks: The blocks.
            reads_ahead: Whether a block may be taken before the one before it is yielded.

        Raises:
            WorkerError: A worker has ended, such as for want of memory.
        """
        blocks = iter(blocks)
        if self._number == 1 or not reads_ahead:
            yield from self._judged_here(blocks)
            return
        held = [] if self._workers else _first_blocks(blocks)
        if not self._workers and sum(map(len, held)) < _FEW_ROWS:
            yield from self._judged_here(held)
            return
        while len(self._workers) < self._number:
            self._workers.append(_Worker(self._judge))
        pending: deque[tuple[Block, _Worker]] = deque()
        try:
            for block, worker in zip(_popped(held, blocks), cycle(self._workers), strict=False):
                if len(pending) == _AHEAD * self._number:
                    yield _received(*pending.popleft())
                worker.send(block)
                pending.append((block, worker))
            while pending:
                yield _received(*pending.popleft())
        finally:
            if pending:
                # Nobody wants the rest, which would be taken for what comes next.
                self.close()

    def _judged_here(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, JudgedBlock]]:
        for block in blocks:
            yield block, self._judge.judge(block)


def _first_blocks(blocks: Iterator[Block]) -> list[Block]:
    """Take blocks until they have so many rows that workers are worth it, or to the end."""
    first: list[Block] = []
    num_rows = 0
    while num_rows < _FEW_ROWS and (block := next(blocks, None)) is not None:
        first.append(block)
        num_rows += len(block)
    return first


def _popped(first: list[Block], blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield blocks without holding on to the first ones."""
    first.reverse()
    while first:
        yield first.pop()
    yield from blocks


def _received(block: Block, worker: "_Worker") -> tuple[Block, JudgedBlock]:
    return block, worker.receive()


class _Worker:
    """The near end of one process."""

    def __init__(self, judge: BlockJudge) -> None:
        near, far = socket.socketpair()
        self._connection = Connection(near.detach())
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
                # Ctrl-C is for this process, which then ends the workers.
                start_new_session=True,
            )
        self.send(judge)

    def send(self, item: Any) -> None:
        try:
            self._connection.send(item)
        except OSError:
            self._fail()

    def receive(self) -> JudgedBlock:
        try:
            judged: JudgedBlock = self._connection.recv()
        except (EOFError, OSError):
            self._fail()
        return judged

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _fail(self) -> NoReturn:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise WorkerError(
            f"A process that checks rows {how}; if it says nothing above, look for whether there "
            "is enough memory."
        )


def main(descriptor: int) -> None:
    """Judge blocks as they come, until there are no more."""
    connection = Connection(descriptor)
    judge = connection.recv()
    blocks: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
    # Reading apart lets the other side send at any time, so that neither waits for the other.
    Thread(target=_read, args=(connection, blocks), daemon=True).start()
    with suppress(BrokenPipeError):  # nobody listens any more
        while (block := blocks.get()) is not None:
            connection.send(judge.judge(block))


def _read(connection: Connection, blocks: "queue.SimpleQueue[Block | None]") -> None:
    try:
        while True:
            blocks.put(connection.recv())
    except (EOFError, OSError):
        blocks.put(None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
