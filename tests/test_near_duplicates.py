"""Exact and near duplicates: what is found, what stays, and that pieces and order do not matter."""

import random

import numpy as np
import pytest

from medalign import near_duplicates, semantic_duplicates
from medalign.artifacts import ROOT, read_jsonl
from medalign.near_duplicates import (
    Features,
    exact_pairs,
    features,
    keep_first,
    near_pairs,
    ngrams,
    same_key,
)

PERMUTATIONS, BANDS, SIMILARITY = 255, 51, 0.6
ANSWERS = [row["answer"] for row in read_jsonl(ROOT / "data/education/train.jsonl")]


def signed(folder, *pieces: list[str]) -> Features:
    for number, texts in enumerate(pieces):
        near_duplicates.save(
            [features(texts, PERMUTATIONS, BANDS)] if texts else [], folder, str(number)
        )
    return Features(folder, [str(number) for number in range(len(pieces))])


def matched(found: Features) -> dict[int, tuple[int, float]]:
    order, alive = np.arange(found.rows), np.ones(found.rows, bool)
    close = list(near_pairs(found, order, alive, SIMILARITY))
    pairs, value = (np.concatenate(parts) for parts in zip(*close, strict=True))
    return keep_first(pairs, value, order)


def edited(text: str, share: float, seed: int) -> str:
    rng, parts = random.Random(seed), text.split()
    for i in rng.sample(range(len(parts)), max(1, int(share * len(parts)))):
        parts[i] = f"word{rng.randrange(10**6)}"
    return " ".join(parts)


def test_case_and_spacing_are_no_difference_a_number_is(tmp_path):
    found = signed(tmp_path, ["Take 5 mg.", "take  5 MG", "Take 50 mg."])
    assert exact_pairs(found, np.arange(3)).tolist() == [[0, 1]]


def test_a_tenth_of_the_words_changed_is_found_and_different_answers_are_not(tmp_path):
    copies = [edited(text, 0.1, i) for i, text in enumerate(ANSWERS)]
    dropped = matched(signed(tmp_path, ANSWERS, copies))
    n = len(ANSWERS)
    right = sum(dropped.get(n + i, (None,))[0] == i for i in range(n))
    assert right >= 0.98 * n
    assert not [row for row in dropped if row < n]


def test_pieces_and_batches_do_not_matter(tmp_path):
    texts = [*ANSWERS[:30], *(edited(text, 0.05, i) for i, text in enumerate(ANSWERS[:30]))]
    (tmp_path / "one").mkdir()
    (tmp_path / "four").mkdir()
    whole = matched(signed(tmp_path / "one", texts))
    assert matched(signed(tmp_path / "four", texts[:7], [], texts[7:50], texts[50:])) == whole
    assert len(whole) == 30


def test_the_estimate_is_near_the_true_similarity(tmp_path):
    pairs = [(a, edited(a, share, 1)) for a in ANSWERS[:40] for share in (0.05, 0.2)]
    found = signed(tmp_path, [text for pair in pairs for text in pair])
    numbers = np.arange(found.rows).reshape(-1, 2)

    def true(a: str, b: str) -> float:
        left, right = (
            {tuple(w[i : i + 2]) for i in range(len(w) - 1)}
            for w in map(near_duplicates.words, (a, b))
        )
        return len(left & right) / len(left | right)

    error = found.similarity(numbers) - [true(a, b) for a, b in pairs]
    assert abs(error.mean()) < 0.01 and np.abs(error).max() < 0.13


def test_a_row_is_dropped_only_for_one_that_stays():
    pairs = np.array([[0, 1], [1, 2]])
    assert keep_first(pairs, np.array([0.9, 0.9]), np.arange(3)) == {1: (0, pytest.approx(0.9))}


def test_an_earlier_row_stays_whatever_its_number():
    assert keep_first(np.array([[0, 1]]), np.array([0.9]), np.array([5, 2])) == {
        0: (1, pytest.approx(0.9))
    }


def test_equal_keys_pair_with_the_first():
    keys = np.array([3, 1, 3, 3, 2], np.uint64)
    assert sorted(same_key(keys, np.arange(5), neighbors=0).tolist()) == [[0, 2], [0, 3]]


def test_short_texts_are_one_ngram_and_empty_ones_none():
    one = near_duplicates.word_hashes([["a"], [], ["a", "b", "c", "d"]])
    assert [len(ngrams(h, 3)) for h in one] == [1, 0, 2]


def test_vectors_do_not_depend_on_the_batch():
    together = semantic_duplicates.vectors([*ANSWERS[:5], ""])
    alone = np.concatenate([semantic_duplicates.vectors([text]) for text in [*ANSWERS[:5], ""]])
    assert (together == alone).all()
    assert np.allclose(np.linalg.norm(together[:5], axis=1), 1)
    assert not together[5].any()


@pytest.mark.parametrize("block", [2, 7, 100])
def test_every_pair_is_looked_at_once(block):
    vectors = semantic_duplicates.vectors([*ANSWERS[:20], ANSWERS[3], ANSWERS[11]])
    found = [p for p, _ in semantic_duplicates.pairs_within(vectors, vectors, 0.9999, block)]
    assert sorted(np.concatenate(found).tolist()) == [[3, 20], [11, 21]]


def test_the_index_finds_what_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 256)).astype(np.float32)
    rows[2000:2500] = rows[:500] + 0.4 * rng.normal(size=(500, 256)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def found(exact_up_to: int) -> dict[tuple[int, int], float]:
        near = semantic_duplicates.pairs_within(rows, rows, 0.85, 700, exact_up_to)
        return {(i, j): c for p, v in near for (i, j), c in zip(p.tolist(), v, strict=True)}

    every, indexed = found(len(rows)), found(len(rows) - 1)
    assert len(every) == 500
    assert len(indexed) >= 0.98 * len(every)
    assert indexed.items() <= every.items()
