"""Benchmarks: each reads its own file format, asks for log-probabilities and scores them."""

from pathlib import Path

from alignflow.errors import DataError
from alignflow.evaluation.config import SuiteConfig, SuiteName
from alignflow.evaluation.suites.base import Suite
from alignflow.evaluation.suites.generation import GenerationSuite
from alignflow.evaluation.suites.refusals import Refusals
from alignflow.evaluation.suites.toxigen import ToxiGen
from alignflow.evaluation.suites.toxigen_prompts import ToxiGenPrompts
from alignflow.evaluation.suites.truthfulqa import TruthfulQA

SUITES: dict[
    SuiteName, type[TruthfulQA] | type[ToxiGen] | type[ToxiGenPrompts] | type[Refusals]
] = {
    "truthfulqa": TruthfulQA,
    "toxigen": ToxiGen,
    "toxigen_prompts": ToxiGenPrompts,
    "refusals": Refusals,
}


def load_suite(config: SuiteConfig, path: Path) -> Suite | GenerationSuite:
    """Read a benchmark from a local file in its own format, cut to the config's limit.

    Args:
        config: Which benchmark, and how many of its items; its `data` is not looked at.
        path: The file, a copy of what `data` names.

    Raises:
        DataError: The message names file, item and field.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the benchmark's file.")
    return SUITES[config.suite].read(path).head(config.limit)
