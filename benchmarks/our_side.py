"""`python our_side.py RUN_FOLDER STEPS_PER_RUN`: a training job as it is, held up between runs."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pacing import Pacer

from alignflow.jobs.run_folder import RunFolder
from alignflow.training.__main__ import train


class PacedFolder(RunFolder):
    """The job's own folder; each step that the job logs is a step of the comparison."""

    def __init__(self, path: Path, pacer: Pacer) -> None:
        super().__init__(path)
        self._pacer = pacer

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Log a row, and after a training step see whether the run is over."""
        super().append_metrics(row)
        if row["phase"] == "train":
            self._pacer.step_done(
                {name.split("/")[1]: value for name, value in row.items() if "/" in name}
            )


if __name__ == "__main__":
    folder = PacedFolder(Path(sys.argv[1]), Pacer(int(sys.argv[2])))
    train(folder, folder.read_spec())
