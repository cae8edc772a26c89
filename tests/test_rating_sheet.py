"""Blind rating sheets: what raters see, what comes back."""

import csv
import html
import json
import re
import shutil
import subprocess

import pytest
from conftest import script

from medalign import rating_sheet
from medalign.artifacts import StepError


def folder(path, word, n=40):
    items = [
        {"id": f"em-{i}", "subject": "grieving", "prompt": f"message {i}", "answer": f"{word} {i}"}
        for i in range(n)
    ]
    path.mkdir()
    (path / "empathy.json").write_text(json.dumps({"kind": "suite result", "items": items}))
    return path


@pytest.fixture
def sheet(tmp_path):
    first, second = folder(tmp_path / "a", "apple"), folder(tmp_path / "b", "pear")
    out = tmp_path / "rating"
    assert rating_sheet.export(first, second, "empathy", out, 30, 0) == 30
    return out


def rated(sheet, name, better, rows=None):
    """A filled sheet: better(line) → choice."""
    with (sheet / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))[:rows]
    path = sheet / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rating_sheet.COLUMNS)
        writer.writeheader()
        writer.writerows({**line, "better": better(line), "rater": name} for line in lines)
    return path


def likes_pears(line):
    return "left" if line["left"].startswith("pear") else "right"


def test_a_sheet_does_not_say_whose_answer_is_where(sheet):
    lines = list(csv.DictReader((sheet / "sheet.csv").open(encoding="utf-8-sig")))
    left = [line["left"].split()[0] for line in lines]
    assert 5 < left.count("apple") < 25  # drawn item by item
    for line in lines:
        assert {line["left"].split()[0], line["right"].split()[0]} == {"apple", "pear"}
    page = (sheet / "sheet.html").read_text()
    assert page.count("<section") == 30
    assert "second" not in page
    assert "http" not in page


def test_preferences_come_back_unblinded(sheet):
    found = rating_sheet.summary([rated(sheet, "anna", likes_pears)], sheet / "key.json")
    assert found["second_preferred"]["k"] == found["second_preferred"]["n"] == 30
    assert found["sign_test_p"] < 1e-6
    assert 5 < found["left_chosen"]["k"] < 25


def test_an_item_counts_once_however_many_rated_it(sheet):
    def against(line):
        return "right" if likes_pears(line) == "left" else "left"

    sheets = [rated(sheet, "anna", likes_pears), rated(sheet, "ben", against)]
    found = rating_sheet.summary(sheets, sheet / "key.json")
    assert found["ties"] == 30
    assert found["second_preferred"]["n"] == 0
    assert found["agreement"]["anna, ben"]["same"]["k"] == 0
    sheets.append(rated(sheet, "cleo", likes_pears, 10))
    found = rating_sheet.summary(sheets, sheet / "key.json")
    assert found["second_preferred"]["k"] == found["second_preferred"]["n"] == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number,better,rater\n1,best,anna\n", "2: better is one of"),
        ("number,better,rater\n99,left,anna\n", "2: number '99'"),
        ("number,better,rater\n1,left,anna\n1,left,anna\n", "3: number '1'"),
        ("number,better,rater\n1,left,\n", "2: a rating without a rater"),
        ("number,better,rater\n1,left,anna\n2,left,ben\n", "one rater a sheet"),
        ("number,rater\n1,anna\n", "no column better"),
        ("number,better,rater\n", "one rater a sheet, here 0"),
    ],
)
def test_a_wrong_sheet_is_told(sheet, text, message):
    path = sheet / "x.csv"
    path.write_text(text)
    with pytest.raises(StepError, match=message):
        rating_sheet.summary([path], sheet / "key.json")


def test_the_script_writes_and_reads(sheet):
    filled = rated(sheet, "anna", likes_pears)
    done = script("rating_sheet.py", "--import-from", filled, "--key", sheet / "key.json")
    assert done.returncode == 0, done.stderr
    assert "second preferred: 30/30" in done.stdout
    assert json.loads((sheet / "ratings.json").read_text())["raters"] == {"anna": 30}
    assert "--first and --second" in script("rating_sheet.py").stderr


def test_the_judge_scores_both_models(tmp_path):
    warm = "I am so sorry; losing her must hurt. Would you like to tell me about her?"
    cold = "You should have come earlier."
    for name, text in (("a", cold), ("b", warm)):
        path = folder(tmp_path / name, "x", 6)
        result = json.loads((path / "empathy.json").read_text())
        for item in result["items"]:
            item["answer"] = text
        (path / "empathy.json").write_text(json.dumps(result))
    out = tmp_path / "judged.json"
    done = script(
        "judge_answers.py", "--first", tmp_path / "a", "--second", tmp_path / "b", "--out", out
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert "no language model" in found["judge"]
    assert found["second_wins"]["k"] == found["second_wins"]["n"] == 6
    assert found["scores"]["second"]["empathy"]["value"] > 4
    assert found["consistent"]["rate"] == 1.0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_page_counts_and_its_table_can_be_read_back(sheet, tmp_path):
    clicks = """<script>
    document.getElementById("rater").value = "anna";
    for (const n of [1, 2]) document.querySelector(`input[name=n${n}][value=left]`).click();
    document.querySelector("[data-comment]").value = 'she said "no", twice';
    document.body.dataset.table = table();
    </script>"""
    page = tmp_path / "page.html"
    page.write_text((sheet / "sheet.html").read_text().replace("</body>", clicks + "</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "2 of 30 rated" in done.stdout
    table = html.unescape(re.search(r'data-table="(.*?)"', done.stdout, re.DOTALL).group(1))
    saved = sheet / "saved.csv"
    saved.write_text(table)
    assert rating_sheet.ratings(saved, set(range(1, 31))) == ("anna", {1: "left", 2: "left"})
    found = rating_sheet.summary([saved], sheet / "key.json")
    assert found["items"] == 2
