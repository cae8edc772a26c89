"""Silver preference pairs, built from the sources of the mix: right against wrong in one form.

    python scripts/silver_pairs.py --out build/silver/silver.jsonl --accept share-alike

multiple_choice, abstract_question: silver_choices.py. question_answer: silver_answers.py. The rows:
silver_rows.py. data/preferences/silver.yaml says how many and within which limits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from medalign import build_mix, mix_stages, sources
from medalign.artifacts import ROOT, StepError, manifest, run_step, sha256, write_json, write_jsonl
from medalign.convert_rows import Unusable
from medalign.decontaminate import Evaluations, read_items
from medalign.silver_answers import answers
from medalign.silver_choices import choices, decisions
from medalign.silver_rows import (
    SILVER,
    Row,
    Sides,
    SilverSettings,
    choose_sources,
    collect,
    held,
    length_ratio,
    repeated,
    settings,
)
from medalign.sources import Source


def build(
    s: SilverSettings, accept: set[str], work: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pairs of all sources that can be used here, and the funnel.

    accept: terms to use besides open ones. work: a folder for what lies on disk while it runs.
    Funnel, by source: rows read = used (those that make pairs) + dropped, by reason; pairs made +
    pairs_dropped = pairs tried; held: places of the evaluation rows that were hit, with counts.
    StepError unless that adds up.
    """
    used, _ = choose_sources(s, accept)
    funnel: dict[str, Any] = {
        source.name: {
            "rows": 0, "used": 0, "tried": 0, "pairs": 0,
            "dropped": Counter(), "pairs_dropped": Counter(), "held": Counter(),
        }
        for source in used
    }  # fmt: skip
    if not used:
        return [], funnel
    sets, limits = build_mix.evaluations(), mix_stages.settings().decontamination
    rows = [row for source in used for row in collect(source, s, funnel[source.name])]
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = repeated(rows, Path(folder))
    for n, reason in out.items():
        funnel[rows[n].source.name]["dropped"][reason] += 1
    rows = [row for n, row in enumerate(rows) if n not in out]
    index = Evaluations(
        *read_items(sets), limits.coverage, limits.least_information, limits.similarity
    )
    hits = held(rows, index)
    for n, place in hits.items():
        funnel[rows[n].source.name]["dropped"][sources.HELD] += 1
        funnel[rows[n].source.name]["held"][place] += 1
    rows = [row for n, row in enumerate(rows) if n not in hits]
    pairs: list[dict[str, Any]] = []
    for source in used:
        own = [row for row in rows if row.source is source]
        pairs += paired(source, own, s, funnel[source.name])
    for name, line in funnel.items():
        if (
            line["rows"] != line["used"] + line["dropped"].total()
            or line["tried"] != line["pairs"] + line["pairs_dropped"].total()
        ):
            raise StepError(f"{name}: rows in and out do not add up: {line}")
    return pairs, {name: plain(line) for name, line in funnel.items()}


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """A funnel's line without Counters, the most frequent reason first."""
    return {k: dict(v.most_common()) if isinstance(v, Counter) else v for k, v in line.items()}


def paired(
    source: Source, rows: list[Row], s: SilverSettings, entry: dict[str, Any]
) -> list[dict[str, Any]]:
    """The pairs of one source; rows, tries and drops are counted in its line of the funnel."""
    sides: dict[int, list[Sides]] = {}
    if source.task == "question_answer":
        sides = answers(rows, s, entry["dropped"])
    else:
        make = choices if source.task == "multiple_choice" else decisions
        for n, row in enumerate(rows):
            try:
                sides[n] = make(row, s)
            except Unusable as error:
                entry["dropped"][str(error)] += 1
    pairs: list[dict[str, Any]] = []
    for n, found in sides.items():
        before = len(pairs)
        for suffix, chosen, rejected in found:
            entry["tried"] += 1
            if not s.ratio[0] <= length_ratio(chosen, rejected) <= s.ratio[1]:
                entry["pairs_dropped"]["lengths differ"] += 1
                continue
            row = rows[n]
            pairs.append(
                {
                    "id": f"{row.id}:{suffix}",
                    "category": "silver",
                    "kind": source.task,
                    "source": source.name,
                    "place": row.place,
                    "prompt": row.prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "license": source.license,
                }
            )
        entry["used"] += len(pairs) > before
        entry["dropped"]["no pair of like length"] += len(pairs) == before
    entry["pairs"] = len(pairs)
    entry["dropped"] += Counter()  # without zeros
    return pairs


def mean_ratios(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean words of chosen / rejected, by kind."""
    of = defaultdict(list)
    for pair in pairs:
        of[pair["kind"]].append(length_ratio(pair["chosen"], pair["rejected"]))
    return {kind: round(fmean(found), 3) for kind, found in of.items()}


def show(funnel: dict[str, Any], ratios: dict[str, float], left_out: dict[str, str]) -> None:
    """Print the funnel."""
    table = Table("source", "rows", "used", "pairs", "dropped, by reason", title="Silver pairs")
    for name, line in funnel.items():
        reasons = [f"{k} {n:,}" for k, n in line["dropped"].items()]
        reasons += [f"pairs: {k} {n:,}" for k, n in line["pairs_dropped"].items()]
        numbers = (f"{line[key]:,}" for key in ("rows", "used", "pairs"))
        table.add_row(name, *numbers, ", ".join(reasons))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", highlight=False, soft_wrap=True)
    for kind, ratio in ratios.items():
        print(f"{kind}: chosen / rejected words {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/silver/silver.jsonl")
    parser.add_argument("--accept", default="", help="terms to use besides open ones")
    args = parser.parse_args()
    began, accept = time.monotonic(), set(filter(None, args.accept.split(",")))
    s = settings(SILVER)
    used, left_out = choose_sources(s, accept)
    pairs, funnel = build(s, accept, args.out.parent)
    ratios = mean_ratios(pairs)
    facts_at = args.out.with_suffix(".manifest.json")
    facts_at.unlink(missing_ok=True)  # it tells of what is now replaced
    write_jsonl(args.out, pairs)
    inputs = {source.name: file for source in used if (file := source.file()) is not None}
    facts = manifest(
        "silver pairs",
        {"settings": SILVER, "mix": mix_stages.MIX, "declaration": sources.SOURCES, **inputs},
        began,
        seed=s.seed,
        accept=sorted(accept),
        rows=len(pairs),
        funnel=funnel,
        mean_ratio=ratios,
        left_out=left_out,
        outputs={args.out.name: sha256(args.out)},
    )
    write_json(facts_at, facts)
    if not used:
        print(f"no source can be used here, {args.out} is empty: " + "; ".join(
            f"{name}: {why}" for name, why in left_out.items()
        ))  # fmt: skip
        return
    show(funnel, ratios, left_out)
    print(f"{len(pairs):,} silver pairs: {args.out}")


if __name__ == "__main__":
    run_step(main)
