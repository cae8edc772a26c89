"""Exchange written rows with a clinician: rows → CSV sheet, decisions → reviews.jsonl.

    python scripts/review_sheet.py --out build/review_sheet.csv
    python scripts/review_sheet.py --import-from build/review_sheet.csv

Of the education set, or with `--data data/preferences` of the gold pairs.

The reviewer fills in `decision` (accept, change or reject), `reviewer` and `comment`. A
decision is kept with the hash of the row it was made on: a row that has changed since is
shown as open again.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medalign.artifacts import StepError, read_jsonl, run_step, write_jsonl, written_whole
from medalign.check_education import EDUCATION

REVIEWS = "reviews.jsonl"  # beside the rows
SPLITS = ("train", "test", "gold")  # the files that hold rows to review
DECISIONS = ("accept", "change", "reject")
FILLED = ("decision", "reviewer", "comment")


def row_hash(row: dict[str, Any]) -> str:
    """A hash of the row's content, to tell whether it changed since a review.

    It begins with a letter: a spreadsheet would turn 12345678e901 into a number.
    """
    text = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return "h" + hashlib.sha256(text.encode()).hexdigest()[:12]


def rows(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """All rows with their split. StepError if the folder has none to review."""
    splits = [s for s in SPLITS if (folder / f"{s}.jsonl").exists()]
    if not splits:
        raise StepError(f"{folder} has none of {', '.join(f'{s}.jsonl' for s in SPLITS)}")
    return [(split, row) for split in splits for row in read_jsonl(folder / f"{split}.jsonl")]


def cell(value: Any) -> str:
    """A value as a spreadsheet shows it; text that would be taken for a formula is quoted."""
    text = "\n".join(value) if isinstance(value, list) else str(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def export_sheet(out: Path, folder: Path) -> int:
    """Write the sheet, with the decisions that still hold. Returns the number of open rows."""
    reviews = folder / REVIEWS
    known = {r["id"]: r for r in read_jsonl(reviews)} if reviews.exists() else {}
    still_open = 0
    lines = []
    found = rows(folder)
    columns = ("split", *found[0][1], "row_hash", *FILLED)
    for split, row in found:
        made = known.get(row["id"], {})
        holds = made.get("row_hash") == row_hash(row)
        still_open += not holds
        line = {"split": split, **row, "row_hash": row_hash(row)}
        line |= {k: made[k] for k in FILLED} if holds else {}
        lines.append(line)
    write_sheet(out, columns, lines)
    return still_open


def write_sheet(out: Path, columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> None:
    """A CSV that spreadsheets open; a column that a line lacks is empty."""
    with (
        written_whole(out) as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig") as f,
    ):
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows({k: cell(line.get(k, "")) for k in columns} for line in lines)


def read_sheet(sheet: Path, needed: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of a CSV with their place. StepError if it cannot be read or lacks a column."""
    try:
        text = sheet.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StepError(f"{sheet}: cannot be read as a UTF-8 CSV ({error})") from error
    reader = csv.DictReader(text.splitlines(keepends=True))
    if missing := needed - set(reader.fieldnames or []):
        raise StepError(f"{sheet}:1: no column {', '.join(sorted(missing))}")
    for line in reader:
        yield f"{sheet}:{reader.line_num}", line


def import_sheet(sheet: Path, folder: Path) -> int:
    """Take decisions back into reviews.jsonl. Returns how many were taken.

    StepError names file and line of a wrong decision, an unknown or changed row, a missing
    name or column; then nothing is written.
    """
    reviews = folder / REVIEWS
    current = {row["id"]: row for _, row in rows(folder)}
    known = {r["id"]: r for r in read_jsonl(reviews)} if reviews.exists() else {}
    taken = 0
    for where, line in read_sheet(sheet, {"id", "row_hash", *FILLED}):
        decision = (line["decision"] or "").strip().lower()
        if not decision:
            continue
        if decision not in DECISIONS:
            raise StepError(f"{where}: decision {decision!r} is none of {', '.join(DECISIONS)}")
        if not (line["reviewer"] or "").strip():
            raise StepError(f"{where}: a decision without a reviewer")
        row = current.get(line["id"])
        if row is None:
            raise StepError(f"{where}: no row {line['id']!r} in {folder.name}")
        if row_hash(row) != line["row_hash"]:
            raise StepError(f"{where}: {line['id']} has changed since this sheet was exported")
        if decision != "accept" and not (line["comment"] or "").strip():
            raise StepError(f"{where}: {decision} without a comment")
        made = {"id": line["id"], "row_hash": line["row_hash"], "decision": decision}
        made |= {k: line[k].strip().removeprefix("'") for k in ("reviewer", "comment")}
        if {k: known.get(line["id"], {}).get(k) for k in made} != made:
            known[line["id"]] = {**made, "date": dt.date.today().isoformat()}
            taken += 1
    write_jsonl(reviews, [known[i] for i in sorted(known)])
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--out", type=Path, help="write the sheet here")
    group.add_argument("--import-from", type=Path, help="take the decisions of this sheet")
    parser.add_argument("--data", type=Path, default=EDUCATION, help="the folder of the rows")
    args = parser.parse_args()
    if args.out:
        print(f"{args.out}: {export_sheet(args.out, args.data)} rows wait for a decision")
    else:
        taken = import_sheet(args.import_from, args.data)
        print(f"{args.data / REVIEWS}: {taken} new decisions")


if __name__ == "__main__":
    run_step(main)
