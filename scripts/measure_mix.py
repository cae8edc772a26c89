"""Plant copies and evaluation questions among training rows, and count what each method finds.

    python scripts/measure_mix.py --out docs/results/mix-methods.json     (make mix-measure)

Copies of rows: exact, in capitals, in lower case, 10 and 20 % of the words replaced, and, for rows
of this project, paraphrases (tests/fixtures/paraphrases.jsonl). Evaluation rows hidden in training
rows: as they are, options shuffled, lower case, 10 and 20 % of the words replaced, each as the
question and in the middle of another text. Rows known to be clean: those written for this project,
and MedQA's development split against its test split.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from medalign import near_duplicates, semantic_duplicates, sources
from medalign.artifacts import ROOT, manifest, read_jsonl, run_step, write_json
from medalign.build_mix import evaluations
from medalign.clean_text import clean
from medalign.convert_rows import LETTERS, convert, option_list, turn
from medalign.decontaminate import Evaluations, Hit, read_items
from medalign.evaluate_format import rate
from medalign.mix_stages import MIX, Settings, settings, turns

PARAPHRASES = ROOT / "tests/fixtures/paraphrases.jsonl"
SEED = 1
Row = dict[str, Any]


def replaced(text: str, share: float, vocabulary: list[str], rng: random.Random) -> str:
    """A text with this share of its words, at least one, replaced by others."""
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if any(c.isalnum() for c in part)]
    for i in rng.sample(places, max(1, round(share * len(places)))):
        parts[i] = rng.choice(vocabulary)
    return "".join(parts)


def row_of(question: str, answer: str) -> Row:
    """A row of the mix with nothing but its conversation."""
    return {"messages": turn(question, answer)}


def changed(row: Row, how: Callable[[str], str]) -> Row:
    """A copy of a row with each turn changed."""
    kept = [m for m in row["messages"] if m["role"] != "system"]
    return {"messages": [{**m, "content": how(m["content"])} for m in kept]}


def both(rows: list[Row]) -> tuple[semantic_duplicates.Vectors, semantic_duplicates.Vectors]:
    """Vectors of what is asked and of the last answer."""
    said = [turns(row) for row in rows]
    asked, told = ["\n".join(t[:-1]) for t in said], [t[-1] for t in said]
    return semantic_duplicates.vectors(asked), semantic_duplicates.vectors(told)


def found_by(
    s: Settings, originals: list[Row], copies: list[Row], folder: Path
) -> dict[str, list[bool]]:
    """For each copy whether each method would drop it for its original."""
    near = s.near_duplicates
    rows = [*originals, *copies]
    texts = ["\n".join(turns(row)) for row in rows]
    made = near_duplicates.features(texts, near.permutations, near.bands)
    near_duplicates.save([made], folder, "planted")
    features = near_duplicates.Features(folder, ["planted"])
    order = np.arange(len(rows))
    n = len(originals)

    def own(pairs: np.ndarray) -> list[bool]:
        hit = {(int(a), int(b)) for a, b in pairs}
        return [(i, n + i) in hit for i in range(len(copies))]

    alive = np.ones(len(rows), bool)
    by_band = [p for p, _ in near_duplicates.near_pairs(features, order, alive, near.similarity)]
    within = semantic_duplicates.pairs_within(*both(rows), s.semantic_duplicates.similarity)
    by_meaning = [p for p, _ in within]
    return {
        "exact": own(near_duplicates.exact_pairs(features, order)),
        "MinHash": own(np.concatenate([*by_band, np.empty((0, 2), np.int64)])),
        "meaning": own(np.concatenate([*by_meaning, np.empty((0, 2), np.int64)])),
    }


def copies(rows: list[Row], s: Settings, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Recall of each method by kind of copy, and what it drops of rows that are all different."""
    vocabulary = sorted({w for row in rows for w in " ".join(turns(row)).split() if w.isalpha()})
    kinds: dict[str, Callable[[str], str]] = {
        "exact": lambda text: text,
        "capitals": str.upper,
        "lower case, other spacing": lambda text: text.lower().replace(" ", "  "),
        "10 % of words replaced": lambda text: replaced(text, 0.1, vocabulary, rng),
        "20 % of words replaced": lambda text: replaced(text, 0.2, vocabulary, rng),
    }
    table = {}
    for kind, how in kinds.items():
        table[kind] = found_by(s, rows, [changed(row, how) for row in rows], folder)
    return {
        kind: {m: rate(sum(v), len(v)) for m, v in found.items()} for kind, found in table.items()
    }


