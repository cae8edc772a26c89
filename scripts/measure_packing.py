"""Tokens used over tokens paid, of every Mistral recipe, with its tokenizer on its data.

    python scripts/measure_packing.py --out docs/results/packing.json

Chats become rows as in training: Axolotl's chat template, rows over sequence_len left out; pairs
as TRL tokenizes them. Where a recipe packs, Axolotl's own sampler packs (first fit of shuffled
rows), and the tokens of batches it drops at the end are counted as lost. Where it does not, rows
are padded to the longest of their micro batch, shuffled; beside it what grouping rows of about one
length would save (transformers' LengthGroupedSampler). A pair pays for the longer of its answers,
twice. Several seeds, each an epoch; the mean is kept. No GPU, no model weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import RandomSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_jsonl,
    require_file,
    run_step,
    write_json,
)
from medalign.pages import markdown
from medalign.prompt_paths import Training
from medalign.recipe import check, local_files, read_yaml

TOKENIZER = ROOT / "build/models/tiny-mistral"  # the real one of Mistral-7B-Instruct-v0.3
SEEDS = (42, 1, 2)
ENOUGH = 0.97  # of a recipe that packs
Lengths = list[tuple[int, ...]]  # of a row: its length, or those of its chosen and rejected


def sft_lengths(config: dict[str, Any]) -> Lengths:
    """Tokens of each chat of the recipe."""
    training = Training(config, TOKENIZER)
    chats = (
        row[dataset["field_messages"]]
        for dataset in config["datasets"]
        for row in read_jsonl(ROOT / dataset["path"])
    )
    return [(len(training.row(chat)[0]),) for chat in chats]


def pair_lengths(config: dict[str, Any]) -> Lengths:
    """Tokens of prompt and chosen, prompt and rejected answer of each pair."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = (ROOT / config["chat_template_jinja"]).read_text(encoding="utf-8")
    rows = [row for dataset in config["datasets"] for row in read_jsonl(ROOT / dataset["path"])]
    texts = [
        tokenizer.apply_chat_template(row["prompt"] + row[answer], tokenize=False)
        for row in rows
        for answer in ("chosen", "rejected")
    ]
    found = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return list(zip(found[::2], found[1::2], strict=True))


def padded(lengths: Lengths, order: Iterable[int], batch: int) -> tuple[int, int]:
    """Tokens used and positions paid for, each batch padded to its longest answer."""
    rows, used, paid = list(order), 0, 0
    for start in range(0, len(rows), batch):
        of = [lengths[i] for i in rows[start : start + batch]]
        used += sum(map(sum, of))
        paid += max(map(max, of)) * sum(map(len, of))
    return used, paid


def orders(lengths: Lengths, batch: int, accumulated: int, seed: int) -> Iterator[list[int]]:
    """An epoch's order of rows: shuffled, then grouped by length over whole steps."""
    random = RandomSampler(lengths, generator=torch.Generator().manual_seed(seed))
    yield list(random)
    grouped = LengthGroupedSampler(
        batch * accumulated,
        lengths=[max(row) for row in lengths],
        generator=torch.Generator().manual_seed(seed),
    )
    yield list(grouped)


def packed(lengths: Lengths, batch: int, sequence: int, seed: int) -> dict[str, float]:
    """Packing by Axolotl's sampler with its defaults, as its trainer calls it.

    A bin is a micro batch: batch x sequence tokens. lost: share of tokens in batches it drops.
    """
    from axolotl.core.training_args_base import AxolotlTrainingMixins
    from axolotl.utils.samplers import MultipackBatchSampler

    sampler = MultipackBatchSampler(
        RandomSampler(lengths, generator=torch.Generator().manual_seed(seed)),
        lengths=[row[0] for row in lengths],
        batch_size=1,
        batch_max_len=batch * sequence,
        group_size=AxolotlTrainingMixins.sample_packing_group_size,
        bin_size=AxolotlTrainingMixins.sample_packing_bin_size,
        drop_last=True,
        num_processes=1,
    )
    bins = [rows for micro in sampler.generate_batches() for rows in micro]
    used, total = sum(lengths[i][0] for rows in bins for i in rows), sum(map(sum, lengths))
    paid = len(bins) * batch * sequence
    return {"used": used / paid, "lost": 1 - used / total, "micro_batches": len(bins)}


