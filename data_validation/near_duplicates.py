"""Near duplicates: rows of which most word triples stand in an earlier row too.

Each text becomes a MinHash signature (Broder, "On the resemblance and containment of documents",
1997): of two texts it agrees in about as many places as their sets of triples have in common, as a
share of all that they have (Jaccard). Rows that agree in a whole band of places are candidates
(locality-sensitive hashing; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4), and
their whole signatures decide. Signatures lie on disk; memory takes some 50 bytes a row.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rensa import RMinHash

NUM_PLACES = 128
"""Places of a signature; a share of 0.8 is then known to 0.035 (one standard deviation)."""

_SEED = 1
_BAND_MARGIN = 0.15
_VERIFIED_AT_ONCE = 65536
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)

Rows = NDArray[np.int64]
Signatures = NDArray[np.uint32]


def find_near_duplicates(batches: Iterable[pl.Series], threshold: float, work: Path) -> Rows:
    """Return for each text an earlier one that it nearly repeats, or -1.

    A text is compared with the first of those that it agrees with in a band, not with all.

    Args:
        batches: Texts, in order. Case and punctuation don't count; a run of letters and digits is a
            word, which in scripts without spaces may be a sentence.
        threshold: Smallest share of word triples in common, from 0.5 to 1.
        work: Folder for signatures, 0.7 kB a text.
    """
    band_places = places_of_band(threshold)
    num_bands = NUM_PLACES // band_places
    num_rows = 0
    with ExitStack() as stack:
        signatures = stack.enter_context((work / "signatures").open("wb"))
        bands = [
            stack.enter_context(_band_file(work, band).open("wb")) for band in range(num_bands)
        ]
        for texts in batches:
            signatures_RP = signatures_of(texts)
            signatures_RP.tofile(signatures)
            for file, keys_R in zip(bands, _band_keys(signatures_RP, band_places), strict=True):
                keys_R.tofile(file)
            num_rows += len(texts)
    earlier_R = np.full(num_rows, -1, dtype=np.int64)
    for band in range(num_bands):
        first_C, later_C = _candidates(np.fromfile(_band_file(work, band), dtype=np.uint64))
        is_open_C = earlier_R[later_C] < 0
        first_C, later_C = first_C[is_open_C], later_C[is_open_C]
        for start in range(0, len(later_C), _VERIFIED_AT_ONCE):
            part = slice(start, start + _VERIFIED_AT_ONCE)
            is_near_C = _agreement(work, first_C[part], later_C[part], num_rows) >= threshold
            earlier_R[later_C[part][is_near_C]] = first_C[part][is_near_C]
    return earlier_R


def places_of_band(threshold: float) -> int:
    """Return how many places make a band, so that texts at the threshold share one nearly surely.

    b bands of r places find half of the pairs that have a share of (1 / b)^(1 / r) in common; that
    lies below the threshold by a margin.
    """
    fitting = [
        places
        for places in range(1, NUM_PLACES + 1)
        if (places / NUM_PLACES) ** (1 / places) <= threshold - _BAND_MARGIN
    ]
    return max(fitting)


def signatures_of(texts: pl.Series) -> Signatures:
    """Return the MinHash signatures of texts, [R, NUM_PLACES]."""
    words = texts.str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")
    num_words_R = words.list.len().to_numpy().astype(np.int64)
    hashes_N = words.explode().drop_nulls().hash(_SEED).to_numpy()
    ends_R = np.cumsum(num_words_R)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        _triples(hashes_N, np.repeat(ends_R, num_words_R)),
        np.concatenate([[0], ends_R]).astype(np.uint64),
        NUM_PLACES,
        _SEED,
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), NUM_PLACES)


def _triples(hashes_N: NDArray[np.uint64], ends_N: Rows) -> NDArray[np.uint64]:
    """Return a hash of each word with the two after it, where the text has them."""
    places_N = np.arange(len(hashes_N))
    mixed_N: NDArray[np.uint64] = hashes_N * _MULTIPLIERS[0]
    for distance in (1, 2):
        following_N = np.zeros_like(hashes_N)
        following_N[:-distance] = hashes_N[distance:]
        following_N[places_N + distance >= ends_N] = 0
        mixed_N ^= following_N * _MULTIPLIERS[distance]
    return mixed_N


def _band_keys(signatures_RP: Signatures, band_places: int) -> NDArray[np.uint64]:
    """Return a hash of each band of each signature, [bands, R]."""
    num_bands = NUM_PLACES // band_places
    banded_RBP = signatures_RP[:, : num_bands * band_places].reshape(-1, num_bands, band_places)
    keys_RB: NDArray[np.uint64] = np.zeros(banded_RBP.shape[:2], dtype=np.uint64)
    for place in range(band_places):
        keys_RB = (keys_RB ^ banded_RBP[:, :, place]) * _MULTIPLIERS[0]
        keys_RB ^= keys_RB >> np.uint64(29)
    keys_BR: NDArray[np.uint64] = np.ascontiguousarray(keys_RB.T)
    return keys_BR


def _candidates(keys_R: NDArray[np.uint64]) -> tuple[Rows, Rows]:
    """Return the rows whose key an earlier row has, each after the first row that has it."""
    if not len(keys_R):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order_R = np.argsort(keys_R, kind="stable")
    sorted_R = keys_R[order_R]
    is_first_R = np.concatenate([[True], sorted_R[1:] != sorted_R[:-1]])
    first_R = np.maximum.accumulate(np.where(is_first_R, np.arange(len(keys_R)), 0))
    return order_R[first_R[~is_first_R]], order_R[~is_first_R]


def _agreement(work: Path, one_C: Rows, other_C: Rows, num_rows: int) -> NDArray[np.float64]:
    # Opened anew each time, so that what was looked at takes no memory afterwards.
    shape = (num_rows, NUM_PLACES)
    signatures_RP = np.memmap(work / "signatures", dtype=np.uint32, mode="r", shape=shape)
    agreement_C: NDArray[np.float64] = (signatures_RP[one_C] == signatures_RP[other_C]).mean(axis=1)
    return agreement_C


def _band_file(work: Path, band: int) -> Path:
    return work / f"band-{band}"
