"""The review sheet goes out and comes back, and says which line is wrong."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from medalign.artifacts import StepError, read_jsonl
from medalign.check_education import EDUCATION
from medalign.review_sheet import export_sheet, import_sheet


@pytest.fixture
def place(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(EDUCATION / name, tmp_path / name)
    sheet, reviews = tmp_path / "sheet.csv", tmp_path / "reviews.jsonl"
    assert export_sheet(sheet, tmp_path) == 200
    return tmp_path, sheet, reviews


def fill(sheet, **decisions):
    """Fill in rows by id: {"mt_001": (decision, reviewer, comment)}."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if made := decisions.get(row["id"].replace("-", "_")):
            row["decision"], row["reviewer"], row["comment"] = made
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_the_sheet_holds_every_row_as_it_is(place):
    folder, sheet, _ = place
    rows = fill(sheet)
    train = read_jsonl(folder / "train.jsonl")
    assert len(rows) == 200
    assert [r["answer"] for r in rows[:150]] == [r["answer"] for r in train]
    assert rows[0]["key_facts"].split("\n") == train[0]["key_facts"]


def test_decisions_come_back_and_are_shown_again(place):
    folder, sheet, reviews = place
    fill(sheet, mt_001=("accept", "Dr. A", ""), ab_001=("change", "Dr. A", "say mmHg first"))
    assert import_sheet(sheet, folder) == 2
    assert import_sheet(sheet, folder) == 0  # nothing new
    assert [r["id"] for r in read_jsonl(reviews)] == ["ab-001", "mt-001"]
    assert export_sheet(sheet, folder) == 198


def test_a_row_changed_since_is_open_again_and_an_old_sheet_is_refused(place):
    folder, sheet, _ = place
    fill(sheet, mt_001=("accept", "Dr. A", ""))
    import_sheet(sheet, folder)
    rows = read_jsonl(folder / "train.jsonl")
    rows[0]["answer"] = rows[0]["answer"].replace("Hypertension", "High blood pressure")
    (folder / "train.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    with pytest.raises(StepError, match=r"sheet\.csv:\d+: mt-001 has changed"):
        import_sheet(sheet, folder)
    assert export_sheet(sheet, folder) == 200


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (("yes", "Dr. A", ""), "decision 'yes' is none of accept, change, reject"),
        (("accept", "", ""), "a decision without a reviewer"),
        (("reject", "Dr. A", ""), "reject without a comment"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_taken(place, made, message):
    folder, sheet, reviews = place
    fill(sheet, mt_001=("accept", "Dr. A", ""), mt_002=made)
    with pytest.raises(StepError, match=rf"sheet\.csv:\d+: {message}"):
        import_sheet(sheet, folder)
    assert not reviews.exists()


def test_a_sheet_without_its_columns_is_refused(place):
    folder, sheet, _ = place
    sheet.write_text("id,decision\nmt-001,accept\n")
    with pytest.raises(StepError, match=r"sheet\.csv:1: no column comment, reviewer, row_hash"):
        import_sheet(sheet, folder)


def test_cells_that_a_spreadsheet_would_compute_are_quoted(place):
    folder, sheet, _ = place
    rows = read_jsonl(folder / "train.jsonl")
    rows[0]["prompt"] = "=HYPERLINK(1)"
    (folder / "train.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    export_sheet(sheet, folder)
    assert fill(sheet)[0]["prompt"] == "'=HYPERLINK(1)"


def test_the_gold_pairs_go_out_as_well_and_an_empty_folder_is_told(tmp_path):
    pair = {"id": "ms-001", "prompt": "May I?", "chosen": "No.", "rejected": "Yes."}
    (tmp_path / "gold.jsonl").write_text(json.dumps(pair) + "\n")
    sheet = tmp_path / "sheet.csv"
    assert export_sheet(sheet, tmp_path) == 1
    assert fill(sheet, ms_001=("accept", "Dr. A", ""))[0]["chosen"] == "No."
    assert import_sheet(sheet, tmp_path) == 1
    (tmp_path / "gold.jsonl").unlink()
    with pytest.raises(StepError, match=r"has none of train\.jsonl, test\.jsonl, gold\.jsonl"):
        export_sheet(sheet, tmp_path)