def paraphrases(s: Settings, folder: Path) -> dict[str, Any]:
    """Recall of each method on rows of this project written again in other words."""
    by_id = {}
    for path in ("data/education/train.jsonl", "data/preferences/gold.jsonl"):
        for row in read_jsonl(ROOT / path):
            by_id[row["id"]] = row_of(row["prompt"], row.get("answer") or row["chosen"])
    again = read_jsonl(PARAPHRASES)
    originals = [by_id[row["id"]] for row in again]
    found = found_by(s, originals, [row_of(r["question"], r["answer"]) for r in again], folder)
    return {m: rate(sum(v), len(v)) for m, v in found.items()}


def different(rows: list[Row], s: Settings, folder: Path) -> dict[str, Any]:
    """Of rows known to be different, how many each method would drop."""
    near = s.near_duplicates
    texts = ["\n".join(turns(row)) for row in rows]
    near_duplicates.save(
        [near_duplicates.features(texts, near.permutations, near.bands)], folder, "different"
    )
    features = near_duplicates.Features(folder, ["different"])
    order = np.arange(len(rows))
    alive = np.ones(len(rows), bool)
    found = {"exact": [near_duplicates.exact_pairs(features, order)]}
    found["MinHash"] = [
        p for p, _ in near_duplicates.near_pairs(features, order, alive, near.similarity)
    ]
    within = semantic_duplicates.pairs_within(*both(rows), s.semantic_duplicates.similarity)
    found["meaning"] = [p for p, _ in within]
    return {
        method: rate(len({int(b) for p in pairs for b in p[:, 1]}), len(rows))
        for method, pairs in found.items()
    }


def exam(dataset: sources.Dataset, row: Row, shuffled: random.Random | None) -> str:
    """An evaluation row as it would stand in a training row."""
    c = sources.columns(dataset)
    given = sources.take(row, c["options"]) if "options" in c else []
    options = [clean(option) for option in option_list(given)] if given else []
    if shuffled:
        shuffled.shuffle(options)
    listed = "\n".join(f"{LETTERS[i]}. {o}" for i, o in enumerate(options))
    return "\n\n".join([clean(str(row[str(c["question"])])), listed]).strip()


def contamination(
    held: list[sources.Dataset],
    found: Evaluations,
    hosts: list[Row],
    per_set: int,
    rng: random.Random,
) -> dict[str, Any]:
    """Recall on hidden evaluation rows by kind, by wording and by meaning together."""
    vocabulary = sorted({w for row in hosts for w in " ".join(turns(row)).split() if w.isalpha()})
    planted: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    for dataset in held:
        rows = [
            (place, row)
            for _, place, row in sources.rows(dataset)
            if not isinstance(row, sources.Fault)
        ]
        for place, row in rng.sample(rows, min(per_set, len(rows))):
            kinds: dict[str, Callable[[str], str]] = {
                "verbatim": str,
                "options shuffled": str,
                "lower case": str.lower,
                "10 % of words replaced": lambda text: replaced(text, 0.1, vocabulary, rng),
                "20 % of words replaced": lambda text: replaced(text, 0.2, vocabulary, rng),
            }
            for kind, how in kinds.items():
                if kind == "options shuffled" and "options" not in sources.columns(dataset):
                    continue
                text = how(exam(dataset, row, rng if kind == "options shuffled" else None))
                host, other = rng.sample(hosts, 2)
                asked = row_of(text, turns(host)[-1])
                inside = row_of(
                    f"{turns(host)[0]}\n\n{text}\n\n{turns(other)[0]}", turns(other)[-1]
                )
                planted[kind].append((f"{dataset.name}: {place}", asked))
                if "options" in sources.columns(dataset):
                    planted[f"{kind}, in another text"].append((f"{dataset.name}: {place}", inside))
    table = {}
    for kind, rows in planted.items():
        hits = found.hits([row for _, row in rows])
        table[kind] = {
            "found": rate(sum(hit is not None for hit in hits), len(hits)),
            "missed": [place for (place, _), hit in zip(rows, hits, strict=True) if hit is None][
                :10
            ],
        }
    return table


