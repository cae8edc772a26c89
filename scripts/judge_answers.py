"""Two models' answers of a suite before the judge: rubric scores of each, 1 to 5, and who wins.

    python scripts/judge_answers.py --first A --second B --suite empathy --out result.json
    make judge-answers A=… B=… [SUITE=empathy]

Each pair of answers is asked in both orders, as the gold pairs are; how far the same judge agrees
with those says `make judge`, and belongs beside every figure of it. Which judge it is decides the
environment (medalign.judge); without a key it is rules, and the result says so.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from medalign import benchmarks
from medalign.artifacts import StepError, manifest, run_step, write_json
from medalign.compare_results import answered
from medalign.evaluate import SUITES
from medalign.judge import RUBRICS, Comparison, Judge, judge_of_environment, sign
from medalign.judge_rubric import RUBRIC, VERSION
from medalign.measures import mean
from medalign.model_judge import PRICES
from medalign.suite import rate, told

CATEGORY = {"empathy": "empathy", "education_format": "format"}  # of suites that hang on none


def comparisons(first: Path, second: Path, suite: str) -> list[Comparison]:
    """Both models' answers to the same prompts. StepError if they share none."""
    cases = []
    for key, a, b in answered(first, second, suite):
        harmful = "harmful_request" if a["subject"] == "harmful" else "benign_lookalike"
        category = CATEGORY.get(suite, harmful)
        reference = a.get("reference") or None
        cases.append(
            Comparison("/".join(key), category, a["prompt"], a["answer"], b["answer"], reference)
        )
    if not cases:
        raise StepError(f"{suite}: {first} and {second} share no prompt answered in words")
    return cases


def judged(judge: Judge, cases: list[Comparison]) -> dict[str, Any]:
    """Mean rubric scores of both, and how often the second wins, ties apart."""
    found = judge.judge(cases)
    if found.stopped:
        raise StepError(f"{found.stopped}; {len(found.verdicts)} of {len(cases)} are kept")
    wins = [sign(v.margin) for v in found.verdicts]
    return {
        "judge": judge.name,
        "usd": found.usd,
        "failures": found.failures,
        "scores": {
            who: {r: mean([getattr(v, who)[r] for v in found.verdicts]) for r in RUBRICS}
            for who in ("first", "second")
        },
        "second_wins": rate(wins.count(-1), len(wins) - wins.count(0)),
        "ties": wins.count(0),
        "consistent": rate(sum(v.consistent for v in found.verdicts), len(found.verdicts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=Path, required=True, help="folder of suite results")
    parser.add_argument("--second", type=Path, required=True, help="folder of suite results")
    kept = (benchmarks.refused, benchmarks.formed, benchmarks.felt)
    wordy = [name for name, suite in SUITES.items() if suite.keep in kept]
    parser.add_argument("--suite", choices=wordy, default="empathy")
    parser.add_argument("--out", type=Path, required=True, help="result JSON")
    args = parser.parse_args()
    began = time.monotonic()
    judge = judge_of_environment()
    cases = comparisons(args.first, args.second, args.suite)
    tokens_in, tokens_out, usd = judge.estimate(cases)
    print(f"{judge.name}: {len(cases)} pairs, about {tokens_in + tokens_out} tokens, {usd:.2f} USD")
    found = judged(judge, cases)
    inputs = {"rubric": RUBRIC, "prices": PRICES}
    inputs |= {
        n: f / f"{args.suite}.json" for n, f in (("first", args.first), ("second", args.second))
    }
    facts = manifest("judged answers", inputs, began, suite=args.suite, rubric=VERSION)
    write_json(args.out, {**facts, **found})
    for who, scores in found["scores"].items():
        line = ", ".join(f"{r} {s['value']} ({s['low']}-{s['high']})" for r, s in scores.items())
        print(f"{who}: {line}")
    print(f"second better: {told(found['second_wins'])}, ties {found['ties']}")


if __name__ == "__main__":
    run_step(main)
