"""Trains the run folders given on the command line, one after another, in the same processes."""

import os
import sys
from pathlib import Path

from alignflow.jobs.run_folder import RunFolder
from alignflow.training.__main__ import train

if __name__ == "__main__":
    for path in sys.argv[1:]:
        folder = RunFolder(Path(path))
        result = train(folder, folder.read_spec())
        if os.environ["RANK"] == "0":
            folder.write_result(result)
