"""Ask a GGUF every prompt of the format suite and score its answers' form.

    python scripts/evaluate_format.py --model runs/…/medalign-135m-Q4_K_M.gguf \\
        --out runs/smollm2-135m/sft-lora-cpu/eval/tuned.json

Same system prompt, greedy decoding and token limit for every model. What is measured is
form, not medicine: an answer may keep all four sections and be wrong.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medalign import gguf_model, suite
from medalign.artifacts import ROOT, read_jsonl, run_step
from medalign.check_education import EDUCATION, PHRASING
from medalign.recipe import SYSTEM_PROMPT, system_prompt
from medalign.sections import SECTIONS, parse
from medalign.suite import Item, rate

SETS = {
    "test": EDUCATION / "test.jsonl",
    "frozen": PHRASING / "phrasing_frozen.jsonl",
    "tune": PHRASING / "phrasing_tune.jsonl",
}
SCORER = ROOT / "scripts/sections.py"
MAX_TOKENS = 512  # the longest answer of the education set is 300 tokens


def strict(items: Iterable[Item]) -> dict[str, Any]:
    """The rate of answers that keep the format strictly."""
    items = list(items)
    return rate(sum(not item["faults"] for item in items), len(items))


def grouped(items: list[Item], key: Callable[[Item], Any]) -> dict[str, dict[str, Any]]:
    """Strict adherence by group."""
    groups = sorted({str(key(item)) for item in items})
    return {g: strict(i for i in items if str(key(i)) == g) for g in groups}


def score(items: list[Item]) -> dict[str, Any]:
    """All figures of one prompt set from its scored items."""
    seconds = sum(item["seconds"] for item in items)
    scores: dict[str, Any] = {
        "strict": strict(items),
        "sections": {
            s: rate(sum(s in item["sections_kept"] for item in items), len(items)) for s in SECTIONS
        },
        "by_category": grouped(items, lambda item: item["category"]),
        "faults": dict(Counter(f for item in items for f in set(item["faults"]))),
        "finish_reasons": dict(Counter(item["finish_reason"] for item in items)),
        "tokens": sum(item["tokens"] for item in items),
        "tokens_per_second": round(sum(item["tokens"] for item in items) / max(seconds, 1e-9), 1),
    }
    if any("seen" in item for item in items):
        scores["by_term_in_training"] = grouped(
            items, lambda item: "seen" if item["seen"] else "unseen"
        )
        scores["by_style"] = grouped(items, lambda item: item["style"])
    return scores


def scored(row: Item, answer: gguf_model.Answer) -> Item:
    """What is kept of an evaluation row, and what is wrong with the form of its answer."""
    parsed = parse(answer.text, ended=answer.finish_reason == "stop")
    kept: Item = {
        k: row[k] for k in ("id", "category", "term", "prompt", "seen", "style") if k in row
    }
    return {
        **kept,
        "sections_kept": [s for s in SECTIONS if parsed.has(s)],
        "faults": [f.kind for f in parsed.faults],
    }


def evaluate(model: Path, out: Path, sets: list[str], system: str, limit: int | None) -> Item:
    """Ask `model` all prompts of `sets`; write and return the result. Resumes where it was."""
    return suite.ask(
        "format evaluation",
        model,
        out,
        [(name, row) for name in sets for row in read_jsonl(SETS[name])[:limit]],
        scored,
        score,
        system=system,
        max_tokens=MAX_TOKENS,
        inputs={"scorer": SCORER, **{s: SETS[s] for s in sets}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="result JSON")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["test", "frozen"])
    parser.add_argument("--system", type=Path, default=SYSTEM_PROMPT, help="system prompt file")
    parser.add_argument("--limit", type=int, help="only the first rows of each set")
    args = parser.parse_args()
    system = system_prompt() if args.system == SYSTEM_PROMPT else args.system.read_text().strip()
    result = evaluate(args.model, args.out, args.sets, system, args.limit)
    for name, scores in result["scores"].items():
        speed = f"{scores['tokens_per_second']} tokens/s a thread"
        print(f"{name}: {suite.told(scores['strict'])} keep the format, {speed}")


if __name__ == "__main__":
    run_step(main)
