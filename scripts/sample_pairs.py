"""On-policy preference pairs: a model's own answers to the training prompts, best against worst.

    python scripts/sample_pairs.py --model runs/…/medalign-135m-Q4_K_M.gguf \\
        --pairs build/pairs/train.jsonl --out runs/…/round-2/pairs

Of each prompt several answers are sampled, of a strong and, with `--weaker`, of a weaker model.
The judge compares each with the written answer, which is a candidate itself. The best becomes
chosen, the worst rejected; where they are less than `margin` apart nothing is learnt from the
prompt. The judge gets no reference: the written answer would be held against itself. The pairs
are silver: what a judge preferred, and no person read.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.progress import track

from medalign import gguf_model
from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_json,
    read_jsonl,
    require_file,
    run_step,
    sha256,
    write_json,
    write_jsonl,
    written_whole,
)
from medalign.judge import Comparison, judge_of_environment
from medalign.settings import declared

SETTINGS = ROOT / "data/preferences/sampling.yaml"
Row = dict[str, Any]


class Settings(BaseModel):
    """data/preferences/sampling.yaml"""

    model_config = ConfigDict(extra="forbid")
    seed: int
    prompts: dict[str, int]
    answers: int = Field(ge=1)
    temperature: float = Field(gt=0)
    max_tokens: int
    margin: float = Field(gt=0)


@dataclass(frozen=True)
class Candidate:
    """An answer to a prompt: who gave it, and how much better than the written one it is."""

    text: str
    by: str
    margin: float


def drawn(rows: list[Row], settings: Settings) -> list[Row]:
    """The prompts that are asked, of each category as many as declared."""
    by: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by[row["category"]].append(row)
    draw = random.Random(settings.seed)
    return [
        row
        for category, n in settings.prompts.items()
        for row in draw.sample(by[category], min(n, len(by[category])))
    ]


def best_and_worst(
    candidates: list[Candidate], margin: float
) -> tuple[Candidate, Candidate] | None:
    """The pair of a prompt, or None where its candidates are too close."""
    ordered = sorted(candidates, key=lambda c: (c.margin, c.by == "written", c.text))
    worst, best = ordered[0], ordered[-1]
    return (best, worst) if best.margin - worst.margin >= margin else None


def sampled(
    rows: list[Row], models: dict[str, Path], settings: Settings
) -> list[list[tuple[str, str]]]:
    """For each row the different answers that ended by themselves: (who, text)."""
    found: list[list[tuple[str, str]]] = [[] for _ in rows]
    chats = [row["prompt"] for row in rows for _ in range(settings.answers)]
    for who, path in models.items():
        answers = gguf_model.ask_all(path, chats, settings.max_tokens, settings.temperature)
        for i, answer in enumerate(track(answers, who, len(chats))):
            said = found[i // settings.answers]
            text = answer.text.strip()
            if answer.finish_reason == "stop" and text and text not in {t for _, t in said}:
                said.append((who, text))
    return found


def build(model: Path, weaker: Path | None, pairs: Path, out: Path) -> dict[str, Any]:
    """Write train.jsonl and manifest.json to `out`; returns the manifest."""
    began = time.monotonic()
    settings = declared(SETTINGS, Settings)
    judge = judge_of_environment()
    models = {"model": require_file(model, "make gguf of the round before writes it")}
    if weaker:
        models["weaker"] = require_file(weaker, "make gguf writes it")
    beside = pairs.with_name("manifest.json")
    asked = read_json(beside, "make pairs writes it") if beside.exists() else {}
    rows = drawn(read_jsonl(require_file(pairs, "make pairs writes it")), settings)
    said = sampled(rows, models, settings)
    cases = [
        Comparison(
            id=f"{row['id']}/{n}",
            category=row["category"],
            prompt=row["prompt"][-1]["content"],
            first=text,
            second=row["chosen"][0]["content"],
        )
        for row, answers in zip(rows, said, strict=True)
        for n, (_, text) in enumerate(answers)
    ]
    judged = judge.judge(cases)
    if judged.stopped:
        raise StepError(
            f"{judge.name}: {judged.stopped}; what is judged is kept, go on with the same"
        )
    margins = {v.id: v.margin for v in judged.verdicts}
    built, reasons = [], Counter[str]()
    for row, answers in zip(rows, said, strict=True):
        written = row["chosen"][0]["content"]
        candidates = [Candidate(written, "written", 0.0)]
        for n, (who, text) in enumerate(answers):
            if f"{row['id']}/{n}" in margins:
                candidates.append(Candidate(text, who, margins[f"{row['id']}/{n}"]))
        pair = best_and_worst(candidates, settings.margin)
        if len(candidates) == 1:
            reasons["no answer ended or was judged"] += 1
        elif pair is None:
            reasons["closer than the margin"] += 1
        else:
            best, worst = pair
            reasons[f"chosen {best.by}, rejected {worst.by}"] += 1
            built.append(
                {
                    **row,
                    "id": f"{row['id']}-on-policy",
                    "chosen": [{"role": "assistant", "content": best.text}],
                    "rejected": [{"role": "assistant", "content": worst.text}],
                    "margin": round(best.margin - worst.margin, 3),
                }
            )
    with written_whole(out) as folder:
        folder.mkdir(parents=True)
        write_jsonl(folder / "train.jsonl", built)
        facts = manifest(
            "on-policy pairs",
            {**models, "pairs": pairs, "settings": SETTINGS},
            began,
            license=asked.get("license"),
            sources=asked.get("sources") or {},
            judge=judge.name,
            prompts=len(rows),
            rows=len(built),
            answers=len(cases),
            outcomes=dict(reasons),
            categories=dict(Counter(row["category"] for row in built)),
            failures=len(judged.failures),
            outputs={"train.jsonl": sha256(folder / "train.jsonl")},
        )
        write_json(folder / "manifest.json", facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF of the current model")
    parser.add_argument("--weaker", type=Path, help="GGUF of a weaker one, as the base")
    parser.add_argument("--pairs", type=Path, required=True, help="pairs whose prompts are asked")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    facts = build(args.model, args.weaker, args.pairs, args.out)
    print(f"{args.out}: {facts['rows']} pairs of {facts['prompts']} prompts, {facts['judge']}")
    for what, n in facts["outcomes"].items():
        print(f"  {what}: {n}")


if __name__ == "__main__":
    run_step(main)
