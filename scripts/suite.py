"""Ask a GGUF a list of prompts and keep every answer: what the evaluations have in common.

Same system prompt, greedy decoding and token limit for every model; an interrupted run goes on
where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import track
from scipy.stats import binomtest

from medalign import gguf_model
from medalign.artifacts import (
    manifest,
    read_jsonl,
    remove,
    require_file,
    sha256,
    write_json,
)
from medalign.build_base import gguf_fields

Item = dict[str, Any]
Score = Callable[[Item, gguf_model.Answer], dict[str, Any]]  # a row and its answer → what it scores


def rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its n and 95 % Wilson interval (scipy.stats.binomtest)."""
    if n == 0:
        return {"k": 0, "n": 0, "rate": None, "low": None, "high": None}
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return {
        "k": hits,
        "n": n,
        "rate": round(hits / n, 4),
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
    }


def told(result: dict[str, Any]) -> str:
    """A rate as a line tells it."""
    if result["rate"] is None:
        return "0/0"
    interval = f"95 % CI {result['low']:.1%}-{result['high']:.1%}"
    return f"{result['k']}/{result['n']} ({result['rate']:.1%}, {interval})"


def kept(name: str, row: Item, answer: gguf_model.Answer, score: Score) -> Item:
    """What a result keeps of a row of the set `name` and its answer."""
    return {"set": name, **score(row, answer), **dataclasses.asdict(answer)}


def ask(
    kind: str,
    model: Path,
    out: Path,
    rows: list[tuple[str, Item]],
    score: Score,
    summary: Callable[[list[Item]], dict[str, Any]],
    *,
    system: str,
    max_tokens: int,
    inputs: dict[str, Path],
) -> dict[str, Any]:
    """Ask `model` all rows (set, row with id and prompt); write the result to `out`, return it.

    score: what is kept of a row and its answer. summary: all figures of a set's items.
    inputs: files whose digests the result carries.
    """
    began = time.monotonic()
    require_file(model, "make gguf writes it")
    settings = {"system_prompt": system, "temperature": 0.0, "max_tokens": max_tokens}
    identity = json.dumps({"model": sha256(model), **settings})
    progress = out.with_suffix(".partial.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    done: dict[tuple[str, str, str], Item] = {}
    if progress.exists():
        items = read_jsonl(progress) if progress.read_bytes().endswith(b"\n") else []
        done = {(i["set"], i["id"], i["prompt"]): i for i in items if i["of"] == identity}
    known = [done.get((name, row["id"], row["prompt"])) for name, row in rows]
    chats = [
        [{"role": "system", "content": system}, {"role": "user", "content": row["prompt"]}]
        for (_, row), item in zip(rows, known, strict=True)
        if item is None
    ]
    answers = gguf_model.ask_all(model, chats, max_tokens)
    items = []
    with progress.open("w", encoding="utf-8") as file:
        for (name, row), item in track(zip(rows, known, strict=True), model.name, len(rows)):
            if item is None:
                item = kept(name, row, next(answers), score)
            file.write(json.dumps({**item, "of": identity}, ensure_ascii=False) + "\n")
            file.flush()
            items.append({k: v for k, v in item.items() if k != "of"})
    sets = list(dict.fromkeys(name for name, _ in rows))
    template = gguf_fields(model).get("tokenizer.chat_template", "")
    result = {
        **manifest(
            kind,
            {"model": model, **inputs},
            began,
            settings=settings,
            template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        ),
        "scores": {s: summary([i for i in items if i["set"] == s]) for s in sets},
        "items": items,
    }
    write_json(out, result)
    remove(progress)
    return result
