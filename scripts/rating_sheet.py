"""Blind A/B ratings by people: answers of two models → sheets → preferences and agreement.

    python scripts/rating_sheet.py --first A --second B --suite empathy --out build/rating
    python scripts/rating_sheet.py --import-from anna.csv --import-from ben.csv

Writes sheet.csv, sheet.html (the same, to click through offline; it saves a CSV) and key.json,
which says whose answer stood where and is not for the raters. Which model comes left is drawn item
by item.
On import: the share that prefers the second model (ties apart, Wilson interval, sign test by item),
and the agreement of the raters (Cohen's kappa of each two).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from medalign.artifacts import StepError, run_step, sha256, write_json, written_whole
from medalign.compare_results import answered
from medalign.pages import fill
from medalign.review_sheet import read_sheet, write_sheet
from medalign.suite import rate, told

TEMPLATE = Path(__file__).with_name("rating_sheet.html.jinja")
CHOICES = ("left", "right", "tie")
COLUMNS = ("number", "prompt", "left", "right", "better", "rater", "comment")
Facts = dict[str, Any]


def export(first: Path, second: Path, suite: str, out: Path, n: int, seed: int) -> int:
    """Write the sheet of at most `n` items, drawn by `seed`. Returns how many."""
    both = [
        (key, a["prompt"], (a["answer"], b["answer"]))
        for key, a, b in answered(first, second, suite)
        if a["answer"] != b["answer"]
    ]
    if not both:
        raise StepError(f"{suite}: no item both answered in words, and differently")
    draw = random.Random(seed)
    lines, key = [], []
    for number, (item, prompt, answers) in enumerate(draw.sample(both, min(n, len(both))), 1):
        swapped = draw.random() < 0.5
        left, right = reversed(answers) if swapped else answers
        lines.append({"number": number, "prompt": prompt, "left": left, "right": right})
        key.append({"number": number, "item": list(item), "left": "second" if swapped else "first"})
    out.mkdir(parents=True, exist_ok=True)
    write_sheet(out / "sheet.csv", COLUMNS, lines)
    html = fill(TEMPLATE, lines=lines, suite=suite, columns=COLUMNS, choices=CHOICES)
    with written_whole(out / "sheet.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    paths = {"first": first / f"{suite}.json", "second": second / f"{suite}.json"}
    models = {name: {"result": str(p), "sha256": sha256(p)} for name, p in paths.items()}
    write_json(out / "key.json", {"suite": suite, "seed": seed, "models": models, "items": key})
    return len(lines)


def ratings(sheet: Path, known: set[int]) -> tuple[str, dict[int, str]]:
    """A rater's name and choices by number. StepError names the line of what is wrong."""
    names, found = set(), {}
    for where, line in read_sheet(sheet, {"number", "better", "rater"}):
        better = (line["better"] or "").strip().lower()
        if not better:
            continue
        if better not in CHOICES:
            raise StepError(f"{where}: better is one of {', '.join(CHOICES)}, not {better!r}")
        number = (line["number"] or "").strip()
        if not number.isdigit() or int(number) not in known or int(number) in found:
            raise StepError(f"{where}: number {number!r} is not on the sheet, or twice")
        if not (name := (line["rater"] or "").strip()):
            raise StepError(f"{where}: a rating without a rater")
        names.add(name)
        found[int(number)] = better
    if len(names) != 1:
        raise StepError(f"{sheet}: one rater a sheet, here {len(names)}")
    return names.pop(), found


def unblinded(choice: str, left: str) -> str:
    """Whose answer a choice prefers: first, second or tie."""
    if choice == "tie":
        return "tie"
    other = {"first": "second", "second": "first"}[left]
    return left if choice == "left" else other


def summary(sheets: list[Path], key: Path) -> Facts:
    """What the raters of `sheets` prefer, and how far they agree."""
    places = {item["number"]: item["left"] for item in json.loads(key.read_text())["items"]}
    raters: dict[str, dict[int, str]] = {}
    for sheet in sheets:
        name, found = ratings(sheet, set(places))
        if name in raters:
            raise StepError(f"{sheet}: {name} has rated in another sheet already")
        raters[name] = {n: unblinded(choice, places[n]) for n, choice in found.items()}
    votes: dict[int, list[str]] = defaultdict(list)
    for found in raters.values():
        for number, choice in found.items():
            votes[number].append(choice)
    # An item counts once, for whom most of its raters prefer: raters of one item are no new items.
    majority: Counter[str] = Counter()
    for of_item in votes.values():
        tally = Counter(of_item)
        lead = tally["second"] - tally["first"]
        majority["second" if lead > 0 else "first" if lead < 0 else "tie"] += 1
    decided = majority["first"] + majority["second"]
    agreement = {}
    for a, b in itertools.combinations(sorted(raters), 2):
        shared = sorted(raters[a].keys() & raters[b].keys())
        ours, theirs = [raters[a][n] for n in shared], [raters[b][n] for n in shared]
        same = sum(x == y for x, y in zip(ours, theirs, strict=True))
        one = len(set(ours) | set(theirs)) < 2
        kappa = None if one else round(float(cohen_kappa_score(ours, theirs)), 3)
        agreement[f"{a}, {b}"] = {"same": rate(same, len(shared)), "kappa": kappa}
    return {
        "raters": {name: len(found) for name, found in raters.items()},
        "items": len(votes),
        "ties": majority["tie"],
        "second_preferred": rate(majority["second"], decided),
        "sign_test_p": float(binomtest(majority["second"], decided).pvalue) if decided else 1.0,
        "left_chosen": rate(
            sum(places[n] == c for f in raters.values() for n, c in f.items()),
            sum(c != "tie" for f in raters.values() for c in f.values()),
        ),
        "agreement": agreement,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=Path, help="folder of suite results")
    parser.add_argument("--second", type=Path, help="folder of suite results")
    parser.add_argument("--suite", default="empathy")
    parser.add_argument("--out", type=Path, default=Path("build/rating"))
    parser.add_argument("--n", type=int, default=60, help="items at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--import-from", type=Path, action="append", default=[])
    parser.add_argument("--key", type=Path, default=Path("build/rating/key.json"))
    args = parser.parse_args()
    if args.import_from:
        found = summary(args.import_from, args.key)
        print(f"second preferred: {told(found['second_preferred'])}, ties {found['ties']}")
        for pair, how in found["agreement"].items():
            print(f"{pair} agree: {told(how['same'])}, kappa {how['kappa']}")
        write_json(args.key.with_name("ratings.json"), found)
    elif args.first and args.second:
        n = export(args.first, args.second, args.suite, args.out, args.n, args.seed)
        print(f"{args.out}/sheet.html, sheet.csv: {n} items; key.json is not for the raters")
    else:
        raise StepError("--first and --second to write a sheet, or --import-from to read some")


if __name__ == "__main__":
    run_step(main)
