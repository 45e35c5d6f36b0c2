"""What an evaluation job tells while it runs."""

import time

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.worker import raise_if_stop_requested


class Progress:
    """Counts the items of all parts of a job and writes a metrics line after each pass.

    One rank tells; it hears of the items of others when a part is done.
    """

    def __init__(self, folder: RunFolder, num_steps: int, *, tells: bool = True) -> None:
        self._folder, self._tells = folder, tells
        self._num_steps = num_steps
        self._step = 0
        self._part, self._total, self._done = "", 0, 0
        self._last = time.monotonic()

    def begin(self, part: str, total: int) -> None:
        """Start a part of so many items, such as a suite."""
        self._part, self._total, self._done = part, total, 0
        self._last = time.monotonic()

    def advance(self, num_items: int, num_tokens: int) -> None:
        """Count items that are done, and the tokens computed for them since the last call.

        Raises:
            JobStoppedError: The job was told to stop.
        """
        raise_if_stop_requested()
        if not self._tells or not (num_items or num_tokens):
            return
        now = time.monotonic()
        self._done += num_items
        self._step += num_items
        self._folder.append_metrics(
            {
                "phase": "evaluate",
                "suite": self._part,
                "done": self._done,
                "total": self._total,
                "step": self._step,
                "num_steps": self._num_steps,
                "tokens_per_s": num_tokens / max(now - self._last, 1e-9),
                "time": time.time(),
            }
        )
        self._last = now
