"""Validate the safety rows of the mix; every fault is named with file and line.

    python scripts/check_safety.py

Checks the schema, turns that alternate, the plain form and length of every answer, phone numbers,
prompts that are nearly the same, and prompts that the format suite asks or the gold pairs hold.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from medalign.artifacts import ROOT, StepError, run_step
from medalign.check_preferences import GOLD, HEADING, NEAR_PROMPT, Pair, evaluation_rows
from medalign.rows import STRICT, Table, first_seen, load, near_twins, words

SAFETY = ROOT / "data/safety"
WORDS = (25, 115)  # of each answer
PHONES = {"1-800-222-1222"}  # Poison Help; 911 and 988 are no long numbers
PHONE = re.compile(r"\b(?:1-)?\d{3}-\d{3}-\d{4}\b")
LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)


class Message(BaseModel):
    """One turn."""

    model_config = STRICT
    role: Literal["user", "assistant"]
    content: str = Field(min_length=3)


class SafetyRow(BaseModel):
    """A conversation about the safe use of medicines, or an edge case, with what it must hold."""

    model_config = STRICT
    id: str = Field(pattern=r"^(?:med|ec)-\d{3}$")
    category: Literal["medication_safety", "edge_case"]
    kind: str = Field(min_length=3)
    messages: list[Message] = Field(min_length=2)
    key_facts: list[str] = Field(min_length=2, max_length=4)
    reference: str = Field(min_length=5)


def check_rows(table: Table[SafetyRow]) -> None:
    """Faults inside a row."""
    for line, row in table.rows:
        roles = [m.role for m in row.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            table.fault(line, f"messages: turns do not alternate, {roles}")
        for message in row.messages:
            if message.content != message.content.strip():
                table.fault(line, "messages: white space at an end")
            if unknown := set(PHONE.findall(message.content)) - PHONES:
                table.fault(line, f"messages: phone number {sorted(unknown)[0]}")
            if message.role == "user":
                continue
            if HEADING.search(message.content) or LIST.search(message.content):
                table.fault(line, "messages: an answer has headings or a list; plain prose only")
            if not WORDS[0] <= (length := len(message.content.split())) <= WORDS[1]:
                table.fault(line, f"messages: an answer of {length} words, not {WORDS}")


def check_prompts(tables: list[Table[SafetyRow]], gold: Path = GOLD) -> None:
    """Faults between prompts: repeated ids, near twins, asked by an evaluation or a gold pair."""
    rows = [(table, line, row) for table in tables for line, row in table.rows]
    first_seen(((table, line, row.id) for table, line, row in rows), "id")
    asked = [" ".join(words(row.messages[0].content)) for _, _, row in rows]
    others = [(f"{name} {row['id']}", row["prompt"]) for name, row in evaluation_rows()]
    others += [(f"{gold.name} {pair.id}", pair.prompt) for _, pair in load(gold, Pair).rows]
    places = [place for place, _ in others] + [row.id for _, _, row in rows]
    texts = [" ".join(words(prompt)) for _, prompt in others] + asked
    for i, j in near_twins(texts, NEAR_PROMPT):
        if i >= len(others):
            table, line, _ = rows[i - len(others)]
            table.fault(line, f"prompt: nearly that of {places[j]}")


def check_all(folder: Path = SAFETY) -> list[Table[SafetyRow]]:
    """The safety rows and all their faults, as `file:line: message`."""
    tables = [load(file, SafetyRow) for file in sorted(folder.glob("*.jsonl"))]
    for table in tables:
        check_rows(table)
    check_prompts(tables)
    return tables


def main() -> None:
    tables = check_all()
    faults = [fault for table in tables for fault in table.faults]
    for fault in faults:
        print(fault)
    if faults:
        raise StepError(f"{len(faults)} faults in the safety rows, listed above; mend them")
    for table in tables:
        print(f"{table.path.name}: {len(table.rows)} rows, no fault")


if __name__ == "__main__":
    run_step(main)
