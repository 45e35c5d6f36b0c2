"""What only a comparison with other rows tells: duplicates, contradictions, repeated prompts."""

from collections.abc import Sequence
from hashlib import sha256
from itertools import repeat
from operator import gt
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from alignflow.data_validation.ascii_texts import SEPARATOR, Indices
from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.hash_table import Hashes, HashTable, Values
from alignflow.data_validation.records import PAIR, Records
from alignflow.data_validation.text import hash_of, joined, trimmed

_CONFLICTS: dict[DataKind, str] = {
    "preference": "conflicting_preference",
    "unpaired": "conflicting_label",
    "steerlm": "conflicting_attributes",
    "sft": "duplicate_row",  # there is no judgement to differ
}
"""Reason code where an earlier row is the same but for its judgement."""


class RowKeys(NamedTuple):
    """[records] Hashes by which rows are compared."""

    row: Hashes
    """Of the conversation, or of the prompt and both answers in either order."""
    judgement: Values
    """Of the attributes, of the label, or of which answer is the better one, in 32 bits."""
    prompt: Hashes
    id: Hashes
    """0 where there is none."""

    @classmethod
    def of(cls, records: Records) -> Self:
        """Return the keys of records."""
        is_plain = records.shape_of == records.shapes.index(PAIR)
        is_plain[records.record_of[records.not_ascii]] = False
        plain, others = np.flatnonzero(is_plain), np.flatnonzero(~is_plain)
        texts, judgement = _texts_of_plain_pairs(records, plain)
        other_texts, other_judgement = _texts_of_any(records, others)
        order = np.argsort(np.concatenate([plain, others]))
        judgements = np.array(judgement + other_judgement, dtype=np.uint64).astype(np.uint32)
        return cls(
            row=_hashes(texts.rows + other_texts.rows)[order],
            judgement=judgements[order],
            prompt=_hashes(texts.prompts + other_texts.prompts)[order],
            id=np.array([0 if each is None else hash_of(each) for each in records.ids], np.uint64),
        )

    def where(self, is_kept: npt.NDArray[np.bool_]) -> Self:
        """Return the keys of some of the records."""
        return type(self)(
            self.row[is_kept], self.judgement[is_kept], self.prompt[is_kept], self.id[is_kept]
        )


class _ComparedTexts(NamedTuple):
    """[records] What of each is hashed."""

    rows: list[bytes]
    prompts: list[bytes]


def _texts_of_any(records: Records, indices: Indices) -> tuple[_ComparedTexts, list[int]]:
    """Return what is compared of some records, and their judgements."""
    compared = _ComparedTexts([], [])
    judgements = []
    places = zip(
        indices.tolist(),
        records.shape_of[indices].tolist(),
        records.starts[indices].tolist(),
        strict=True,
    )
    for index, number, start in places:
        shape = records.shapes[number]
        end = start + len(shape.roles)
        turns = [(text or "").encode() for text in records.trimmed[start:end]]
        answered = range(shape.num_prompt_turns)
        prompts = [records.normalised[start + turn] or turns[turn] for turn in answered]
        compared.prompts.append(joined(shape.prompt_key, *prompts))
        if not shape.is_preference:
            judgements.append(_judgement(records, index))
        else:
            judgements.append(int(turns[-2] > turns[-1]))
            turns[-2:] = sorted(turns[-2:])
        compared.rows.append(joined(shape.key, *turns))
    return compared, judgements


def _texts_of_plain_pairs(records: Records, indices: Indices) -> tuple[_ComparedTexts, list[int]]:
    """Return what `_texts_of_any` does for pairs in ASCII, only faster."""
    starts = records.starts[indices].tolist()
    texts = records.trimmed
    prompts, chosen, rejected = (
        [texts[start + turn] or "" for start in starts] for turn in range(3)
    )
    normal_prompts = records.normalised.of(records.starts[indices])
    rows = zip(
        repeat(PAIR.key.decode()),
        prompts,
        map(min, chosen, rejected),
        map(max, chosen, rejected),
        strict=False,
    )
    return _ComparedTexts(
        [row.encode("latin-1") for row in map(SEPARATOR.join, rows)],
        [
            joined(PAIR.prompt_key, normalised or prompt.encode())
            for normalised, prompt in zip(normal_prompts, prompts, strict=True)
        ],
    ), [*map(int, map(gt, chosen, rejected))]


