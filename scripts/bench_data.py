"""Speed and memory of the mix's global steps, and beside them datatrove's own MinHash.

    python scripts/bench_data.py --out docs/results/bench-data.json            (make bench-data)

Rows are generated from the local sources: a question of one row, and five to nine sentences of
others, so that rows share sentences, as documents of one field do. 5 % are exact copies of an
earlier row, 5 % copies with a tenth of their words replaced. Each measurement is a
process of its own.

datatrove (0.10.1) does the same job on the same files with its defaults: 14 buckets of 8 hashes,
5-grams of words. Recall is counted on the planted copies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from medalign import near_duplicates, semantic_duplicates, sources
from medalign.artifacts import ROOT, StepError, manifest, run_step, write_json
from medalign.build_mix import evaluations, executor, usable
from medalign.convert_rows import Unusable, convert
from medalign.decontaminate import Evaluations, read_items
from medalign.mix_stages import MIX, settings, turns

PIECES = 8
EMBEDDINGS_UP_TO = 200_000
WORKERS = 2
SEED = 7
BATCH = 2000


def generate(folder: Path, rows: int) -> None:
    """Write `rows` rows as PIECES JSONL files: {id, text, copy_of, kind}."""
    rng = random.Random(SEED)
    questions, sentences = [], []
    used, _ = usable(set())
    for source in used:
        for _, _, raw in sources.rows(source):
            try:
                row = {"messages": convert(source, raw).messages} if isinstance(raw, dict) else None
            except Unusable:
                row = None
            if row:
                questions.append(" ".join(turns(row)[0].split())[:200])
                parts = re.split(r"(?<=[.!?])\s+", turns(row)[-1])
                sentences += [part for part in parts if 5 <= len(part.split()) <= 40]
    if len(sentences) < 1000:
        raise StepError(f"{sources.DATA_DIR} must name a folder with the sources to generate from")
    vocabulary = sorted({w for s in sentences[:5000] for w in s.split() if w.isalpha()})
    recent: list[tuple[str, str]] = []
    files = [(folder / f"{p:05d}.jsonl").open("w", encoding="utf-8") for p in range(PIECES)]
    for number in range(rows):
        chance, of, kind = rng.random(), None, None
        if chance < 0.1 and recent:
            of, text = rng.choice(recent)
            kind = "exact" if chance < 0.05 else "edited"
            if kind == "edited":
                words = text.split(" ")
                for i in rng.sample(range(len(words)), max(1, len(words) // 10)):
                    words[i] = rng.choice(vocabulary)
                text = " ".join(words)
        else:
            text = "\n".join(
                [rng.choice(questions), " ".join(rng.choices(sentences, k=rng.randint(5, 9)))]
            )
            recent.append((str(number), text))
            if len(recent) > 20_000:
                recent[rng.randrange(10_000)] = recent.pop()
        line = {"id": str(number), "text": text, "copy_of": of, "kind": kind}
        files[number % PIECES].write(json.dumps(line, ensure_ascii=False) + "\n")
    for file in files:
        file.close()


def texts(folder: Path, piece: int) -> Any:
    """Batches of (ids, texts) of a piece."""
    ids: list[int] = []
    said: list[str] = []
    with (folder / f"{piece:05d}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            ids.append(int(row["id"]))
            said.append(row["text"])
            if len(ids) == BATCH:
                yield ids, said
                ids, said = [], []
    if ids:
        yield ids, said


def sign(data: Any, piece: int, pieces: int, rows: Path, work: Path) -> None:
    """Features of one piece, as the mix makes them."""
    near = settings(MIX).near_duplicates
    found, ids = [], []
    for numbers, said in texts(rows, piece):
        ids += numbers
        found.append(near_duplicates.features(said, near.permutations, near.bands))
    near_duplicates.save(found, work, f"{piece:05d}")
    np.save(work / f"{piece:05d}.ids.npy", np.array(ids))


def match(data: Any, piece: int, pieces: int, rows: Path, work: Path) -> None:
    """Exact and near duplicates over all pieces → dropped.npy, the ids."""
    near = settings(MIX).near_duplicates
    names = [f"{p:05d}" for p in range(PIECES)]
    order = np.concatenate([np.load(work / f"{name}.ids.npy") for name in names])
    found = near_duplicates.Features(work, names)
    out = {int(b) for _, b in near_duplicates.exact_pairs(found, order)}
    alive = np.ones(len(order), bool)
    alive[list(out)] = False
    close = list(near_duplicates.near_pairs(found, order, alive, near.similarity))
    pairs, value = (np.concatenate(parts) for parts in zip(*close, strict=True))
    out |= near_duplicates.keep_first(pairs, value, order).keys()
    np.save(work / "dropped.npy", order[sorted(out)])


def ours(rows: Path, work: Path) -> None:
    """Duplicate removal as the mix does it."""
    make = executor("local", WORKERS, {})
    for stage, tasks in ((sign, PIECES), (match, 1)):
        step = partial(stage, rows=rows, work=work)
        make(pipeline=[step], tasks=tasks, logging_dir=str(work / stage.__name__)).run()


def theirs(rows: Path, work: Path) -> None:
    """Duplicate removal with datatrove's own blocks and defaults."""
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupSignature,
    )  # fmt: skip
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    make, config = executor("local", WORKERS, {}), MinhashConfig()
    reader = JsonlReader(str(rows))
    s, b, r = str(work / "signatures"), str(work / "buckets"), str(work / "remove")
    removed = JsonlWriter(str(work / "removed"), compression=None)
    kept = JsonlWriter(str(work / "kept"), compression=None)
    steps = [
        ([reader, MinhashDedupSignature(s, config=config)], PIECES),
        ([MinhashDedupBuckets(s, b, config=config)], config.num_buckets),
        ([MinhashDedupCluster(b, r, config=config)], 1),
        ([reader, MinhashDedupFilter(r, exclusion_writer=removed), kept], PIECES),
    ]
    for i, (pipeline, tasks) in enumerate(steps):
        make(pipeline=pipeline, tasks=tasks, logging_dir=str(work / f"step{i}")).run()
    ids = [
        int(json.loads(line)["id"])
        for file in (work / "removed").glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    np.save(work / "dropped.npy", np.array(sorted(ids)))


def overlap(data: Any, piece: int, pieces: int, rows: Path, work: Path) -> None:
    """n-gram decontamination of one piece against all evaluations."""
    found: Evaluations = pickle.loads((work / "evaluations").read_bytes())
    hits = 0
    for _, said in texts(rows, piece):
        hashes = near_duplicates.word_hashes([near_duplicates.words(t) for t in said])
        hits += sum(found.by_wording([t], h) is not None for t, h in zip(said, hashes, strict=True))
    (work / f"{piece:05d}.hits").write_text(str(hits))


def ngrams(rows: Path, work: Path) -> None:
    d = settings(MIX).decontamination
    items = read_items(evaluations())
    found = Evaluations(*items, d.coverage, d.least_information, d.similarity)
    (work / "evaluations").write_bytes(pickle.dumps(found))
    step = partial(overlap, rows=rows, work=work)
    executor("local", WORKERS, {})(
        pipeline=[step], tasks=PIECES, logging_dir=str(work / "logs")
    ).run()


def embed(rows: Path, work: Path) -> None:
    """Vectors of all rows, and all pairs compared."""
    batches = (t for p in range(PIECES) for _, t in texts(rows, p))
    split = ([text.partition("\n")[::2] for text in batch] for batch in batches)
    found = [
        [semantic_duplicates.vectors(list(part)) for part in zip(*b, strict=True)] for b in split
    ]
    asked, told = (np.concatenate(parts) for parts in zip(*found, strict=True))
    threshold = settings(MIX).semantic_duplicates.similarity
    n = sum(len(p) for p, _ in semantic_duplicates.pairs_within(asked, told, threshold))
    (work / "pairs").write_text(str(n))


JOBS = {"ours": ours, "datatrove": theirs, "n-grams": ngrams, "embeddings": embed}


def run_job(job: str, rows: Path, size: int) -> dict[str, Any]:
    """Run one job in a process of its own: seconds, rows/s, peak memory in MiB, recall if it drops.

    Memory is what the process and its workers hold for themselves (USS), added up, every 0.5 s.
    """
    with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
        work = Path(folder)
        code = "import sys; from pathlib import Path; from medalign.bench_data import JOBS; "
        code += "JOBS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))"
        began, peak = time.monotonic(), 0
        with (work / "log").open("wb") as log:
            child = psutil.Popen(
                [sys.executable, "-c", code, job, str(rows), str(work)], stdout=log, stderr=log
            )
            while child.poll() is None:
                peak = max(peak, held(child))
                with contextlib.suppress(psutil.TimeoutExpired):
                    child.wait(0.5)
        seconds = time.monotonic() - began
        if child.returncode:
            raise StepError(f"{job}: {(work / 'log').read_text()[-2000:]}")
        facts: dict[str, Any] = {"rows": size, "seconds": round(seconds, 1)}
        facts["rows_per_second"] = round(size / seconds)
        facts["peak_mib"] = round(peak / 2**20)
        if (work / "dropped.npy").exists():
            facts["recall"] = recall(rows, set(np.load(work / "dropped.npy").tolist()))
        return facts


def held(process: psutil.Process) -> int:
    """Bytes that a process and all below it hold for themselves."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_full_info().uss
    return total


def recall(rows: Path, dropped: set[int]) -> dict[str, float]:
    """Share of planted copies that were dropped (or whose original was), and of others dropped."""
    n: dict[str, list[int]] = {"exact": [0, 0], "edited": [0, 0], "others dropped": [0, 0]}

    def planted() -> Iterator[tuple[int, str | None, int | None]]:
        for file in sorted(rows.glob("*.jsonl")):
            with file.open(encoding="utf-8") as lines:
                for row in map(json.loads, lines):
                    of = row["copy_of"]
                    yield int(row["id"]), row["kind"], None if of is None else int(of)

    copied = {of for _, _, of in planted()}
    for number, kind, of in planted():
        if kind:
            n[kind][0] += number in dropped or of in dropped
            n[kind][1] += 1
        elif number not in copied:
            n["others dropped"][0] += number in dropped
            n["others dropped"][1] += 1
    return {kind: round(k / max(1, of), 5) for kind, (k, of) in n.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", default="20000,200000,2000000")
    parser.add_argument("--alternative-up-to", type=int, default=20_000)
    parser.add_argument("--jobs", default=",".join(JOBS), help="the other results in OUT stay")
    args = parser.parse_args()
    began, results, jobs = time.monotonic(), [], args.jobs.split(",")
    if args.out and args.out.exists() and set(jobs) != set(JOBS):
        before = json.loads(args.out.read_text())["results"]
        results = [r for r in before if r["job"] not in jobs]
    (ROOT / "build").mkdir(exist_ok=True)
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
            rows = Path(folder) / "rows"
            rows.mkdir()
            generate(rows, size)
            for job in jobs:
                if job == "datatrove" and size > args.alternative_up_to:
                    continue
                if job == "embeddings" and size > EMBEDDINGS_UP_TO:
                    continue
                results.append({"job": job, **run_job(job, rows, size)})
                print(json.dumps(results[-1]), flush=True)
    facts = manifest("data bench", {"settings": MIX}, began, workers=WORKERS, results=results)
    if args.out:
        write_json(args.out, facts)
    table = Table("job", "rows", "rows/s", "peak MiB", "exact", "edited 10 %", "others dropped")
    for r in results:
        found = (
            [f"{r['recall'][k]:.2%}" for k in ("exact", "edited", "others dropped")]
            if "recall" in r
            else []
        )
        table.add_row(
            r["job"], f"{r['rows']:,}", f"{r['rows_per_second']:,}", f"{r['peak_mib']:,}", *found
        )
    Console(width=110).print(table)
    by = {(r["job"], r["rows"]): r for r in results}
    for (job, size), r in by.items():
        if job == "ours" and ("datatrove", size) in by:
            ratio = by["datatrove", size]["seconds"] / r["seconds"]
            print(f"{size:,} rows: {ratio:.1f} times as fast as datatrove's MinHash")


if __name__ == "__main__":
    run_step(main)
