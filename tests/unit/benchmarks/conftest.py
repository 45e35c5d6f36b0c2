"""The benchmarks are scripts that find one another in their own folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
