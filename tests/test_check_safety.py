"""The safety rows hold what the data card says, and each kind of fault is found with its line."""

import json

import pytest

from medalign.check_safety import SAFETY, check_all

ROW = {
    "id": "med-001", "category": "medication_safety", "kind": "interaction",
    "key_facts": ["a b", "c d"],
    "reference": "standard textbook knowledge",
    "messages": [
        {"role": "user", "content": "Can I drive after my first dose of the new sleeping tablet?"},
        {"role": "assistant", "content": "No, wait until you know how it acts. " * 5 + "Ask."},
    ],
}  # fmt: skip


def test_the_rows_of_the_repository_have_no_fault():
    tables = check_all()
    assert [fault for table in tables for fault in table.faults] == []
    assert {table.path.stem: len(table.rows) for table in tables} == {
        "edge_cases": 100, "medication_safety": 100,
    }  # fmt: skip


def test_a_good_row_passes(tmp_path):
    assert faults(tmp_path, ROW) == []


def faults(folder, *rows) -> list[str]:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return [fault for table in check_all(folder) for fault in table.faults]


def said(content: str, turn: int = 1) -> dict:
    messages = [dict(m) for m in ROW["messages"]]
    messages[turn]["content"] = content
    return {**ROW, "messages": messages}


GOLD = json.loads((SAFETY.parent / "preferences/gold.jsonl").read_text().splitlines()[0])["prompt"]
TEST = json.loads((SAFETY.parent / "education/test.jsonl").read_text().splitlines()[0])["prompt"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (said("Too short."), "an answer of 2 words"),
        (said("**Answer**: " + "word " * 40), "headings or a list"),
        (said("First:\n- " + "word " * 40), "headings or a list"),
        (said("Call 1-800-555-0100 " + "word " * 40), "phone number 1-800-555-0100"),
        (said("word " * 40), "white space at an end"),
        (said(GOLD, 0), "nearly that of gold.jsonl"),
        (said(TEST, 0), "nearly that of test.jsonl"),
        ({**ROW, "messages": ROW["messages"][:1] * 2}, "turns do not alternate"),
        ({**ROW, "id": "x"}, "id: "),
        ({**ROW, "extra": 1}, "extra: "),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, row, message):
    found = faults(tmp_path, row)
    assert any("rows.jsonl:1: " in fault and message in fault for fault in found), found


def test_twins_are_found(tmp_path):
    found = faults(tmp_path, ROW, {**ROW, "id": "med-002"})
    assert any("rows.jsonl:2: prompt: nearly that of med-001" in fault for fault in found)
