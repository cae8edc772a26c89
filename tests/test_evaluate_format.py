"""Scoring: the reference answers get all, a model that ignores the form nothing."""

from __future__ import annotations

import pytest

from medalign.artifacts import read_jsonl
from medalign.evaluate_format import SETS, rate, score, scored
from medalign.gguf_model import Answer
from medalign.sections import DISCLAIMER, SECTIONS
from medalign.suite import kept

ROWS = {name: read_jsonl(path) for name, path in SETS.items()}


def answer(text: str, finish: str = "stop") -> Answer:
    return Answer(text, finish, prompt_tokens=50, tokens=100, seconds=1.0)


def test_the_sets_are_50_test_prompts_and_two_phrasing_halves_of_70():
    assert {name: len(rows) for name, rows in ROWS.items()} == {
        "test": 50, "frozen": 70, "tune": 70,
    }  # fmt: skip


def test_the_reference_answers_score_everything():
    s = score([kept("test", row, answer(row["answer"]), scored) for row in ROWS["test"]])
    assert (s["strict"]["k"], s["strict"]["n"], s["strict"]["rate"]) == (50, 50, 1.0)
    assert all(s["sections"][name]["k"] == 50 for name in SECTIONS)
    assert {c: g["n"] for c, g in s["by_category"].items()} == {
        "medical_terminology": 13, "abbreviations": 16, "disease_mechanisms": 8,
        "anatomy_physiology": 6, "diagnostic_tests": 7,
    }  # fmt: skip
    assert s["tokens_per_second"] == 100.0


@pytest.mark.parametrize("text", ["", "Edema is swelling.", f"**Note**: {DISCLAIMER}", "a" * 9999])
def test_a_model_that_ignores_the_form_scores_nothing(text):
    s = score([kept("frozen", row, answer(text), scored) for row in ROWS["frozen"]])
    assert s["strict"]["k"] == 0
    assert s["by_term_in_training"]["seen"]["n"] == 24
    assert s["by_term_in_training"]["unseen"]["n"] == 46


def test_a_perfect_answer_cut_at_the_limit_does_not_count():
    s = score([kept("test", ROWS["test"][0], answer(ROWS["test"][0]["answer"], "length"), scored)])
    assert s["strict"]["k"] == 0 and s["faults"] == {"not_ended": 1}


def test_the_interval_is_wilsons():
    r = rate(49, 50)  # by hand: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (r["low"], r["high"]) == (0.895, 0.9965)
    assert rate(0, 50)["low"] == 0.0 and rate(0, 0)["rate"] is None
