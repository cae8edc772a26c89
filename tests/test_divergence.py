"""Divergence of predictions: by hand, stable, refusing what cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medalign.artifacts import StepError
from medalign.divergence import compare, divergences, gguf_logits, log_softmax


def random_logits(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_identical_predictions_do_not_diverge():
    logits = random_logits(7, 11)
    found = compare(logits, logits)
    assert found == {"tokens": 7, "kl_mean": 0.0, "kl_p99": 0.0, "top1": 1.0}


def test_two_tokens_by_hand():
    """p = (3/4, 1/4) and (1/2, 1/2), q = (1/2, 1/2) and (1/4, 3/4), as logits off by a constant."""
    p = np.log([[0.75, 0.25], [0.5, 0.5]]) + 5
    q = np.log([[0.5, 0.5], [0.25, 0.75]]) - 3
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert divergences(p, q) == pytest.approx([first, second])
    found = compare(p, q)
    assert found["kl_mean"] == pytest.approx((first + second) / 2)
    assert found["top1"] == 0.5  # a tie goes to the first token


def test_a_constant_and_large_logits_change_nothing():
    logits = random_logits(3, 5)
    assert compare(logits, logits + 100)["kl_mean"] == pytest.approx(0, abs=1e-6)
    large = log_softmax(np.array([[1e4, 0.0, -1e4]], np.float32))
    assert large[0].tolist() == [0.0, -1e4, -2e4]


def test_rows_of_text_read_one_by_one_count_as_one_text():
    p, q = random_logits(9, 4), random_logits(9, 4, seed=1)
    whole = compare(p, q)
    rows = compare(iter([p[:2], p[2:]]), iter([q[:2], q[2:]]))
    assert rows == pytest.approx(whole)
    assert whole["kl_p99"] <= divergences(p, q).max()


@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (4,)])
def test_other_shapes_are_an_error(shape):
    with pytest.raises(StepError, match=r"shape \(4, 5\) and"):
        compare(random_logits(4, 5), random_logits(*shape))


def test_nothing_to_compare_is_an_error():
    with pytest.raises(StepError, match="no tokens"):
        compare([], [])
    with pytest.raises(ValueError):
        compare([random_logits(1, 2)], [])


def test_a_missing_gguf_is_an_error(tmp_path):
    with pytest.raises(StepError, match=r"no\.gguf does not exist"):
        next(gguf_logits(tmp_path / "no.gguf", [[1]]))


def test_llama_cpp_predicts_with_what_came_before_only(base_gguf):
    """A row's logits do not hang on the row before, and a longer row begins as the shorter."""
    long, short = [1, 198, 1780, 314, 253, 1000], [1, 198, 1780]
    first, second, again = gguf_logits(base_gguf, [long, short, long])
    assert first.shape == (6, 49152) and second.shape == (3, 49152)
    assert compare(first[:3], second)["kl_mean"] < 0.02  # other batch, other rounding
    assert compare(first, again)["kl_mean"] < 1e-6
    assert compare(first[1:], first[:-1])["kl_mean"] > 0.1
