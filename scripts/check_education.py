"""Validate the education set; every fault is named with file and line.

    python scripts/check_education.py

Checks the schema, the split counts of each category, the section format, lengths, repeated
terms, prompts and sentences, near-duplicates, and leakage between train, test and the
phrasing sets of the evaluation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field
from rapidfuzz import fuzz, process

from medalign import sections
from medalign.artifacts import ROOT, StepError, run_step
from medalign.rows import STRICT, Table, first_seen, load, near_twins, words

EDUCATION = ROOT / "data/education"
PHRASING = ROOT / "evals/education_format"

Category = Literal[
    "medical_terminology",
    "abbreviations",
    "disease_mechanisms",
    "anatomy_physiology",
    "diagnostic_tests",
]
COUNTS: dict[str, dict[str, int]] = {  # category → split → rows
    "medical_terminology": {"train": 50, "test": 13},
    "abbreviations": {"train": 40, "test": 16},
    "disease_mechanisms": {"train": 25, "test": 8},
    "anatomy_physiology": {"train": 20, "test": 6},
    "diagnostic_tests": {"train": 15, "test": 7},
}
WORDS = (90, 220)  # an answer's length
NEAR_ANSWER = 80  # rapidfuzz token_sort_ratio, 0-100, above which two answers are too alike
NEAR_FROZEN = 80  # fuzz.ratio at which a frozen prompt, term taken out, is a training wording
FACT_SUPPORT = 0.5  # share of a key fact's content words that its answer must hold


class Example(BaseModel):
    """A row of train.jsonl or test.jsonl."""

    model_config = STRICT
    id: str = Field(pattern=r"^[a-z]{2}-\d{3}$")
    category: Category
    term: str = Field(min_length=1)
    prompt: str = Field(min_length=3)
    answer: str
    key_facts: list[str] = Field(min_length=3, max_length=6)
    reference: str = Field(min_length=10)


class Wordings(BaseModel):
    """A row of wordings.jsonl: other ways to ask for the training row of the same id."""

    model_config = STRICT
    id: str
    wordings: list[str] = Field(min_length=1)


class Phrasing(BaseModel):
    """A row of a phrasing set: a test prompt in a wording of its own."""

    model_config = STRICT
    id: str
    category: Category
    term: str
    seen: bool
    style: str
    prompt: str = Field(min_length=3)


def expansions(answer: str, term: str) -> set[str]:
    """Other names of a term that its Definition gives: what it stands for, (ABBR) and also."""
    definition = sections.parse(answer).sections.get("Definition", "")
    pattern = rf"{re.escape(term)}[^.;,]{{0,40}}?\b(?:stands for|is short for|means)\s+([^,.;(]+)"
    names = re.findall(pattern, definition, re.IGNORECASE)
    names += re.findall(rf"{re.escape(term)}\s*\(([^)]+)\)", definition, re.IGNORECASE)
    return {name.strip() for name in names}


def naming(row: Example) -> str:
    """Where a term may be named otherwise: an abbreviation's Definition, else its brackets."""
    definition = sections.parse(row.answer).sections.get("Definition", "")
    if row.category == "abbreviations":
        return definition
    return " | ".join(re.findall(r"\(([^)]+)\)", definition))


def term_keys(row: Example) -> set[str]:
    """The forms under which a term is compared: lower-cased, stemmed, expanded."""
    names = {row.term} | expansions(row.answer, row.term)
    return {" ".join(words(name)) for name in names} - {""}


def skeleton(prompt: str, term: str) -> str:
    """A prompt's wording: lower-cased, the term taken out, punctuation dropped."""
    text = prompt.lower().replace(term.lower(), "@")
    return " ".join(re.findall(r"[a-z0-9@]+", text))


def check_rows(table: Table[Example], split: str) -> None:
    """Faults inside one split: format, lengths, key facts, counts."""
    for line, row in table.rows:
        for fault in sections.parse(row.answer).faults:
            table.fault(line, f"answer: {fault}")
        if row.answer != row.answer.strip() or row.prompt != row.prompt.strip():
            table.fault(line, "prompt or answer: white space at an end")
        length = len(row.answer.split())
        if not WORDS[0] <= length <= WORDS[1]:
            table.fault(line, f"answer: {length} words, not {WORDS[0]} to {WORDS[1]}")
        held = set(words(row.answer))
        for fact in row.key_facts:
            content = {w for w in words(fact) if len(w) > 3 or w.isdigit()}
            if content and len(content & held) / len(content) < FACT_SUPPORT:
                table.fault(line, f"key_facts: not in the answer: {fact!r}")
    have = Counter(str(row.category) for _, row in table.rows)
    for category, want in COUNTS.items():
        if have[category] != want[split]:
            table.fault(0, f"{category}: {have[category]} rows, {want[split]} promised")


