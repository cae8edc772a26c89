"""Exact and near duplicates: hashes and MinHash signatures of rows, matched over all pieces.

Rensa (beowolx/rensa) makes the signatures over pairs of neighboring words; their bands are matched
by sorting, one band in memory at a time, so that memory grows by about 50 bytes a row. Everything
lies on disk as NumPy arrays and is mapped, not read.

Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", ch. 3, for the bands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

SEED = 42
Pairs = NDArray[np.int64]  # [n, 2], earlier row first
ARRAYS = {"exact": np.uint64, "bands": np.uint64, "signature": np.uint8}
WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-cased words and numbers: what is compared."""
    return WORD.findall(text.casefold())


def word_hashes(rows: Sequence[list[str]]) -> list[NDArray[np.uint64]]:
    """A 64-bit hash of every word, row by row."""
    from rensa import RMinHash

    return [np.array(row, dtype=np.uint64) for row in RMinHash.hash_token_sets(list(rows))]


def ngrams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hashes of all sequences of `n` neighboring words; of all words there are, if fewer."""
    n = min(n, len(hashes))
    if n == 0:
        return hashes
    found = hashes[: len(hashes) - n + 1].copy()
    with np.errstate(over="ignore"):
        for i in range(1, n):
            found = found * np.uint64(0x9E3779B97F4A7C15) ^ hashes[i : len(hashes) - n + 1 + i]
            found ^= found >> np.uint64(29)
    return found


def features(texts: list[str], permutations: int, bands: int) -> dict[str, NDArray[Any]]:
    """What is compared of each text.

    Returns exact [n, 2], 128 bits of the words; bands [bands, n]; signature [n, permutations], the
    low byte of each minimum, from which the Jaccard similarity is estimated.
    """
    from rensa import RMinHash

    split = [words(text) for text in texts]
    exact = np.array(
        [divmod(xxhash.xxh3_128_intdigest(" ".join(row).encode()), 2**64) for row in split],
        dtype=np.uint64,
    ).reshape(len(texts), 2)
    sets = [ngrams(hashes, 2) for hashes in word_hashes(split)]
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    flat = np.concatenate([*sets, np.empty(0, np.uint64)])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, permutations, SEED)
    minima = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), permutations)
    wide = permutations // bands
    cut = np.ascontiguousarray(minima[:, : bands * wide]).reshape(len(texts), bands, wide)
    with np.errstate(over="ignore"):
        mixed = np.zeros((len(texts), bands), dtype=np.uint64)
        for i in range(wide):
            mixed = (mixed ^ cut[:, :, i]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
    keys = np.ascontiguousarray(mixed.T)
    return {"exact": exact, "bands": keys, "signature": (minima & 0xFF).astype(np.uint8)}


def save(found: list[dict[str, NDArray[Any]]], folder: Path, name: str) -> None:
    """Write the features of one piece, given batch by batch, as arrays to map."""
    for key, dtype in ARRAYS.items():
        parts = [batch[key] for batch in found]
        axis = 1 if key == "bands" else 0
        empty = np.empty((0, 0), dtype)
        np.save(folder / f"{name}.{key}.npy", np.concatenate(parts, axis) if parts else empty)


class Features:
    """The features of all pieces as one, mapped from disk."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        maps = {
            key: [np.load(folder / f"{name}.{key}.npy", mmap_mode="r") for name in names]
            for key in ARRAYS
        }
        self.maps = {key: [m for m in found if m.size] for key, found in maps.items()}
        self.starts = np.cumsum([0, *(len(m) for m in self.maps["exact"])])
        self.rows = int(self.starts[-1])

    def exact(self) -> NDArray[np.uint64]:
        """[rows, 2]"""
        return np.concatenate([*self.maps["exact"], np.empty((0, 2), np.uint64)])

    def band(self, number: int) -> NDArray[np.uint64]:
        """[rows]"""
        return np.concatenate([*(m[number] for m in self.maps["bands"]), np.empty(0, np.uint64)])

    @property
    def bands(self) -> int:
        return len(self.maps["bands"][0]) if self.maps["bands"] else 0

    def signatures(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[len(numbers), permutations]"""
        piece = np.searchsorted(self.starts, numbers, side="right") - 1
        found = np.empty((len(numbers), self.maps["signature"][0].shape[1]), np.uint8)
        for p in np.unique(piece):
            here = piece == p
            found[here] = self.maps["signature"][p][numbers[here] - self.starts[p]]
        return found

    def similarity(self, pairs: Pairs, chunk: int = 2**16) -> NDArray[np.float32]:
        """Estimated Jaccard similarity of pairs of rows; chance agreement of bytes taken out."""
        found = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), chunk):
            part = pairs[start : start + chunk]
            alike = self.signatures(part[:, 0]) == self.signatures(part[:, 1])
            found[start : start + chunk] = alike.mean(1, dtype=np.float32)
        return np.clip((found - 1 / 256) / (1 - 1 / 256), 0, 1)


def same_key(keys: NDArray[np.uint64], order: NDArray[np.int64], neighbors: int = 2) -> Pairs:
    """Pairs of rows of equal key: each with the first of its kind and with its next neighbors.

    keys [n]; order [n]: the rank of each row, the lower one is the earlier of a pair.
    """
    by_key = np.lexsort((order, keys))
    sorted_keys = keys[by_key]
    begins = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])
    size = np.diff(np.r_[begins, len(keys)])
    first = np.repeat(begins, size)
    place = np.arange(len(keys))
    pairs = [np.stack([by_key[first[place > first]], by_key[place[place > first]]], 1)]
    for step in range(1, neighbors + 1):
        later = place[place - step > first]
        pairs.append(np.stack([by_key[later - step], by_key[later]], 1))
    return np.concatenate(pairs)


def exact_pairs(found: Features, order: NDArray[np.int64]) -> Pairs:
    """Rows of the same words, each with the first that has them."""
    if not found.rows:
        return np.empty((0, 2), np.int64)
    _, kind = np.unique(found.exact(), axis=0, return_inverse=True)
    return same_key(kind.reshape(-1).astype(np.uint64), order, neighbors=0)


def near_pairs(
    found: Features, order: NDArray[np.int64], alive: NDArray[np.bool_], similarity: float
) -> Iterator[tuple[Pairs, NDArray[np.float32]]]:
    """Pairs that share a band and are similar, band by band, with their similarity.

    alive [rows]: rows that are still in; the others are not compared.
    """
    rows = np.flatnonzero(alive)
    for number in range(found.bands):
        pairs = rows[same_key(found.band(number)[rows], order[rows])] if len(rows) else rows
        if len(pairs):
            alike = found.similarity(pairs)
            close = alike >= similarity
            yield pairs[close], alike[close]


def keep_first(
    pairs: Pairs, similarity: NDArray[np.float32], order: NDArray[np.int64]
) -> dict[int, tuple[int, float]]:
    """Rows to drop → (the kept row each is like, how much). Later rows go; no kept row is alike.

    A row is dropped only for one that stays: of a chain a-b-c, where a and c differ, b goes.
    """
    best: dict[tuple[int, int], float] = {}
    for (a, b), value in zip(pairs.tolist(), similarity.tolist(), strict=True):
        key = (a, b) if order[a] < order[b] else (b, a)
        best[key] = max(value, best.get(key, 0.0))
    dropped: dict[int, tuple[int, float]] = {}
    for (a, b), value in sorted(
        best.items(), key=lambda x: (order[x[0][1]], -x[1], order[x[0][0]])
    ):
        if b not in dropped and a not in dropped:
            dropped[b] = (a, value)
    return dropped
