"""Efficiencies of known lengths, and the real recipes against the real tokenizer's data."""

from __future__ import annotations

import pytest

from medalign.artifacts import StepError
from medalign.measure_packing import measure, orders, packed, padded, table

SFT = {"sequence_len": 100, "micro_batch_size": 2, "gradient_accumulation_steps": 1}


def test_a_batch_pays_for_its_longest_row():
    lengths = [(10,), (30,), (20,), (20,)]
    assert padded(lengths, [0, 1, 2, 3], 2) == (80, 100)
    assert padded(lengths, [0, 1, 2], 2) == (60, 80)  # the last batch is short


def test_a_pair_pays_for_its_longer_answer_twice():
    assert padded([(10, 30), (20, 5)], [0, 1], 2) == (65, 120)


def test_both_orders_are_all_rows():
    lengths = [(n,) for n in range(1, 101)]
    random, grouped = orders(lengths, 2, 2, seed=1)
    assert sorted(random) == sorted(grouped) == list(range(100))
    assert padded(lengths, grouped, 2)[1] < padded(lengths, random, 2)[1]


def test_packing_of_known_lengths():
    perfect = packed([(50,)] * 40, batch=1, sequence=100, seed=1)
    assert perfect == {"used": 1.0, "lost": 0.0, "micro_batches": 20}
    wasteful = packed([(60,)] * 40, batch=1, sequence=100, seed=1)
    assert wasteful["used"] == pytest.approx(0.6) and wasteful["micro_batches"] == 40
    together = packed([(60,)] * 50, batch=5, sequence=100, seed=1)  # 8 rows of 60 in 500
    assert together["used"] == pytest.approx(450 / 500, abs=0.07)


def test_rows_that_are_too_long_are_left_out_and_counted():
    facts = measure(SFT, [(40,)] * 10 + [(101,)])
    assert (facts["rows"], facts["too_long"], facts["tokens"]) == (11, 1, 400)
    assert facts["padded"] == 1.0 and facts["grouping_saves"] == 0 and not facts["packs"]
    with pytest.raises(StepError, match="no row of 1"):
        measure(SFT, [(101,)])


def test_what_packing_and_grouping_save():
    mixed = [(10,), (90,)] * 40
    facts = measure({**SFT, "sample_packing": True}, mixed)
    assert facts["packed"]["used"] > 0.9 > facts["padded"]
    assert facts["packing_saves"] == pytest.approx(1 - facts["padded"] / facts["packed"]["used"])
    grouped = measure(SFT, mixed)
    assert 0 < grouped["grouping_saves"] < 0.5
    text = table({"a": facts, "b": grouped})
    assert "packed" in text and "grouping" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
