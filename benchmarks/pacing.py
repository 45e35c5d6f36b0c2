"""How a side of a comparison runs so many steps at a time, between which it waits for its turn.

The two sides of a comparison are processes that take turns on the same cores. Each reports on the
standard output that it was started with; whatever else it prints goes to the standard error. It
imports nothing but the standard library: every virtual environment loads it.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path


class Pacer:
    """Collects the steps of a run, reports the run and waits for the word to begin the next."""

    def __init__(self, steps_per_run: int) -> None:
        """Take the standard output for reports."""
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._steps_per_run = steps_per_run
        self._steps: list[dict[str, float]] = []
        self._began = _now()

    def step_done(self, metrics: Mapping[str, float]) -> None:
        """Note a step; after the last one of a run, return when the next may begin.

        Args:
            metrics: What the side says of the step, `loss` among it.

        Raises:
            SystemExit: There is no next run.
        """
        self._steps.append(dict(metrics))
        if len(self._steps) < self._steps_per_run:
            return
        seconds, cpu_seconds = (now - then for now, then in zip(_now(), self._began, strict=True))
        report = {
            "steps": self._steps,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "peak_bytes": _peak_bytes(),
        }
        print(json.dumps(report), file=self._reports, flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._steps = []
        self._began = _now()


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _peak_bytes() -> int:
    """Return the most memory that this program has held, that of the GPU if it computes on one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        allocated: int = torch.cuda.max_memory_allocated()
        return allocated
    # `ru_maxrss` starts at the parent's.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
