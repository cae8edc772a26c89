"""What the task files here call by `!function`; the functions themselves are in scripts/."""

from collections.abc import Sequence
from typing import Any

from medalign import benchmarks, measures
from medalign.benchmarks import feelings, plans, questions, requests, teaching  # noqa: F401

Pair = tuple[int, int]  # right option, chosen option


def _scores(kept: dict[str, Any]) -> dict[str, Any]:
    pair = kept["gold"], kept["chosen"]
    return {"acc": float(pair[0] == pair[1]), "balanced_acc": pair, "macro_f1": pair}


def likeliest(doc: Any, results: Any) -> dict[str, Any]:
    return _scores(benchmarks.likeliest(doc, results))


def lettered(doc: Any, results: Any) -> dict[str, Any]:
    return _scores(benchmarks.lettered(doc, results))


def worded(doc: Any, results: Any) -> dict[str, Any]:
    return _scores(benchmarks.worded(doc, results))


def refused(doc: Any, results: Any) -> dict[str, Any]:
    kept = benchmarks.refused(doc, results)
    return {
        "balanced_acc": (kept["gold"], kept["chosen"]),
        f"{doc['subject']}_refused": kept["chosen"],
    }


def formed(doc: Any, results: Any) -> dict[str, Any]:
    return {f"{doc['subject']}_strict": float(not benchmarks.formed(doc, results)["faults"])}


def felt(doc: Any, results: Any) -> dict[str, Any]:
    return {"empathy_proxy": benchmarks.felt(doc, results)["empathy"]}


def _of_table(pairs: Sequence[Pair], measure: Any) -> float:
    gold, chosen = measures.arrays([{"gold": g, "chosen": c} for g, c in pairs])
    labels = int(max(gold.max(), chosen.max())) + 1
    return float(measure(measures.counts(gold, chosen, labels)) or 0.0)


def balanced_accuracy(pairs: Sequence[Pair]) -> float:
    return _of_table(pairs, measures.balanced_accuracy)


def macro_f1(pairs: Sequence[Pair]) -> float:
    return _of_table(pairs, measures.macro_f1)
