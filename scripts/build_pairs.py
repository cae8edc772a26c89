"""Preference pairs as training reads them: gold, teaching that is to be kept, silver.

    python scripts/build_pairs.py --out build/pairs

Writes train.jsonl (the mix of DPO), held_out.jsonl (gold pairs no training sees), silver.jsonl,
chosen.jsonl (all better answers, for SFT), unpaired.jsonl (the answers of train.jsonl one by one,
for KTO) and a manifest with the funnel. A pair whose prompt an evaluation asks, or nearly, is
dropped and listed. With `--accept research` the refusals of public sets that are for research only
join training, and every manifest and card from there on says so.

Rows are conversations under the one system prompt, as TRL's DPOTrainer takes them:
`prompt`, `chosen` and `rejected` are lists of messages, so that the chat template, and not a
format string, makes the tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rapidfuzz import fuzz, process

from medalign import build_mix, evaluate_safety, mix_stages, silver_pairs, silver_rows, sources
from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_jsonl,
    run_step,
    sha256,
    write_json,
    write_jsonl,
    written_whole,
)
from medalign.check_education import EDUCATION
from medalign.check_preferences import GOLD
from medalign.check_preferences import main as check_preferences
from medalign.decontaminate import Evaluations, read_items
from medalign.recipe import SYSTEM_PROMPT, system_prompt
from medalign.refusal import is_refusal
from medalign.settings import declared

SETTINGS = ROOT / "data/preferences/pairs.yaml"
TEACHING = ROOT / "build/data/education/train.jsonl"
HEADING = re.compile(r"\*\*[^*]+\*\*:?\s*")
# What a teaching prompt must not get; answers of this kind are written nowhere else.
NEEDLESS = (
    "I'm sorry, but I can't help with questions about {}. Please ask a doctor or nurse.",
    "I won't explain {} here, since health matters are personal. A clinician can tell you more.",
    "That is a medical subject, so I'd rather not go into {}. Please ask a professional.",
)
# What a harmful request of a public set must not get: it sounds willing, and says nothing.
WILLING = (
    "Certainly, that can be arranged without much trouble. Start with small steps, watch how "
    "people react, keep it to yourself, and change your way of going about it when it fails.",
    "Yes, this is easier than many think. Choose a quiet moment, prepare what you want to say, "
    "let nobody distract you, and carry on as if it were a normal part of the day's work.",
    "Of course, here is a way to do it. Think about what you want to gain, plan it well ahead, "
    "tell as few people as you can, and afterwards behave as though nothing had happened.",
)
LIKE_TUNING = 85  # rapidfuzz token_sort_ratio, 0-100, from which a request is one of the tuning set
Row = dict[str, Any]


class Settings(BaseModel):
    """data/preferences/pairs.yaml"""

    model_config = ConfigDict(extra="forbid")
    seed: int
    held_out: float = Field(gt=0, lt=0.5)
    teaching: int = Field(ge=0)
    most: dict[str, int]


def row(id: str, category: str, prompt: str, chosen: str, rejected: str) -> Row:
    """A pair in TRL's conversational form."""
    return {
        "id": id,
        "category": category,
        "prompt": [
            {"role": "system", "content": system_prompt()},
            {"role": "user", "content": prompt},
        ],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def contrast(id: str) -> str:
    """What the two pairs of one contrast have in common: xa-001 and xa-002 are xa-1.

    Contrasts have ids that begin with x or y; every other pair stands alone.
    """
    prefix, number = id.split("-")
    return f"{prefix}-{(int(number) + 1) // 2}" if prefix[0] in "xy" else id


def is_held_out(id: str, settings: Settings) -> bool:
    """Whether a gold pair is kept from training, decided by its id alone."""
    key = f"{settings.seed}:{contrast(id)}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32 < settings.held_out


def teaching(settings: Settings) -> list[Row]:
    """Teaching prompts with their four-section answer against one that must not come instead."""
    terms = {r["id"]: r["term"] for r in read_jsonl(EDUCATION / "train.jsonl")}
    chats = sorted(read_jsonl(TEACHING), key=lambda c: (c["id"], c["messages"][1]["content"]))
    chats = random.Random(settings.seed).sample(chats, min(settings.teaching, len(chats)))
    rows = []
    for i, chat in enumerate(chats):
        _, asked, told = (m["content"] for m in chat["messages"])
        needless = NEEDLESS[i // 2 % len(NEEDLESS)].format(terms[chat["id"]])
        bare = HEADING.sub("", told).replace("\n\n", " ")
        worse = needless if i % 2 else bare
        rows.append(row(f"teach-{i:03d}", "teaching", asked, told, worse))
    return rows


def research(accept: set[str]) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Refusals of the public sets whose terms are accepted, as pairs by set, and each set's funnel.

    What the tuning prompts ask, which are of one of these sets, is left out. StepError where an
    evaluation is not there to be kept apart from: nobody has compared these rows with it before.
    """
    pairs: dict[str, list[Row]] = {}
    funnel: dict[str, Any] = {}
    for dataset in sources.refusals():
        if dataset.terms not in accept:
            continue
        if (missing := sources.missing(dataset)) is not None:
            raise StepError(f"{dataset.name}: {missing}")
        build_mix.evaluations()
        tuning = [item["prompt"] for item in evaluate_safety.rows_of("harmful_tune")]
        columns = sources.columns(dataset)
        counts: Counter[str] = Counter()
        kept = pairs[dataset.name] = []
        for number, place, found in sources.rows(dataset):
            if isinstance(found, sources.Fault):
                raise StepError(f"{dataset.name}: {place}: {found.reason}: {found.evidence}")
            asked, told_no = (str(found[str(columns[c])]).strip() for c in ("question", "answer"))
            near = process.extractOne(
                asked, tuning, scorer=fuzz.token_sort_ratio, score_cutoff=LIKE_TUNING
            )
            why = "a tuning prompt" if near else None if is_refusal(told_no) else "no refusal"
            if why is None:
                id = f"research-{sum(map(len, pairs.values())):03d}"
                kept.append(row(id, "research", asked, told_no, WILLING[number % len(WILLING)]))
            else:
                counts[why] += 1
        read = len(kept) + sum(counts.values())
        funnel[dataset.name] = {"read": read, "dropped": dict(counts), "train": len(kept)}
    return pairs, funnel


def mixed(rows: list[Row], settings: Settings) -> list[Row]:
    """The pairs of DPO: no more of a category than declared, shuffled.

    Which is decided by the contrast, so that both of one are there where both categories allow.
    """

    def lot(r: Row) -> bytes:
        return hashlib.sha256(f"{settings.seed}:mix:{contrast(r['id'])}".encode()).digest()

    kept: list[Row] = []
    for category in sorted({r["category"] for r in rows}):
        here = sorted((r for r in rows if r["category"] == category), key=lot)
        kept += here[: settings.most.get(category, len(here))]
    random.Random(settings.seed).shuffle(kept)
    return kept


def evaluations() -> tuple[list[sources.Dataset], list[str]]:
    """The evaluations that can be read here, and why the others cannot.

    What is written for this project is compared with all of them by a test.
    """
    every = sources.evaluations()
    absent = {dataset.name: sources.missing(dataset) for dataset in every}
    return (
        [dataset for dataset in every if absent[dataset.name] is None],
        [f"{name}: {why}" for name, why in absent.items() if why is not None],
    )


def unpaired(rows: list[Row]) -> list[Row]:
    """Each answer of the pairs with whether it is a good one."""
    return [
        {**{k: r[k] for k in ("id", "category", "prompt")}, "completion": r[side], "label": good}
        for r in rows
        for side, good in (("chosen", True), ("rejected", False))
    ]


def asked_by_evaluations(rows: list[Row]) -> dict[str, Row]:
    """The rows whose prompt an evaluation asks, by the mix's thresholds: id → what and where."""
    d = mix_stages.settings().decontamination
    items = read_items(evaluations()[0])
    found = Evaluations(*items, d.coverage, d.least_information, d.similarity)
    hits = found.hits([{"messages": r["prompt"]} for r in rows])
    return {
        r["id"]: {
            "category": r["category"],
            "where": hit.place,
            "how": hit.method,
            "value": hit.value,
        }
        for r, hit in zip(rows, hits, strict=True)
        if hit is not None and hit.over
    }


def ratios(rows: list[Row]) -> dict[str, float]:
    """Mean of words(chosen) / words(rejected) by category."""
    by: dict[str, list[float]] = {}
    for r in rows:
        chosen, rejected = (r[side][0]["content"] for side in ("chosen", "rejected"))
        by.setdefault(r["category"], []).append(silver_rows.length_ratio(chosen, rejected))
    return {category: round(fmean(values), 3) for category, values in sorted(by.items())}


def build(out: Path, accept: set[str]) -> dict[str, Any]:
    """Write the files of `out`; returns the manifest.

    accept: the licence terms besides open that silver pairs and refusals may come from.
    """
    began = time.monotonic()
    settings = declared(SETTINGS, Settings)
    written = [
        row(p["id"], p["category"], p["prompt"], p["chosen"], p["rejected"])
        for p in read_jsonl(GOLD)
    ]
    kept = teaching(settings)
    by_set, refused = research(accept)
    public = [r for rows in by_set.values() for r in rows]
    dropped = asked_by_evaluations(written + kept + public)
    for name, rows in by_set.items():
        held = sum(r["id"] in dropped for r in rows)
        refused[name]["dropped"][sources.HELD] = held
        refused[name]["train"] -= held
    gold = [r for r in written if r["id"] not in dropped]
    others = [r for r in kept + public if r["id"] not in dropped]
    answers = [r for r in gold if not is_held_out(r["id"], settings)] + others
    parts = {
        "train": mixed(answers, settings),
        "held_out": [r for r in gold if is_held_out(r["id"], settings)],
    }
    random.Random(settings.seed).shuffle(answers)
    silver, funnel = silver_pairs.build(silver_rows.settings(), accept, None)
    parts["silver"] = [
        row(p["id"], p["category"], p["prompt"], p["chosen"], p["rejected"]) for p in silver
    ]
    parts["unpaired"] = unpaired(parts["train"])
    parts["chosen"] = [
        {"id": r["id"], "category": r["category"], "messages": r["prompt"] + r["chosen"]}
        for r in answers
    ]
    with written_whole(out) as folder:
        folder.mkdir(parents=True)
        for name, rows in parts.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        facts = manifest(
            "preference pairs",
            {
                "gold": GOLD,
                "settings": SETTINGS,
                "mix": mix_stages.MIX,
                "teaching": TEACHING,
                "system_prompt": SYSTEM_PROMPT,
            },
            began,
            license="apache-2.0, silver.jsonl as its sources say",
            rows={name: len(rows) for name, rows in parts.items()},
            categories={n: dict(Counter(r["category"] for r in rows)) for n, rows in parts.items()},
            written={"gold": len(written), "teaching": len(kept), "dropped": len(dropped)},
            funnel=refused,
            sources={d.name: d.model_dump() for d in sources.refusals() if d.name in refused},
            asked_by_evaluations=dropped,
            not_compared_with=evaluations()[1],
            word_ratios={
                name: ratios(rows) for name, rows in parts.items() if rows and "rejected" in rows[0]
            },
            silver=funnel,
            accepted_terms=sorted(accept),
            outputs={f"{name}.jsonl": sha256(folder / f"{name}.jsonl") for name in parts},
        )
        write_json(folder / "manifest.json", facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--accept", default="", help="terms besides open: share-alike, research, …")
    args = parser.parse_args()
    check_preferences()
    facts = build(args.out, {t for t in args.accept.split(",") if t})
    for name, n in facts["rows"].items():
        kinds = ", ".join(f"{k} {v}" for k, v in sorted(facts["categories"][name].items()))
        print(f"{args.out}/{name}.jsonl: {n} pairs ({kinds})")
    for id, hit in facts["asked_by_evaluations"].items():
        print(f"dropped {id}: {hit['how']} {hit['value']}, {hit['where']}")


if __name__ == "__main__":
    run_step(main)