def shares(values: list[tuple[int, int]]) -> float:
    """The mean over seeds of tokens used over positions paid for."""
    return statistics.fmean(used / paid for used, paid in values)


def measure(config: dict[str, Any], lengths: Lengths) -> dict[str, Any]:
    """A recipe's efficiency. lengths: of all its rows, those over sequence_len too.

    StepError if no row fits sequence_len.
    """
    limit = config["sequence_len"]
    kept = [row for row in lengths if max(row) <= limit]
    if not kept:
        raise StepError(f"no row of {len(lengths)} fits sequence_len {limit}")
    batch, accumulated = config["micro_batch_size"], config["gradient_accumulation_steps"]
    shuffled, grouped = [], []
    for seed in SEEDS:
        random, by_length = orders(kept, batch, accumulated, seed)
        shuffled.append(padded(kept, random, batch))
        grouped.append(padded(kept, by_length, batch))
    facts: dict[str, Any] = {
        "packs": bool(config.get("sample_packing")),
        "rows": len(lengths),
        "too_long": len(lengths) - len(kept),
        "tokens": sum(map(sum, kept)),
        "mean_length": statistics.fmean(n for row in kept for n in row),
        "padded": shares(shuffled),
        "padded_by_length": shares(grouped),
        "grouping_saves": 1 - shares(shuffled) / shares(grouped),
    }
    if facts["packs"]:
        each = [packed(kept, batch, limit, seed) for seed in SEEDS]
        facts["packed"] = {key: statistics.fmean(e[key] for e in each) for key in each[0]}
        facts["packing_saves"] = 1 - facts["padded"] / facts["packed"]["used"]
    return facts


def table(recipes: dict[str, dict[str, Any]]) -> str:
    """Markdown: what each recipe uses of what it pays for."""
    header = ["recipe", "rows", "tokens a row", "used of paid", "padding", "by length", "saves"]
    lines = []
    for name, r in recipes.items():
        used = r["packed"]["used"] if r["packs"] else r["padded"]
        how = "packed" if r["packs"] else "padded"
        saved = r["packing_saves"] if r["packs"] else r["grouping_saves"]
        what = "packing" if r["packs"] else "grouping"
        lines.append(
            [
                *(name, f"{r['rows'] - r['too_long']}", f"{r['mean_length']:.0f}"),
                *(f"{used:.1%} {how}", f"{1 - r['padded']:.1%}"),
                *(f"{1 - r['padded_by_length']:.1%}", f"{what} {saved:.1%}"),
            ]
        )
    return markdown(header, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("recipes", type=Path, nargs="*", help="default: all of mistral-7b")
    arguments = parser.parse_args()
    began, found, inputs = time.monotonic(), {}, {}
    require_file(TOKENIZER / "tokenizer.json", "make build/models/tiny-mistral/manifest.json")
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    recipes = arguments.recipes or sorted((ROOT / "recipes/mistral-7b").glob("*.yaml"))
    for path in recipes:
        config = read_yaml(path)
        check(path, {**config, "base_model": "made later"})  # its data is what counts
        lengths = (pair_lengths if config.get("rl") else sft_lengths)(config)
        found[path.stem] = measure(config, lengths)
        inputs[path.stem] = path
        inputs |= {v: ROOT / v for k, v in local_files(config).items() if k.startswith("datasets")}
    print(table(found))
    facts = {"seeds": SEEDS, "recipes": found}
    write_json(arguments.out, manifest("packing", inputs, began, **facts))
    short = [n for n, r in found.items() if r["packs"] and r["packed"]["used"] < ENOUGH]
    for name in short:
        print(f"{name}: packs less than {ENOUGH:.0%}; raise sample_packing_bin_size")
    return 1 if short else 0


if __name__ == "__main__":
    run_step(main)