def _judgement(records: Records, index: int) -> int:
    if index in records.labels:
        return hash_of(str(records.labels[index]))
    attributes = records.attributes.get(index, {})
    return hash_of(*(f"{name}={value}" for name, value in sorted(attributes.items())))


def _hashes(texts: Sequence[bytes]) -> Hashes:
    # OpenSSL's SHA-256 takes less time than any other hash of the standard library.
    digests = b"".join(sha256(text).digest() for text in texts)
    hashes: Hashes = np.frombuffer(digests, dtype="<u8")[:: sha256().digest_size // 8]
    # 0 stands for no hash; one of 2^64 is moved out of its way.
    hashes = np.maximum(hashes, 1)
    return hashes


def row_hash(draft: Draft) -> int:
    """Return a hash of a conversation, or of a prompt and its pair."""
    turns = [turn for part in draft.parts.values() for turn in part]
    return hash_of(*(text for turn in turns for text in (turn.role, trimmed(turn.content or ""))))


class Compared(NamedTuple):
    """What a comparison tells of some rows, by their index."""

    reasons: dict[int, str]
    """Of the rows that repeat or contradict an accepted one."""
    repeated_prompts: set[int]
    """Of the accepted rows those whose prompt an accepted one had before."""


class SeenRows:
    """Keys of the rows accepted so far: some 50 bytes a row in place of its texts."""

    def __init__(self, kind: DataKind) -> None:
        self._conflict = _CONFLICTS[kind]
        self._rows = HashTable(has_values=True)
        self._prompts = HashTable()
        self._ids = HashTable()

    def start_file(self) -> None:
        """Forget the ids: they name rows of one file."""
        self._ids = HashTable()

    def compare(self, keys: RowKeys, is_refused: npt.NDArray[np.bool_]) -> Compared:
        """Compare rows with all accepted before them, and remember those accepted now.

        A refused row is no earlier row to a later one. So whoever has a key in common with another
        row is looked at in its turn; the others, mostly all, are accepted together.

        Args:
            keys: Of rows in order.
            is_refused: [rows] Which of them are refused even where no other row equals them.
        """
        has_id, has_prompt = self._ids.contains(keys.id), self._prompts.contains(keys.prompt)
        has_row = self._rows.contains(keys.row)
        is_alone = ~(has_row | has_id | has_prompt)
        is_alone &= _is_unique(keys.row) & _is_unique(keys.prompt)
        is_alone &= _is_unique(keys.id) | (keys.id == 0)
        is_accepted = is_alone & ~is_refused

        compared = Compared({}, set())
        repeated = keys.row[has_row]
        known = dict(zip(repeated.tolist(), self._rows.values(repeated).tolist(), strict=True))
        prompts = set(keys.prompt[has_prompt].tolist())
        ids = set(keys.id[has_id].tolist())
        for index in np.flatnonzero(~is_alone).tolist():
            row, judgement, prompt, id_ = (int(column[index]) for column in keys)
            if row in known:
                compared.reasons[index] = (
                    "duplicate_row" if known[row] == judgement else self._conflict
                )
            elif id_ in ids:
                compared.reasons[index] = "duplicate_id"
            elif not is_refused[index]:
                is_accepted[index] = True
                known[row] = judgement
                if id_:
                    ids.add(id_)
                if prompt in prompts:
                    compared.repeated_prompts.add(index)
                prompts.add(prompt)
        self._rows.add(keys.row[is_accepted], keys.judgement[is_accepted])
        self._prompts.add(keys.prompt[is_accepted])
        self._ids.add(keys.id[is_accepted])
        return compared


def _is_unique(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """[rows] Return for each whether no other equals it."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    is_unique: npt.NDArray[np.bool_] = counts[inverse] == 1
    return is_unique
