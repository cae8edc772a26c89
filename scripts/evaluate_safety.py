"""Ask a GGUF what should be refused and what should not, and count both.

    python scripts/evaluate_safety.py --model runs/…/medalign-135m-Q4_K_M.gguf \\
        --out runs/smollm2-135m/dpo-lora-cpu/eval/safety.json

harmful         MedSafetyBench's test requests (Han et al. 2024), 25 of each of its nine principles
xstest_safe     XSTest's safe prompts (Röttger et al. 2024), all
benign_medical  medical questions that sound dangerous and are not, written for this project, frozen

A rate of refusals says nothing without the false refusals beside it. Who refuses is told by
rules (medalign.refusal). MedSafetyBench and XSTest are read below MEDALIGN_DATA_DIR; a set that is
not there is left out, and said so. `--sets tune` are others to look at while working.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from medalign import gguf_model, sources, suite
from medalign.artifacts import ROOT, StepError, read_jsonl, run_step
from medalign.recipe import system_prompt
from medalign.refusal import is_refusal
from medalign.suite import Item, rate

LOOKALIKES = ROOT / "evals/refusal/benign_medical.jsonl"
SCORER = ROOT / "scripts/refusal.py"
EACH = 25  # harmful requests of each principle
MAX_TOKENS = 96  # a refusal is told by its first sentences
SETS = {
    "frozen": ("harmful", "xstest_safe", "benign_medical"),
    "tune": ("harmful_tune", "benign_tune"),
}


def local_file(name: str) -> Path | None:
    """The file of one of the evaluations that data/sources.yaml declares, if it is here."""
    dataset = next(d for d in sources.load()[1] if d.name == name)
    return dataset.file() if sources.missing(dataset) is None else None


def harmful(split: str, each: int) -> list[Item]:
    """Requests of a split of MedSafetyBench, as many of each principle, by a fixed seed."""
    file = local_file("medsafetybench-test")
    if file is None:
        return []
    by: dict[int, list[Item]] = defaultdict(list)
    for i, row in enumerate(read_jsonl(file.with_name(f"{split}.jsonl"))):
        item = {"id": f"msb-{split}-{i}", "prompt": row["harmful_medical_request"]}
        by[row["category"]].append({**item, "category": f"principle {row['category']}"})
    draw = random.Random(0)
    return [item for category in sorted(by) for item in draw.sample(by[category], each)]


def xstest() -> list[Item]:
    """XSTest's safe prompts."""
    file = local_file("xstest")
    if file is None:
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            {"id": f"xstest-{row['id']}", "category": row["type"], "prompt": row["prompt"]}
            for row in csv.DictReader(lines)
            if row["label"] == "safe"
        ]


def lookalikes(split: str) -> list[Item]:
    """This project's benign lookalikes of a split."""
    return [
        {"id": row["id"], "category": row["kind"], "prompt": row["prompt"]}
        for row in read_jsonl(LOOKALIKES)
        if row["split"] == split
    ]


def rows_of(name: str) -> list[Item]:
    """The rows of a set; none where its file is not there."""
    return {
        "harmful": lambda: harmful("test", EACH),
        "xstest_safe": xstest,
        "benign_medical": lambda: lookalikes("frozen"),
        "harmful_tune": lambda: harmful("train", 8),
        "benign_tune": lambda: lookalikes("tune"),
    }[name]()


def scored(row: Item, answer: gguf_model.Answer) -> Item:
    return {**row, "refused": is_refusal(answer.text)}


def summary(items: list[Item]) -> dict[str, Any]:
    """Refusals among a set's items, and by category."""
    by: dict[str, list[bool]] = defaultdict(list)
    for item in items:
        by[item["category"]].append(item["refused"])
    refused = [item["refused"] for item in items]
    return {
        "refused": rate(sum(refused), len(refused)),
        "by_category": {c: rate(sum(v), len(v)) for c, v in sorted(by.items())},
        "cut": sum(item["finish_reason"] == "length" for item in items),
    }


def evaluate(model: Path, out: Path, sets: str) -> dict[str, Any]:
    """Ask `model` the sets named; write and return the result. Resumes where it was."""
    rows = [(name, row) for name in SETS[sets] for row in rows_of(name)]
    for name in set(SETS[sets]) - {name for name, _ in rows}:
        print(f"{name}: left out, its file is not there; set {sources.DATA_DIR}")
    if not rows:
        raise StepError(f"nothing to ask; set {sources.DATA_DIR}")
    return suite.ask(
        "safety evaluation",
        model,
        out,
        rows,
        scored,
        summary,
        system=system_prompt(),
        max_tokens=MAX_TOKENS,
        inputs={"scorer": SCORER, "benign_medical": LOOKALIKES},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="result JSON")
    parser.add_argument("--sets", choices=list(SETS), default="frozen")
    args = parser.parse_args()
    for name, scores in evaluate(args.model, args.out, args.sets)["scores"].items():
        print(f"{name}: refused {suite.told(scores['refused'])}")


if __name__ == "__main__":
    run_step(main)
