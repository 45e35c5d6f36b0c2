"""The command line. Commands import what they need when they run, so that `--help` is quick.

Exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 refused by a gate, 130 interrupted.
"""

from alignflow.cli.app import app as main

__all__ = ["main"]
