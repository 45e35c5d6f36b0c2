"""Leaks between sets: held-out prompts that are trained on, in the same set or in another one."""

from array import array
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from alignflow.config import Config
from alignflow.data_validation.canonical import Split, read_tables
from alignflow.data_validation.text import hash_of, prompt_key


class SplitLeak(Config):
    """Held-out rows of one set whose prompt stands in the training split of another, or its own."""

    held_out_of: str
    train_of: str
    num_held_out: NonNegativeInt
    num_leaked: NonNegativeInt

    @property
    def share(self) -> float:
        """Leaked rows among those held out, from 0 to 1."""
        return self.num_leaked / max(self.num_held_out, 1)


def count_leaks(datasets: Mapping[str, Path]) -> list[SplitLeak]:
    """Compare what each set holds out with what every set trains on.

    Prompts are equal where their first user turns are, whatever their case and punctuation: later
    turns give earlier ones away. Takes 16 bytes a row.

    Args:
        datasets: Dataset artifacts by name.

    Raises:
        DataError: One can't be read.
    """
    train = {name: np.unique(_prompts(folder, "train")) for name, folder in datasets.items()}
    leaks = []
    for name, folder in datasets.items():
        held_out_R = _prompts(folder, "held_out")
        for other, train_R in train.items():
            leaks.append(
                SplitLeak(
                    held_out_of=name,
                    train_of=other,
                    num_held_out=len(held_out_R),
                    num_leaked=int(np.isin(held_out_R, train_R).sum()),
                )
            )
    return leaks


def _prompts(folder: Path, split: Split) -> NDArray[np.uint64]:
    """Return a hash of the first user turn of each row."""
    hashes = array("Q")
    for batch in read_tables(folder, split):
        column = "prompt" if "prompt" in batch.schema.names else "messages"
        for turns in batch.column(column).to_pylist():
            first = next(turn["content"] for turn in turns if turn["role"] == "user")
            hashes.append(hash_of(prompt_key(first)))
    return np.array(hashes, dtype=np.uint64)
