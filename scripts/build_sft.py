"""Build the education set for training: rows × wordings → chat rows.

    python scripts/build_sft.py --out build/data/education

Each training answer is asked for in several wordings (its own prompt and those of
wordings.jsonl): form must not hang on how the question is put. test.jsonl keeps its prompts.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from medalign.artifacts import (
    manifest,
    read_jsonl,
    run_step,
    sha256,
    write_json,
    write_jsonl,
    written_whole,
)
from medalign.check_education import EDUCATION
from medalign.check_education import main as check_education
from medalign.recipe import SYSTEM_PROMPT, system_prompt

SEED = 0  # the order of the file; a recipe's own seed shuffles again


def chat(prompt: str, answer: str, row: dict[str, Any]) -> dict[str, Any]:
    """One chat row: system, user, assistant, with the id of the row it was made from."""
    messages = [
        {"role": "system", "content": system_prompt()},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    return {"id": row["id"], "category": row["category"], "messages": messages}


def build(out: Path) -> dict[str, Any]:
    """Write train.jsonl, test.jsonl and manifest.json to `out`; returns the manifest."""
    began = time.monotonic()
    source = {split: EDUCATION / f"{split}.jsonl" for split in ("train", "test", "wordings")}
    rows = {name: read_jsonl(path) for name, path in source.items()}
    wordings = {row["id"]: row["wordings"] for row in rows["wordings"]}
    built = {
        "train": [
            chat(prompt, row["answer"], row)
            for row in rows["train"]
            for prompt in [row["prompt"], *wordings.get(row["id"], [])]
        ],
        "test": [chat(row["prompt"], row["answer"], row) for row in rows["test"]],
    }
    random.Random(SEED).shuffle(built["train"])
    with written_whole(out) as folder:
        folder.mkdir()
        for split, chats in built.items():
            write_jsonl(folder / f"{split}.jsonl", chats)
        facts = manifest(
            "education data",
            {**source, "system_prompt": SYSTEM_PROMPT},
            began,
            seed=SEED,
            license="apache-2.0",  # every row was written for this project
            rows={split: len(chats) for split, chats in built.items()},
            examples={split: len({c["id"] for c in chats}) for split, chats in built.items()},
            categories={s: dict(Counter(c["category"] for c in cs)) for s, cs in built.items()},
            outputs={f"{split}.jsonl": sha256(folder / f"{split}.jsonl") for split in built},
        )
        write_json(folder / "manifest.json", facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    check_education()
    facts = build(out)
    print(f"{out}: {facts['rows']['train']} training rows, {facts['rows']['test']} test rows")


if __name__ == "__main__":
    run_step(main)
