"""A set or map of hashes that is asked by the thousand and takes a few bytes for each."""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint32]

_MAX_LOAD = 2 / 3
_MIN_SLOTS = 1 << 12
_MAX_INSERTED = 1 << 16


class HashTable:
    """64-bit hashes, each with a 32-bit value if wished; open addressing with linear probing.

    The hashes are taken for evenly spread, and none for 0, which marks an empty slot.
    """

    def __init__(self, *, has_values: bool = False) -> None:
        self._has_values = has_values
        self._clear(_MIN_SLOTS)

    def __len__(self) -> int:
        """Return the number of hashes."""
        return self._num

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """[hashes] Return for each whether it is here."""
        is_here: npt.NDArray[np.bool_] = self._keys[self._slots(hashes)] == hashes
        is_here &= hashes != 0
        return is_here

    def values(self, hashes: Hashes) -> Values:
        """[hashes] Return the value of each that is here, and 0 for the others."""
        return self._values[self._slots(hashes)]

    def add(self, hashes: Hashes, values: Values | None = None) -> None:
        """Take in what is not here yet; of equal hashes the first counts."""
        hashes, first = np.unique(hashes, return_index=True)
        is_new = (hashes != 0) & ~self.contains(hashes)
        self._make_room(int(np.count_nonzero(is_new)))
        self._insert(hashes[is_new], None if values is None else values[first[is_new]])

    def _insert(self, hashes: Hashes, values: Values | None) -> None:
        self._num += len(hashes)
        while len(hashes):
            slots = self._slots(hashes)
            self._keys[slots] = hashes
            # Of several that came for one slot the last has it now.
            is_in = self._keys[slots] == hashes
            if values is not None:
                self._values[slots[is_in]] = values[is_in]
                values = values[~is_in]
            hashes = hashes[~is_in]

    def _slots(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Return where each hash is, or the empty slot where it would be."""
        mask = len(self._keys) - 1
        slots = (hashes & np.uint64(mask)).astype(np.int64)
        searching = np.arange(len(hashes))
        while len(searching):
            held = self._keys[slots[searching]]
            searching = searching[(held != 0) & (held != hashes[searching])]
            slots[searching] = (slots[searching] + 1) & mask
        return slots

    def _make_room(self, number: int) -> None:
        num_slots = len(self._keys)
        while self._num + number > _MAX_LOAD * num_slots:
            num_slots *= 2
        if num_slots > len(self._keys):
            is_used = self._keys != 0
            keys = self._keys[is_used]
            values = self._values[is_used] if self._has_values else None
            self._clear(num_slots)
            # A part at a time: what an insertion takes by the way would take more than the table.
            for start in range(0, len(keys), _MAX_INSERTED):
                part = slice(start, start + _MAX_INSERTED)
                self._insert(keys[part], None if values is None else values[part])

    def _clear(self, num_slots: int) -> None:
        self._num = 0
        self._keys = np.zeros(num_slots, dtype=np.uint64)
        self._values = np.zeros(num_slots if self._has_values else 0, dtype=np.uint32)
