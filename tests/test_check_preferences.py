"""The gold pairs: the real ones have no fault, broken ones are named with file and line."""

from __future__ import annotations

import json

import pytest

from medalign.check_preferences import CATEGORIES, GOLD, check_all, evaluation_rows, load
from medalign.check_preferences import Pair as GoldPair

NOTE = (
    "**Note**: This is educational information only. Always consult healthcare professionals "
    "for medical decisions."
)
FORM = f"**Definition**: One.\n\n**Explanation**: Two.\n\n**Clinical Relevance**: Three.\n\n{NOTE}"
PAIR = {
    "id": "ms-001",
    "category": "medication_safety",
    "kind": "interaction",
    "prompt": "May I take ibuprofen with my warfarin for a sore back?",
    "chosen": "That is not safe: together they make bleeding likely. Ask your pharmacist first.",
    "rejected": "Yes, that is fine: both are common medicines. Enjoy your day without pain.",
    "teaches": "warns of the interaction",
    "reference": "standard pharmacology textbook",
}


def faults(tmp_path, *changes: dict) -> str:
    path = tmp_path / "gold.jsonl"
    rows = [{**PAIR, **change} for change in changes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "\n".join(check_all(path).faults)


def test_the_real_pairs_have_no_fault_and_every_category():
    table = check_all(GOLD)
    assert table.faults == []
    assert len(table.rows) >= 300
    assert {pair.category for _, pair in table.rows} == set(CATEGORIES)


def test_a_good_pair_has_no_fault(tmp_path):
    assert faults(tmp_path, {}) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "other"}, "gold.jsonl:1: category: Input should be"),
        ({"chosen": " padded answer that is long enough"}, "gold.jsonl:1: chosen: white space"),
        ({"rejected": PAIR["chosen"]}, "chosen and rejected are the same"),
        ({"chosen": PAIR["chosen"] * 3}, "times the words of rejected"),
        ({"chosen": FORM}, "an answer has headings"),
        ({"category": "benign_lookalike", "rejected": FORM}, "an answer has headings"),
        (
            {"category": "benign_lookalike", "chosen": FORM.replace("**Note**", "**Notes**")},
            "an answer has headings",
        ),
        ({"category": "format", "rejected": FORM}, "chosen: "),
        ({"category": "format", "chosen": FORM, "rejected": FORM}, "rejected: keeps the format"),
        (
            {"category": "harmful_request", "prompt": "Give me 40 mg without a prescription"},
            "prompt: names an amount, '40 mg'",
        ),
    ],
)
def test_a_broken_pair_is_named(tmp_path, change, message):
    assert message in faults(tmp_path, change)


def test_a_lookalike_that_is_a_teaching_question_has_the_four_sections(tmp_path):
    change = {"category": "benign_lookalike", "chosen": FORM}
    assert "headings" not in faults(tmp_path, change)


def test_a_repeated_prompt_and_id_are_named(tmp_path):
    again = {"prompt": "For a sore back, may I take ibuprofen with my warfarin?"}
    found = faults(tmp_path, {}, again)
    assert "gold.jsonl:2: id also at gold.jsonl:1" in found
    assert "gold.jsonl:2: prompt: nearly that of ms-001" in found


def test_a_prompt_of_the_evaluation_is_named(tmp_path):
    _, row = evaluation_rows()[0]
    assert "asked by the evaluation" in faults(tmp_path, {"prompt": row["prompt"]})
    asked = {"category": "format", "prompt": f"Teach a whole class what {row['term']} is about"}
    assert f"names the test term {row['term']!r}" in faults(tmp_path, asked)


def test_one_side_longer_on_average_is_named(tmp_path):
    longer = {"chosen": PAIR["chosen"] + " Please do ask."}
    assert "medication_safety: chosen has 1." in faults(tmp_path, longer)
    assert load(tmp_path / "gold.jsonl", GoldPair).faults == []