def clean_rows(declared: list[sources.Source]) -> dict[str, list[Row]]:
    """Rows known to hold no evaluation row, by where they come from."""
    own = [*read_jsonl(ROOT / "data/education/train.jsonl")]
    gold = read_jsonl(ROOT / "data/preferences/gold.jsonl")
    rows = {
        "education answers": [row_of(r["prompt"], r["answer"]) for r in own],
        "gold preference answers": [row_of(r["prompt"], r["chosen"]) for r in gold],
    }
    for source in declared:
        if source.name in ("medication-safety", "edge-cases", "medqa-dev") and not sources.missing(
            source
        ):
            read = (row for _, _, row in sources.rows(source))
            rows[source.name] = [
                {"messages": convert(source, row).messages} for row in read if isinstance(row, dict)
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-set", type=int, default=100, help="rows of each evaluation to hide")
    args = parser.parse_args()
    began = time.monotonic()
    rng, s = random.Random(SEED), settings(MIX)
    declared, _ = sources.load()
    held = evaluations()
    d = s.decontamination
    found = Evaluations(*read_items(held), d.coverage, d.least_information, d.similarity)
    known = clean_rows(declared)
    flat = [row for rows in known.values() for row in rows]
    false: dict[str, Any] = {}
    hits: list[tuple[str, Row, Hit]] = []
    for name, rows in known.items():
        of = list(zip(rows, found.hits(rows), strict=True))
        hits += [(name, row, hit) for row, hit in of if hit is not None]
        false[name] = rate(sum(hit is not None for _, hit in of), len(of))
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "copies": copies(rng.sample(flat, min(1000, len(flat))), s, Path(folder), rng),
            "paraphrases": paraphrases(s, Path(folder)),
            "different rows dropped": different(flat, s, Path(folder)),
        }
    result["contamination"] = contamination(held, found, flat, args.per_set, rng)
    result["clean rows dropped"] = false
    result["clean rows dropped, all"] = rate(len(hits), len(flat))
    # Places only: the rows themselves are others' and stay where they are.
    result["which"] = [
        {"from": name, "evaluation": hit.place, "method": hit.method, "value": hit.value}
        for name, _, hit in hits
    ]
    facts = manifest("mix methods", {"settings": MIX}, began, seed=SEED, **result)
    write_json(args.out, facts)
    show(facts)


def show(facts: dict[str, Any]) -> None:
    """Print the tables."""

    def cell(r: dict[str, Any]) -> str:
        return f"{r['rate']:.1%} ({r['k']}/{r['n']})"

    console = Console(width=130)
    table = Table("planted copy", "exact", "MinHash", "meaning", title="Duplicates found")
    for kind, found in {**facts["copies"], "paraphrase": facts["paraphrases"]}.items():
        table.add_row(kind, *(cell(found[m]) for m in ("exact", "MinHash", "meaning")))
    table.add_section()
    different_ = facts["different rows dropped"]
    table.add_row(
        "different rows (false)", *(cell(different_[m]) for m in ("exact", "MinHash", "meaning"))
    )
    console.print(table)
    table = Table("hidden evaluation row", "found", title="Contamination found")
    for kind, found in facts["contamination"].items():
        table.add_row(kind, cell(found["found"]))
    table.add_section()
    for name, found in facts["clean rows dropped"].items():
        table.add_row(f"{name} (false)", cell(found))
    console.print(table)


if __name__ == "__main__":
    run_step(main)
