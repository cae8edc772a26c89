"""How far the judge agrees with the gold pairs, by category.

    python scripts/judge_gold.py --out build/judge/agreement.json [--limit N] [--estimate]

The judge sees request, category and both answers in an order shuffled by SEED, never which is
the chosen one; the pairs' `reference` names a source, not an answer, and is left out. Which judge
it is decides the environment (medalign.judge).
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medalign.artifacts import StepError, manifest, read_jsonl, run_step, write_json
from medalign.check_preferences import GOLD
from medalign.judge import Comparison, Judge, agreement, judge_of_environment
from medalign.judge_rubric import RUBRIC, VERSION
from medalign.model_judge import PRICES

SEED = 0


def blind(pairs: list[dict[str, Any]]) -> tuple[list[Comparison], dict[str, bool]]:
    """The pairs as comparisons without their labels, and id → whether the first is the chosen.

    A pair's order hangs on SEED and its id only, so that a part and the whole share the cache.
    """
    cases, chosen_first = [], {}
    for pair in pairs:
        answers = [pair["chosen"], pair["rejected"]]
        chosen_first[pair["id"]] = random.Random(f"{SEED}:{pair['id']}").random() < 0.5
        first, second = answers if chosen_first[pair["id"]] else answers[::-1]
        cases.append(Comparison(pair["id"], pair["category"], pair["prompt"], first, second))
    return cases, chosen_first


def drawn(pairs: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """`limit` pairs drawn by SEED, in the file's order; all of them for None."""
    if limit is None or limit >= len(pairs):
        return pairs
    kept = set(random.Random(SEED).sample(range(len(pairs)), limit))
    return [pair for i, pair in enumerate(pairs) if i in kept]


def evaluate(judge: Judge, limit: int | None = None, gold: Path = GOLD) -> dict[str, Any]:
    """Judge the gold pairs and compare. StepError, with what is judged kept, if cut short."""
    began = time.monotonic()
    pairs = drawn(read_jsonl(gold), limit)
    cases, chosen_first = blind(pairs)
    judged = judge.judge(cases)
    if judged.stopped:
        raise StepError(
            f"{judged.stopped}. {len(judged.verdicts)} of {len(cases)} pairs are judged and kept, "
            f"{judged.usd:.4f} USD spent"
        )
    category = {case.id: case.category for case in cases}
    ids = [verdict.id for verdict in judged.verdicts]
    return {
        **manifest(
            "judge_agreement",
            {"pairs": gold, "rubric": RUBRIC, "prices": PRICES},
            began,
            judge=judge.name,
            rubric=VERSION,
            seed=SEED,
            usd=judged.usd,
            tokens_in=judged.tokens_in,
            tokens_out=judged.tokens_out,
        ),
        "agreement": agreement(
            judged.verdicts, [chosen_first[i] for i in ids], [category[i] for i in ids]
        ),
        "failures": judged.failures,
        "pairs": [
            {
                "id": verdict.id,
                "category": category[verdict.id],
                "chosen_margin": verdict.margin * (1 if chosen_first[verdict.id] else -1),
                "consistent": verdict.consistent,
            }
            for verdict in judged.verdicts
        ],
    }


def show(result: dict[str, Any]) -> None:
    """Print agreement by category."""
    table = Table(title=f"agreement with the gold pairs: {result['judge']}", title_justify="left")
    for column in ("category", "n", "agrees", "95 % Wilson", "ties", "kappa", "both orders agree"):
        table.add_column(column, justify="left" if column == "category" else "right")
    found = result["agreement"]
    for name, row in {**found["by_category"], "all": found}.items():
        if row["n"]:
            kappa = "–" if row["kappa"] is None else f"{row['kappa']:.2f}"
            table.add_row(
                name, str(row["n"]), f"{row['rate']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}",
                str(row["ties"]), kappa, str(row["consistent"]),
            )  # fmt: skip
    Console(width=110).print(table)
    print(f"not judged: {len(result['failures'])}; spent: {result['usd']:.4f} USD")
    for name, reason in list(result["failures"].items())[:10]:
        print(f"  {name}: {reason}")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="result JSON")
    parser.add_argument("--limit", type=positive, help="so many pairs, drawn at random")
    parser.add_argument("--estimate", action="store_true", help="only say what it would cost")
    args = parser.parse_args()
    if not (args.out or args.estimate):
        parser.error("give --out, or --estimate")
    judge = judge_of_environment()
    cases, _ = blind(drawn(read_jsonl(GOLD), args.limit))
    tokens_in, tokens_out, usd = judge.estimate(cases)
    print(
        f"{judge.name}: {len(cases)} pairs, about {tokens_in} tokens in and {tokens_out} out, "
        f"{usd:.2f} USD"
    )
    if args.estimate:
        return 0
    result = evaluate(judge, args.limit)
    write_json(args.out, result)
    show(result)
    return 0


if __name__ == "__main__":
    run_step(main)