def sentences(answer: str) -> Iterator[str]:
    """The sentences of the first three sections (the Note is the same in all)."""
    for name, body in sections.parse(answer).sections.items():
        if name != "Note":
            yield from (s.lower() for s in re.split(r"(?<=[.!?])\s+", body) if len(s.split()) > 3)


def check_across(
    tables: dict[str, Table[Example]],
    wordings: Table[Wordings],
    phrasing: dict[str, Table[Phrasing]],
) -> None:
    """Faults between rows and files: repetitions, near-duplicates, leakage."""
    examples = [(t, n, r) for t in tables.values() for n, r in t.rows]
    first_seen(((t, n, r.id) for t, n, r in examples), "id")
    first_seen(((wordings, n, r.id) for n, r in wordings.rows), "id")
    first_seen(((t, n, r.id) for t in phrasing.values() for n, r in t.rows), "id")
    names = [(t, n, r, f" {' '.join(words(r.term))} ") for t, n, r in examples]
    for table, line, row in examples:
        text = f" {' '.join(words(naming(row)))} "
        for there, number, named, key in names:
            if there is not table and key in text:
                place = f"{there.path.name}:{number}"
                table.fault(line, f"term: {row.term!r} also at {place}: {named.term!r}")
    first_seen(((t, n, key) for t, n, r in examples for key in sorted(term_keys(r))), "term")
    first_seen(((t, n, s) for t, n, r in examples for s in set(sentences(r.answer))), "sentence")

    for i, j in near_twins([" ".join(sentences(r.answer)) for _, _, r in examples], NEAR_ANSWER):
        table, line, row = examples[i]
        table.fault(line, f"answer: nearly that of {examples[j][2].id} ({row.id})")

    train = {r.id: (n, r) for n, r in tables["train"].rows}
    asked: list[tuple[Table[Any], int, str, str]]
    asked = [(tables["train"], n, r.prompt, r.term) for n, r in train.values()]
    for line, other in wordings.rows:
        if other.id not in train:
            wordings.fault(line, f"id: {other.id!r} is no training row")
            continue
        asked += [(wordings, line, w, train[other.id][1].term) for w in other.wordings]
    tests: list[tuple[Table[Any], int, str]]
    tests = [(tables["test"], n, r.prompt) for n, r in tables["test"].rows]
    tests += [(t, n, r.prompt) for t in phrasing.values() for n, r in t.rows]
    everything = [(t, n, p) for t, n, p, _ in asked] + tests
    first_seen(((t, n, " ".join(words(p))) for t, n, p in everything), "prompt")

    first_seen(((t, n, skeleton(r.prompt, r.term)) for t, n, r in examples), "prompt's wording")
    tested = [" ".join(words(r.term)) for _, r in tables["test"].rows]
    for table, line, prompt, _ in asked:
        text = f" {' '.join(words(prompt))} "
        for key in tested:
            if f" {key} " in text:
                table.fault(line, f"prompt: names the test term {key!r}")

    trained = [skeleton(prompt, term) for _, _, prompt, term in asked]
    train_keys = {key for _, r in train.values() for key in term_keys(r)}
    test_keys = {k for _, r in tables["test"].rows for k in term_keys(r)}
    for name, aside in phrasing.items():
        for line, phrased in aside.rows:
            key = " ".join(words(phrased.term))
            if phrased.seen != (key in train_keys):
                aside.fault(
                    line, f"seen: {phrased.seen}, but {phrased.term!r} in train: {not phrased.seen}"
                )
            if key in test_keys:
                aside.fault(line, f"term: {phrased.term!r} is a test term")
            if name == "frozen":
                wording = skeleton(phrased.prompt, phrased.term)
                near = process.extractOne(wording, trained, scorer=fuzz.ratio)
                if near and near[1] >= NEAR_FROZEN:
                    where = asked[near[2]]
                    aside.fault(line, f"prompt: worded as {where[0].path.name}:{where[1]}")


def check_all(education: Path = EDUCATION, phrasing: Path = PHRASING) -> list[str]:
    """All faults of the education set and the phrasing sets, as `file:line: message`."""
    tables = {split: load(education / f"{split}.jsonl", Example) for split in ("train", "test")}
    wordings = load(education / "wordings.jsonl", Wordings)
    phrased = {s: load(phrasing / f"phrasing_{s}.jsonl", Phrasing) for s in ("tune", "frozen")}
    for split, table in tables.items():
        check_rows(table, split)
    check_across(tables, wordings, phrased)
    checked: list[Table[Any]] = [*tables.values(), wordings, *phrased.values()]
    return [fault for table in checked for fault in table.faults]


def main() -> None:
    faults = check_all()
    for fault in faults:
        print(fault)
    if faults:
        raise StepError(f"{len(faults)} faults in the education set, listed above; mend them")
    rows = sum(n for splits in COUNTS.values() for n in splits.values())
    print(f"education set: {rows} rows, no fault")


if __name__ == "__main__":
    run_step(main)
