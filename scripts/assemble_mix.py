"""The last stage of the mix: shares, train and validation, what was rejected, and the manifest.

Rows are drawn by a hash of seed and id, so that the draw depends on nothing else. Rows that are
near-duplicates of each other, or of one document, go to the same side of train and validation.
The sum of rows that came in and went out is checked on every run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medalign import near_duplicates, sources
from medalign.artifacts import StepError, manifest, sha256, write_json, written_whole
from medalign.mix_stages import MIX, Job, counted, hash_of, reject, too_many

STAGES = ("duplicates", "meanings", "decontaminate")
CHUNK = 5000  # rows in memory


def allocate(size: int | None, shares: dict[str, float], there: dict[str, int]) -> dict[str, int]:
    """Rows to take of each source: `size` by shares; what a source lacks, the others fill up.

    Rounded by largest remainder, ties in the order of the sources. size None: all rows.
    """
    if size is None:
        return dict(there)
    taken: dict[str, int] = {}
    open_ = {name: n for name, n in there.items() if n and shares[name] > 0}
    left = min(size, sum(open_.values()))
    while open_:
        whole = sum(shares[name] for name in open_)
        quota = {name: left * shares[name] / whole for name in open_}
        full = [name for name in open_ if open_[name] <= quota[name]]
        if not full:
            taken |= {name: int(q) for name, q in quota.items()}
            rest = left - sum(int(q) for q in quota.values())
            for name in sorted(quota, key=lambda n: int(quota[n]) - quota[n])[:rest]:
                taken[name] += 1
            break
        for name in full:
            taken[name] = open_.pop(name)
            left -= taken[name]
    return {name: taken.get(name, 0) for name in there}


def groups(job: Job, index: NDArray[Any]) -> NDArray[np.uint64]:
    """[rows] the group of each row: the least hash of an id among the rows it is connected with."""
    order = index["order"].astype(np.int64)
    pairs = [near_duplicates.same_key(index["group"], order, neighbors=0)]
    pairs += [np.load(job.folder / f"related-{stage}.npy") for stage in STAGES[:2]]
    links = np.concatenate(pairs)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), (len(index),) * 2)
    count, component = connected_components(graph, directed=False)
    least = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, component, index["id"])
    return least[component]


def draw(ids: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.float64]:
    """A number from 0 to 1 for each id, the same for the same seed and purpose."""
    salt = np.uint64(hash_of(f"{seed} {purpose}"))
    with np.errstate(over="ignore"):
        mixed = (ids ^ salt) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
    return mixed.astype(np.float64) / 2**64


def dropped_later(job: Job, index: NDArray[Any]) -> Iterator[dict[str, Any]]:
    """Lines of rejected.jsonl for the rows that the stages after collect dropped."""
    for stage in STAGES[:2]:
        with np.load(job.folder / f"out-{stage}.npz") as arrays:
            out = dict(arrays)
        for start in range(0, len(out["rows"]), CHUNK):
            part = slice(start, start + CHUNK)
            rows = job.read(index, out["rows"][part])
            likes = job.read(index, out["like"][part])
            told = zip(rows, likes, out["reason"][part], out["value"][part], strict=True)
            for row, like, reason, value in told:
                evidence = {"like": like["id"], "similarity": round(float(value), 3)}
                yield reject(row, stage, str(reason), evidence)
    for p in range(job.settings.pieces):
        lines = json.loads((job.folder / f"{job.piece(p)}.hits.json").read_text())
        over = [line for line in lines if line["over"]]
        rows = job.read(index, np.array([line["row"] for line in over], np.int64))
        for row, line in zip(rows, over, strict=True):
            evidence = {key: line[key] for key in ("place", "method", "value", "question")}
            yield reject(row, "decontaminate", sources.HELD, evidence)


def write_rows(file: TextIO, job: Job, index: NDArray[Any], numbers: NDArray[np.int64]) -> None:
    """Rows of the mix, in the order of `numbers`."""
    for row in job.read(index, numbers):
        keys = ("id", "source", "topic", "place", "scores", "messages")
        file.write(json.dumps({key: row[key] for key in keys}, ensure_ascii=False) + "\n")


def funnel(
    job: Job, dropped: Counter[tuple[str, str]], index: NDArray[Any], taken: dict[str, Any]
) -> dict[str, Any]:
    """Rows of each source by outcome. StepError unless what came in is what went out."""
    rows, _ = counted(job)
    table = {}
    for source in job.sources:
        count = rows[source.name]
        reasons = {k: n for k, n in sorted(count.items()) if k not in ("read", "collected")}
        for (name, reason), n in sorted(dropped.items()):
            if name == source.name:
                reasons[reason] = reasons.get(reason, 0) + n
        out = taken[source.name]
        table[source.name] = {"read": count["read"], "dropped": reasons, **out}
        if count["read"] != sum(reasons.values()) + out["train"] + out["validation"]:
            raise StepError(f"{source.name}: rows in and out do not add up: {table[source.name]}")
    return table


def assemble(
    data: Any, piece: int, pieces: int, job: Job, out: Path, left_out: dict[str, str]
) -> None:
    """Draw the mix and write train.jsonl, validation.jsonl, rejected.jsonl and manifest.json."""
    began = time.monotonic()
    s, index = job.settings, job.index()
    names = [source.name for source in job.sources]
    alive = np.flatnonzero(job.alive(*STAGES))
    there = Counter(names[i] for i in index["source"][alive].tolist())
    wanted = allocate(s.size, s.shares, {name: there[name] for name in names})
    chance = draw(index["id"], s.seed, "draw")
    chosen, not_drawn = [], []
    for rank, name in enumerate(names):
        rows = alive[index["source"][alive] == rank]
        rows = rows[np.lexsort((index["order"][rows], chance[rows]))]
        chosen.append(rows[: wanted[name]])
        not_drawn.append(np.sort(rows[wanted[name] :]))
    rows = np.concatenate([*chosen, np.empty(0, np.int64)])
    place = draw(index["id"], s.seed, "place")
    rows = rows[np.lexsort((index["order"][rows], place[rows]))]
    aside = draw(groups(job, index), s.seed, "validation")[rows] < s.validation
    split = {"train": rows[~aside], "validation": rows[aside]}
    dropped: Counter[tuple[str, str]] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # it tells of what is now replaced
    with (
        written_whole(out / "rejected.jsonl") as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for p in range(s.pieces):
            with (job.folder / f"{job.piece(p)}.rejected.jsonl").open(encoding="utf-8") as lines:
                shutil.copyfileobj(lines, file)
        for line in dropped_later(job, index):
            dropped[line["source"], line["reason"]] += 1
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for row in job.read(index, np.concatenate([*not_drawn, np.empty(0, np.int64)])):
            dropped[row["source"], "not drawn"] += 1
            line = reject(row, "draw", "not drawn", None)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for name, numbers in split.items():
        with (
            written_whole(out / f"{name}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            write_rows(file, job, index, numbers)
    taken = {
        name: {key: int((index["source"][n] == rank).sum()) for key, n in split.items()}
        for rank, name in enumerate(names)
    }
    _, changes = counted(job)
    inputs = {s.name: f for s in (*job.sources, *job.evaluations) if (f := s.file()) is not None}
    facts = manifest(
        "training mix",
        {"settings": MIX, "declaration": sources.SOURCES, **inputs},
        began,
        work=job.folder.name,
        seed=s.seed,
        funnel=funnel(job, dropped, index, taken),
        left_out=left_out,
        sources={
            source.name: {
                **source.model_dump(include={"hub", "config", "revision", "license", "terms"}),
                "read_from": "local file" if source.file() else "hub",
            }
            for source in (*job.sources, *job.evaluations)
            if not source.path
        },
        compared_by_meaning=not too_many(job),
        changes=dict(sorted(changes.items())),
        rows={name: len(numbers) for name, numbers in split.items()},
        outputs={f"{n}.jsonl": sha256(out / f"{n}.jsonl") for n in (*split, "rejected")},
    )
    write_json(out / "manifest.json", facts)
