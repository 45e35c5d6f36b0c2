"""Numbers about an accepted set, for the judgement of the set as a whole."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.drift import length_histogram
from alignflow.data_validation.text import hash_of

_MAX_SAMPLED_ROWS = 50_000
_LETTERS_LOOKED_AT = 200
_NO_SCRIPT = "none"


@dataclass(slots=True)
class SetStatistics:
    """Counts over a set, and the lengths of an evenly spread sample of its rows."""

    counts: Counter[str] = field(default_factory=Counter)
    """Rows by outcome: `accept`, `reject`, `skip`."""
    reasons: Counter[str] = field(default_factory=Counter)
    flagged: "dict[str, array[int]]" = field(default_factory=dict)
    """Numbers of the accepted rows that carry a flag, by flag."""
    sample: list[dict[str, Any]] = field(default_factory=list)
    """One dict a sampled row: a hash of its id, lengths in characters, its response's script."""
    ratings: dict[str, Counter[int]] = field(default_factory=dict)
    """Accepted rows by their rating, by attribute."""
    num_near_duplicates: int | None = None
    """Rows that nearly repeat an earlier one, refused or not; None where nobody looked."""
    _stride: int = 1

    @property
    def num_judged(self) -> int:
        """Rows that were accepted or refused."""
        return self.counts["accept"] + self.counts["reject"]

    @property
    def refused_share(self) -> float:
        """Refused rows among those judged, from 0 to 1."""
        return self.counts["reject"] / max(self.num_judged, 1)

    def flag_share(self, flag: str) -> float:
        """Accepted rows that carry a flag, from 0 to 1."""
        return len(self.flagged.get(flag, ())) / max(self.counts["accept"], 1)

    @property
    def flags(self) -> Counter[str]:
        """Accepted rows by flag."""
        return Counter({flag: len(rows) for flag, rows in self.flagged.items() if rows})

    @property
    def duplicate_share(self) -> float:
        """Rows that are refused as duplicates among those judged, from 0 to 1."""
        return self.reasons["duplicate_row"] / max(self.num_judged, 1)

    @property
    def near_duplicate_share(self) -> float | None:
        """Rows that nearly repeat an earlier one among those compared; None where nobody looked."""
        if self.num_near_duplicates is None:
            return None
        num_compared = self.counts["accept"] + self.reasons["near_duplicate"]
        return self.num_near_duplicates / max(num_compared, 1)

    @property
    def scripts(self) -> Counter[str]:
        """Sampled rows by the script of most letters of their response, those without left out."""
        return Counter(row["script"] for row in self.sample if row["script"] != _NO_SCRIPT)

    @property
    def main_script_share(self) -> float:
        """Rows of the commonest script among those that have one; 1 where none has."""
        scripts = self.scripts
        return max(scripts.values()) / scripts.total() if scripts else 1.0

    @property
    def largest_rating_share(self) -> float | None:
        """Largest share of rated rows that agree in an attribute; None without ratings."""
        shares = [max(levels.values()) / levels.total() for levels in self.ratings.values()]
        return max(shares, default=None)

    @property
    def lengths(self) -> dict[str, list[int]]:
        """Histograms of the sampled lengths of prompts and responses, see `length_histogram`."""
        return {
            name: length_histogram([row[name] for row in self.sample])
            for name in ("prompt_chars", "response_chars")
        }

    def add_accepted(self, draft: Draft, identity: str, flags: Sequence[str]) -> None:
        """Take an accepted row into account."""
        if self.counts["accept"] % self._stride == 0:
            self.sample.append(_lengths(draft, identity))
        for name, value in draft.attributes.items():
            if value is not None:
                self.ratings.setdefault(name, Counter())[int(value)] += 1
        for flag in flags:
            self.flagged.setdefault(flag, array("Q")).append(self.counts["accept"])
        self.counts["accept"] += 1
        if len(self.sample) > _MAX_SAMPLED_ROWS:
            # Every second row stays, and from now on only every second one comes.
            del self.sample[1::2]
            self._stride *= 2

    def add_refused(self, reason: str) -> None:
        """Take a refused row into account."""
        self.counts["reject"] += 1
        self.reasons[reason] += 1

    def add_flag(self, flag: str, rows: Sequence[int]) -> None:
        """Flag accepted rows by their numbers."""
        self.flagged[flag] = array("Q", rows)

    def remove_ratings(self, ratings: Mapping[str, int | None]) -> None:
        """Take the ratings of a row that is dropped out of the counts."""
        for name, value in ratings.items():
            if value is not None:
                self.ratings[name][value] -= 1

    def drop(self, is_dropped_R: NDArray[np.bool_], reason: str) -> None:
        """Take accepted rows for refused; the rows that are left keep their numbers.

        Args:
            is_dropped_R: Which of the accepted rows.
            reason: Why.
        """
        num_dropped = int(is_dropped_R.sum())
        self.counts["accept"] -= num_dropped
        self.counts["reject"] += num_dropped
        self.reasons[reason] += num_dropped
        for flag, rows in self.flagged.items():
            self.flagged[flag] = array("Q", (row for row in rows if not is_dropped_R[row]))
        sampled = zip(self.sample, is_dropped_R[:: self._stride], strict=True)
        self.sample = [row for row, is_dropped in sampled if not is_dropped]


def script_of(text: str) -> str:
    """Return the script of most of the first letters of a text, as Unicode names them: `Latin`.

    `none` is the script of a text without letters.
    """
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else _NO_SCRIPT
    letters = list(islice(filter(str.isalpha, text), _LETTERS_LOOKED_AT))
    if not letters:
        return _NO_SCRIPT
    # The first word of a letter's name is its script: LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH.
    names = Counter(unicodedata.name(letter, "UNKNOWN").partition(" ")[0] for letter in letters)
    return names.most_common(1)[0][0].capitalize()


def _lengths(draft: Draft, identity: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        # Great Expectations shows unexpected values without escaping them: no text of a row here.
        "id": f"{hash_of(identity):016x}",
        "num_turns": len(draft.messages),
        "prompt_chars": sum(len(turn.content or "") for turn in draft.prompt),
        "response_chars": len(draft.messages[-1].content or ""),
        "script": script_of(draft.messages[-1].content or ""),
    }
    if "rejected" in draft.parts:
        row["rejected_chars"] = len(draft.parts["rejected"][-1].content or "")
        row["chosen_is_longer"] = float(row["response_chars"] > row["rejected_chars"])
        row["chosen_is_shorter"] = float(row["response_chars"] < row["rejected_chars"])
    if draft.label is not None:
        row["is_desirable"] = float(draft.label)
    return row
