"""Ratings in the prompt: the one form in which SteerLM is trained and asked.

They stand in the user turn that is answered, as a paragraph of their own after its words:

    What is recursion?

    attributes: quality:4,toxicity:0,humor:0

The list is the label string of NeMo-Aligner. There it stands between the assistant's name and its
answer, which takes a chat template made for it. Of what every template has, the user's turn is the
place: some refuse a system turn, replace it, or write one of their own, and it would hold for all
answers of a conversation, each of which has ratings of its own; in the assistant's turn the label
would be among the words that are learnt. Earlier turns stay without, in training as in use.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alignflow.data_validation.canonical import ATTRIBUTES
from alignflow.data_validation.config import AttributeName
from alignflow.errors import DataError
from alignflow.jobs.run_folder import write_atomically
from alignflow.training.chat import Message
from alignflow.training.rows import TokenRows

STEERING_FILE = "steerlm.json"
MAX_RATING = 4


def label(ratings: Mapping[str, int]) -> str:
    """Return ratings as the line that a prompt ends with, in the order of `ATTRIBUTES`.

    Raises:
        DataError: There are none, a name is unknown, or a rating isn't a whole number of 0 to 4.
    """
    if not ratings:
        raise DataError("there is no rating.", reason="no_ratings")
    for name, rating in ratings.items():
        if name not in ATTRIBUTES:
            raise DataError(f"{name!r} is no attribute.", reason="unknown_attribute")
        if isinstance(rating, bool) or rating not in range(MAX_RATING + 1):
            raise DataError(f"{name} is {rating!r}, not 0 to 4.", reason="out_of_range")
    listed = ",".join(f"{name}:{int(ratings[name])}" for name in ATTRIBUTES if name in ratings)
    return f"attributes: {listed}"


def steered(messages: Sequence[Message], ratings: Mapping[str, int]) -> list[Message]:
    """Return the conversation with the ratings in its last user turn.

    Raises:
        DataError: There is no user turn, or `label` refuses the ratings.
    """
    line = label(ratings)
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise DataError("there is no user turn.", reason="no_user_turn")
    turned = list(messages)
    turned[users[-1]] = {
        "role": "user",
        "content": f"{messages[users[-1]]['content'].rstrip()}\n\n{line}",
    }
    return turned


@dataclass(frozen=True)
class Steering:
    """What a model of SteerLM is asked for; kept in its folder."""

    wanted: Mapping[str, int]
    """A rating of each attribute that it was trained on."""

    @classmethod
    def of_rows(cls, rows: TokenRows, wanted: Mapping[AttributeName, int]) -> Self:
        """Return wanted ratings of the attributes in the rows; of others, the commonest."""
        return cls.of_labels(rows.labels_IL, wanted)

    @classmethod
    def of_labels(cls, labels_IL: NDArray[Any], wanted: Mapping[AttributeName, int]) -> Self:
        """As `of_rows`, from the ratings of each row in the order of `ATTRIBUTES`."""
        ratings: dict[str, int] = {}
        for column, name in enumerate(ATTRIBUTES):
            known = labels_IL[:, column]
            known = known[~np.isnan(known)]
            if len(known):
                commonest = int(np.bincount(known.astype(np.int64)).argmax())
                ratings[name] = wanted.get(name, commonest)
        return cls(ratings)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the file of a model folder; None where there is none: it isn't SteerLM's.

        Raises:
            DataError: The file is broken.
        """
        path = folder / STEERING_FILE
        try:
            wanted: Any = json.loads(path.read_text(encoding="utf-8"))["wanted"]
            label(wanted)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            raise DataError(f"{path}: must hold the ratings wanted ({error}).") from None
        return cls(wanted)

    def save(self, folder: Path) -> None:
        """Write the file into a folder."""
        content = {"wanted": dict(self.wanted), "label": label(self.wanted)}
        write_atomically(folder / STEERING_FILE, json.dumps(content, indent=2) + "\n")

    def check(self, names: Iterable[str]) -> None:
        """Refuse attributes that the model wasn't trained on.

        Raises:
            DataError: Names the first one.
        """
        for name in names:
            if name not in self.wanted:
                raise DataError(
                    f"the model wasn't trained on the attribute {name!r}; it knows "
                    f"{', '.join(self.wanted)}."
                )

    def prompt(
        self, messages: Sequence[Message], changed: Mapping[str, int] = MappingProxyType({})
    ) -> list[Message]:
        """Return the prompt that asks for what is wanted, with some ratings changed.

        Raises:
            DataError: The model wasn't trained on a changed attribute; see `steered`.
        """
        self.check(changed)
        return steered(messages, {**self.wanted, **changed})
