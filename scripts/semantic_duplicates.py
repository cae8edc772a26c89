"""Rows that say the same in other words: cosine of static word vectors.

WordLlama (dleemiller/WordLlama, MIT) ships its weights in its package: 32,000 tokens, 256
dimensions, trained for sentence similarity. A text's vector is the mean of its tokens' vectors;
order is not seen, so the thresholds are high and docs/evidence.md says what is found with them.
"""

from __future__ import annotations

import functools
import importlib.resources
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medalign.near_duplicates import Pairs

Vectors = NDArray[np.float32]  # [n, 256], of length 1; zeros for a text without words
TOKENS = 512  # of a text that are looked at
EXACT_UP_TO = 50_000  # rows of which all pairs are compared
CELLS, PROBES = 4, 16


@functools.cache
def model() -> tuple[Any, NDArray[np.float32]]:
    """WordLlama's tokenizer and table of token vectors [tokens, 256], from its package.

    Read here and not by its own loader, which looks for the tokenizer in the wrong folder and would
    download it.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    package = importlib.resources.files("wordllama")
    tokenizer = Tokenizer.from_file(str(package / "tokenizers/l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    return tokenizer, load_file(str(package / "weights/l2_supercat_256.safetensors"))[
        "embedding.weight"
    ]


def vectors(texts: list[str]) -> Vectors:
    """Unit vectors of texts, in lower case, the same however they are batched."""
    tokenizer, table = model()
    found = np.zeros((len(texts), table.shape[1]), np.float32)
    encoded = tokenizer.encode_batch(
        [" ".join(text.lower().split()) for text in texts], add_special_tokens=False
    )
    for i, tokens in enumerate(encoded):
        if tokens.ids:
            found[i] = table[tokens.ids].mean(0, dtype=np.float64)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, length, out=np.zeros_like(found), where=length > 0)


def alike(
    left: Vectors, right: Vectors, similarity: float, block: int = 4096
) -> Iterator[tuple[Pairs, NDArray[np.float32]]]:
    """Pairs (row of left, row of right) of at least this cosine, block by block.

    Cosines are rounded to 4 digits first: libraries differ in the last bits.
    """
    for start in range(0, len(left), block):
        for other in range(0, len(right), block):
            cosine = left[start : start + block] @ right[other : other + block].T
            i, j = np.nonzero(cosine >= similarity - 1e-3)
            value = np.round(cosine[i, j], 4)
            close = value >= similarity
            if close.any():
                yield np.stack([i[close] + start, j[close] + other], 1), value[close]


def centered(rows: Vectors, center: Vectors) -> Vectors:
    """Unit vectors around a center [256]: what all texts of a field share is no likeness."""
    moved = np.where(rows.any(1, keepdims=True), rows - center, 0)
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)


def candidates(both: Vectors, similarity: float, block: int = 4096) -> Iterator[Pairs]:
    """Pairs (later row, earlier row) that an inverted file finds, close to linear in the rows.

    Vectors are cut into cells around `CELLS` * √n centers (k-means), and a row is compared with
    those in the `PROBES` cells nearest to it (Jégou, Douze, Schmid 2011). What that misses stands
    in docs/evidence.md.
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # each instruction set it tries
    import faiss

    cells = int(CELLS * len(both) ** 0.5)
    width = both.shape[1]
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFFlat(quantizer, width, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 5, 64
    index.cp.min_points_per_centroid = 1
    index.train(both)
    index.add(both)
    index.nprobe = PROBES
    for start in range(0, len(both), block):
        limits, _, near = index.range_search(both[start : start + block], similarity)
        later = np.repeat(np.arange(len(limits) - 1) + start, np.diff(limits).astype(np.int64))
        pairs = np.stack([later, near], 1)
        yield pairs[pairs[:, 1] < pairs[:, 0]]


def pairs_within(
    questions: Vectors,
    answers: Vectors,
    similarity: float,
    block: int = 4096,
    exact_up_to: int = EXACT_UP_TO,
) -> Iterator[tuple[Pairs, NDArray[np.float32]]]:
    """Pairs of rows, earlier first, whose questions and answers are both this much alike.

    Of every pair the lower of the two cosines counts, around the mean of all rows: of documents of
    one field the answers are alike anyway, and of exam questions on one disease the questions.
    Up to `exact_up_to` rows all pairs are compared, above that those of an index.
    """
    ask, tell = (
        centered(v, v.mean(0, dtype=np.float64).astype(np.float32)) for v in (questions, answers)
    )
    if len(ask) <= exact_up_to:
        near: Iterator[Pairs] = (
            pairs + np.array([start, 0])
            for start in range(0, len(ask), block)
            for pairs, _ in alike(
                ask[start : start + block], ask[: start + block], similarity, block
            )
        )
    else:  # the mean of both cosines is at least their lower one
        both = (np.concatenate([ask, tell], 1) / 2**0.5).astype(np.float32)
        near = candidates(both, similarity - 1e-3, block)
    for pairs in near:
        pairs = pairs[pairs[:, 1] < pairs[:, 0]][:, ::-1]
        cosine = np.minimum(
            *(
                np.round(np.einsum("ij,ij->i", v[pairs[:, 0]], v[pairs[:, 1]]), 4)
                for v in (ask, tell)
            )
        )
        yield pairs[cosine >= similarity], cosine[cosine >= similarity]
