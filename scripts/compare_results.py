"""Compare two models' suite results, item by item.

    python scripts/compare_results.py build/suites/base runs/…/eval/suites/merged
    make compare A=… B=…      with GATE=1 a drop that is not accepted by name fails (ACCEPT=medmcqa)

Both were asked the same items, so the difference is taken item by item: the interval is a
bootstrap over items (over conversations, where several turns are one), the test McNemar's exact
one where an item is right or wrong. "not distinguishable" is a result, and not the same as equal.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from medalign.artifacts import StepError, run_step, write_json
from medalign.evaluate import SUITES
from medalign.measures import interval

Item = dict[str, Any]
LEVEL = 0.05


def good(suite: str, item: Item) -> float | None:
    """How good an item's answer is, higher better: 0 or 1, empathy 1 to 5; None: not scored."""
    if suite == "multi_turn":
        return None if item["held"] is None else float(item["held"])
    if suite == "education_format":
        return float(not item["faults"])
    if suite == "empathy":
        return float(item["empathy"])
    return float(item["gold"] == item["chosen"])


def load(folder: Path, suite: str) -> Item:
    """A suite's result. StepError if it is not there or no such result."""
    path = folder / f"{suite}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["kind"] == "suite result"
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise StepError(f"{path}: no suite result ({error}); make eval MODEL=…") from error
    return result


def keyed(result: Item, where: Path) -> dict[tuple[str, str], Item]:
    """Items by subject and id, each once."""
    found = {(item["subject"], item["id"]): item for item in result["items"]}
    if len(found) != len(result["items"]):
        raise StepError(f"{where}: an item occurs twice")
    return found


def answered(first: Path, second: Path, suite: str) -> list[tuple[tuple[str, str], Item, Item]]:
    """What both models answered in words: key and both items, in the order of the keys."""
    before, after = (keyed(load(folder, suite), folder) for folder in (first, second))
    shared = sorted(before.keys() & after.keys())
    return [(key, before[key], after[key]) for key in shared if "answer" in before[key]]


def compare(suite: str, a: Path, b: Path) -> Item:
    """The paired difference B - A on a suite.

    StepError if they were not asked the same: other items, prompts or protocol.
    """
    first, second = load(a, suite), load(b, suite)
    before, after = keyed(first, a), keyed(second, b)
    if before.keys() != after.keys():
        only = len(before.keys() ^ after.keys())
        raise StepError(f"{suite}: {a} and {b} differ in {only} items; ask both the same")
    same = ("asked", "prompt", "system_prompt", "tasks", "shots")
    for what in same:
        if first["protocol"].get(what) != second["protocol"].get(what):
            raise StepError(f"{suite}: {a} and {b} were asked differently: {what}")
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key, item in before.items():
        was, became = good(suite, item), good(suite, after[key])
        if was is not None and became is not None:
            whole = key[1].split("/")[0] if suite == "multi_turn" else f"{key[0]} {key[1]}"
            pairs[whole].append((was, became))
    units = [np.array(values) for values in pairs.values()]

    def difference(drawn: Any) -> float:
        values = np.concatenate([units[i] for i in drawn])
        return float((values[:, 1] - values[:, 0]).mean())

    values = np.concatenate(units)
    figure = interval(len(units), difference)
    found: Item = {
        "n": len(values),
        "a": round(float(values[:, 0].mean()), 4),
        "b": round(float(values[:, 1].mean()), 4),
        "difference": figure["value"],
        "low": figure["low"],
        "high": figure["high"],
    }
    apart = figure["low"] > 0 or figure["high"] < 0
    if suite not in ("empathy", "multi_turn"):
        gained = int(((values[:, 0] == 0) & (values[:, 1] == 1)).sum())
        lost = int(((values[:, 0] == 1) & (values[:, 1] == 0)).sum())
        p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        found |= {"gained": gained, "lost": lost, "mcnemar_p": round(p, 5)}
        apart = p < LEVEL
    better = "better" if found["difference"] > 0 else "worse"
    found["verdict"] = better if apart else "not distinguishable"
    return found


def compare_all(a: Path, b: Path) -> dict[str, Item]:
    """All suites that both have. StepError if there is none."""
    suites = [s for s in SUITES if (a / f"{s}.json").exists() and (b / f"{s}.json").exists()]
    if not suites:
        raise StepError(f"{a} and {b} have no suite in common; make eval MODEL=… writes them")
    return {suite: compare(suite, a, b) for suite in suites}


def show(found: dict[str, Item], a: Path, b: Path) -> None:
    """The comparison as a table and a line of verdict for each suite."""
    table = Table("suite", "n", "A", "B", "B - A (95 % CI)", "McNemar p", "verdict")
    for suite, f in found.items():
        colour = {"better": "green", "worse": "red"}.get(f["verdict"], "default")
        table.add_row(
            suite,
            str(f["n"]),
            f"{f['a']:.3f}",
            f"{f['b']:.3f}",
            f"{f['difference']:+.3f} ({f['low']:+.3f} to {f['high']:+.3f})",
            "-" if "mcnemar_p" not in f else f"{f['mcnemar_p']:.4f}",
            f"[{colour}]{f['verdict']}",
        )
    console = Console(width=110)
    console.print(f"A {a}\nB {b}")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("a", type=Path, help="folder of suite results")
    parser.add_argument("b", type=Path, help="folder of suite results")
    parser.add_argument("--out", type=Path, help="the comparison as JSON")
    parser.add_argument("--gate", action="store_true", help="fail on a drop that is not accepted")
    parser.add_argument("--accept", default="", help="suites whose drop is accepted, by name")
    args = parser.parse_args()
    found = compare_all(args.a, args.b)
    accepted = {name for name in args.accept.split(",") if name}
    if unknown := accepted - SUITES.keys():
        raise StepError(f"--accept: no suite {', '.join(sorted(unknown))}")
    show(found, args.a, args.b)
    if args.out:
        write_json(args.out, {"a": str(args.a), "b": str(args.b), "suites": found})
    dropped = [s for s, f in found.items() if f["verdict"] == "worse" and s not in accepted]
    if dropped and args.gate:
        raise StepError(f"worse on {', '.join(dropped)}; accept by name with --accept, or mend it")
    return 0


if __name__ == "__main__":
    run_step(main)
