"""The stack that the faults share, and where their outcomes are told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.prepared import Prepared
from chaos.stack import Stack, running_stack

BUILD = Path(__file__).parents[2] / "build" / "chaos"


@pytest.fixture(scope="session")
def prepared() -> Prepared:
    """Model, data, recipe and early stages; kept for the next time in build/chaos."""
    prepared = Prepared(BUILD / "prepared")
    prepared.write()
    return prepared


@pytest.fixture(scope="session")
def stack(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers and a worker, with the recipe deployed."""
    with running_stack(tmp_path_factory.mktemp("stack"), prepared.recipe_file) as stack:
        yield stack
