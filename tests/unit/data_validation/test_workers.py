"""Several processes decide as one does, and none is left behind."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import psutil
import pytest

from alignflow.data_validation import workers
from alignflow.data_validation.blocks import Block, JsonBlock
from alignflow.data_validation.checking import RowChecker
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.judging import BlockJudge
from alignflow.data_validation.report import FileReport
from alignflow.data_validation.workers import Workers
from alignflow.errors import WorkerError

LIMITS = RowLimits()
TEXTS = ("One.", "Two!", " one.", "Write to jane@example.com.", "<b>bold</b>", "")


def rows(number: int) -> list[bytes]:
    """Return rows of which many repeat, contradict or break something."""
    draw = random.Random(number)
    made: list[dict[str, Any]] = [
        {
            "prompt": f"Question {draw.randrange(number)}?",
            "chosen": draw.choice(TEXTS),
            "rejected": draw.choice(TEXTS),
            "id": str(draw.randrange(20 * number)),
        }
        for _ in range(number)
    ]
    broken = [b"", b"{", b'{"prompt": "\xff"}', b'{"prompt": 1, "prompt": 2}']
    return [draw.choice(broken) if draw.random() < 0.05 else orjson.dumps(row) for row in made]


def blocks(lines: list[bytes], size: int) -> Iterator[Block]:
    for start in range(0, len(lines), size):
        yield JsonBlock(start + 1, lines[start : start + size], max_depth=64)


def decisions(num_processes: int, size: int, kind: DataKind = "preference") -> list[Any]:
    benchmark = BenchmarkTexts(["Question 7?", "And this is a question of more than six words"])
    with RowChecker(kind, LIMITS, benchmark=benchmark, num_processes=num_processes) as checker:
        return [
            (decision.line, decision.outcome, decision.reason, decision.detail, decision.flags)
            for checked in checker.check(blocks(rows(3000), size))
            for decision in checked.decisions()
        ]


def test_processes_decide_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = decisions(1, 3000)
    assert len(alone) == 3000
    assert len({reason for _, _, reason, _, _ in alone}) > 6
    # Blocks of another size show that what is in one block and what was before are one.
    assert decisions(1, 100) == alone
    monkeypatch.setattr(workers, "_FEW_ROWS", 500)
    assert decisions(2, 250) == alone


def test_only_what_is_noted_is_looked_at() -> None:
    lines = rows(500)
    with RowChecker("preference", LIMITS) as checker:
        (checked,) = checker.check(blocks(lines, 500))
    plain = [each for each in checked.decisions() if each.outcome == "accept" and not each.flags]
    assert checked.num_plain == len(plain)
    assert len(list(checked.noted())) == len(lines) - len(plain)
    report = FileReport("rows")
    report.add_block(checked)
    assert sum(report.counts.values()) == len(lines)


def processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_no_process_outlives_an_unfinished_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEW_ROWS", 0)
    before = processes()
    with Workers(BlockJudge("preference", LIMITS, BenchmarkTexts(())), 2) as pool:
        judged = pool.judged(blocks(rows(1000), 50))
        next(judged)
        assert len(processes()) == len(before) + 2
        judged.close()
        assert processes() == before
        # What was not taken of one reading is not taken for the next one.
        (block, _), *_ = pool.judged(blocks(rows(100), 50))
        assert block.row(0).original == rows(100)[0]
    assert processes() == before


def test_a_killed_worker_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEW_ROWS", 0)
    before = processes()
    with Workers(BlockJudge("preference", LIMITS, BenchmarkTexts(())), 2) as pool:
        judged = pool.judged(blocks(rows(10_000), 50))
        next(judged)
        (started, _) = [each for each in processes() if each not in before]
        started.kill()
        with pytest.raises(WorkerError, match="checks rows was killed by signal 9"):
            list(judged)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_check_leaves_no_process(how: signal.Signals) -> None:
    code = (
        "import sys\n"
        "from alignflow.data_validation import workers\n"
        "from alignflow.data_validation.checking import RowChecker\n"
        "from alignflow.data_validation.config import RowLimits\n"
        "from alignflow.data_validation.blocks import JsonBlock\n"
        "workers._FEW_ROWS = 0\n"
        "line = sys.stdin.buffer.readline()\n"
        "blocks = (JsonBlock(1, [line] * 100, 64) for _ in iter(int, 1))\n"
        "with RowChecker('preference', RowLimits(), num_processes=2) as checker:\n"
        "    for checked in checker.check(blocks):\n"
        "        print('checked', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(b'{"prompt": "Q", "chosen": "A", "rejected": "B"}\n')
    process.stdin.close()
    assert process.stdout.readline() == b"checked\n"
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) == 2
    process.send_signal(how)
    process.stdout.close()
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
