"""Validate the gold preference pairs; every fault is named with file and line.

    python scripts/check_preferences.py

Checks the schema, the form of both answers, their lengths against each other, repeated and
near-repeated prompts, leakage from the format suite (its prompts anywhere, its test terms in
format pairs), and that no pair about harm holds an amount of a medicine.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field
from rapidfuzz import fuzz, process

from medalign import sections
from medalign.artifacts import ROOT, StepError, read_jsonl, run_step
from medalign.check_education import EDUCATION, PHRASING
from medalign.rows import STRICT, Table, first_seen, load, near_twins, words

GOLD = ROOT / "data/preferences/gold.jsonl"
Kind = Literal["harmful_request", "benign_lookalike", "medication_safety", "empathy", "format"]
CATEGORIES: tuple[str, ...] = get_args(Kind)
RATIO = (0.7, 1.4)  # words of chosen / words of rejected, of each pair
MEAN_RATIO = (0.95, 1.05)  # of each category: length must teach nothing
NEAR_PROMPT = 85  # rapidfuzz token_sort_ratio, 0-100, at which two prompts are too alike
AMOUNT = re.compile(r"\d[\d,.]*\s*(?:mg|mcg|µg|g|ml|milligrams?|pills?|tablets?|capsules?)\b", re.I)
HEADING = re.compile(r"\*\*|^#|^Definition:", re.M)


class Pair(BaseModel):
    """A prompt with a better and a worse answer, and what tells them apart."""

    model_config = STRICT
    id: str = Field(pattern=r"^[a-z]{2}-\d{3}$")
    category: Kind
    kind: str = Field(min_length=3)
    prompt: str = Field(min_length=3)
    chosen: str = Field(min_length=20)
    rejected: str = Field(min_length=20)
    teaches: str = Field(min_length=5)
    reference: str = Field(min_length=5)


def ratio(pair: Pair) -> float:
    """Words of the chosen answer for a word of the rejected one."""
    return len(pair.chosen.split()) / len(pair.rejected.split())


def taught(pair: Pair) -> bool:
    """Whether a lookalike is a teaching question, answered in the four sections."""
    return pair.category == "benign_lookalike" and not sections.parse(pair.chosen).faults


def check_pairs(table: Table[Pair]) -> None:
    """Faults inside a pair, and of each category's mean length ratio."""
    for line, pair in table.rows:
        for name in ("prompt", "chosen", "rejected"):
            if (text := getattr(pair, name)) != text.strip():
                table.fault(line, f"{name}: white space at an end")
        if pair.chosen == pair.rejected:
            table.fault(line, "chosen and rejected are the same")
        if not RATIO[0] <= ratio(pair) <= RATIO[1]:
            table.fault(line, f"chosen has {ratio(pair):.2f} times the words of rejected")
        if pair.category == "format":
            if faults := sections.parse(pair.chosen).faults:
                table.fault(line, f"chosen: {faults[0]}")
            if not sections.parse(pair.rejected).faults:
                table.fault(line, "rejected: keeps the format, as chosen does")
        elif HEADING.search(pair.rejected) or (HEADING.search(pair.chosen) and not taught(pair)):
            table.fault(line, "an answer has headings; only what teaches has the four sections")
        if pair.category == "harmful_request":
            for name in ("prompt", "chosen", "rejected"):
                if found := AMOUNT.search(getattr(pair, name)):
                    table.fault(line, f"{name}: names an amount, {found.group()!r}")
    for category in CATEGORIES:
        ratios = [ratio(pair) for _, pair in table.rows if pair.category == category]
        if ratios and not MEAN_RATIO[0] <= fmean(ratios) <= MEAN_RATIO[1]:
            table.fault(0, f"{category}: chosen has {fmean(ratios):.3f} times the words on average")


def check_prompts(table: Table[Pair], tested: dict[str, str], terms: set[str]) -> None:
    """Faults between prompts: repeated, nearly repeated, or asked by an evaluation.

    tested: evaluation prompts, each with where it stands. terms: what the evaluation asks for
    and training has not taught.
    """
    first_seen(((table, n, p.id) for n, p in table.rows), "id")
    stems = [words(pair.prompt) for _, pair in table.rows]
    for i, j in near_twins([" ".join(prompt) for prompt in stems], NEAR_PROMPT):
        (line, pair), (_, other) = table.rows[i], table.rows[j]
        if pair.category == other.category:  # a contrast is alike, and is to be
            table.fault(line, f"prompt: nearly that of {other.id}")
    named = {term: f" {' '.join(words(term))} " for term in sorted(terms)}
    for (line, pair), prompt in zip(table.rows, stems, strict=True):
        text = f" {' '.join(prompt)} "
        if pair.category == "format" and (found := [t for t, key in named.items() if key in text]):
            table.fault(line, f"prompt: names the test term {found[0]!r}")
    others = {" ".join(sorted(words(prompt))): place for prompt, place in tested.items()}
    for (line, _), prompt in zip(table.rows, stems, strict=True):
        text = " ".join(sorted(prompt))
        near = process.extractOne(text, list(others), scorer=fuzz.ratio, score_cutoff=NEAR_PROMPT)
        if near:
            table.fault(line, f"prompt: asked by the evaluation, {others[near[0]]}")


def evaluation_rows() -> list[tuple[str, dict[str, Any]]]:
    """Every row of the format suite with its file's name."""
    files = [EDUCATION / "test.jsonl", *sorted(PHRASING.glob("*.jsonl"))]
    return [(file.name, row) for file in files for row in read_jsonl(file)]


def check_all(gold: Path = GOLD) -> Table[Pair]:
    """The gold pairs and all their faults, as `file:line: message`."""
    table = load(gold, Pair)
    check_pairs(table)
    asked = evaluation_rows()
    prompts = {row["prompt"]: f"{name} {row['id']}" for name, row in asked}
    check_prompts(table, prompts, {row["term"] for _, row in asked if not row.get("seen")})
    return table


def main() -> None:
    table = check_all()
    for fault in table.faults:
        print(fault)
    if table.faults:
        raise StepError(f"{len(table.faults)} faults in the gold pairs, listed above; mend them")
    pairs = [pair for _, pair in table.rows]
    for category in CATEGORIES:
        ratios = [ratio(p) for p in pairs if p.category == category]
        print(f"{category}: {len(ratios)} pairs, chosen / rejected words {fmean(ratios):.3f}")
    print(f"gold pairs: {len(pairs)}, no fault")


if __name__ == "__main__":
    run_step(main)
