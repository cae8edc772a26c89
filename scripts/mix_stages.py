"""The stages of the mix: each a function of (data, piece, pieces) that reads and writes files.

    collect        sources → conversations, cleaned and scored, cut into pieces     each piece
    duplicates     exact and near duplicates over all pieces                        one task
    embed          vectors of the rows that are left                                each piece
    meanings       semantic near-duplicates                                         one task
    prepare        an index of all evaluations                                      one task
    decontaminate  rows that hold a row of an evaluation                            each piece
    (scripts/assemble_mix.py puts the mix together)

datatrove (huggingface/datatrove) runs them: on all cores of one machine, on Slurm or on Ray, with
a mark for every finished piece, so that a killed run goes on where it was. The signature is its.
A row's number in the whole is its place in the pieces' index; a stage says who drops out in
`out-<stage>.npz` or, by piece, in `out-<stage>-<piece>.npz`.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medalign import near_duplicates, semantic_duplicates, sources
from medalign.artifacts import ROOT, StepError, write_json, written_whole
from medalign.clean_text import clean, tidy
from medalign.convert_rows import Unusable, convert
from medalign.decontaminate import Evaluations, read_items
from medalign.deidentify import deidentify
from medalign.score_rows import scores
from medalign.settings import declared
from medalign.sources import Dataset, Source

MIX = ROOT / "data/mix.yaml"
BATCH = 2000  # rows held in memory at a time
MARGIN = 0.1  # how far below its threshold a pair is still shown in the report
SHOWN = 20  # pairs on either side of a threshold that the report shows
EMPTY = np.empty((0, 256), np.float16)
INDEX = np.dtype(
    [
        ("order", "u8"),
        ("id", "u8"),
        ("group", "u8"),
        ("source", "u2"),
        ("piece", "u4"),
        ("at", "u8"),
    ]
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Limits(Strict):
    longest_bytes: int
    question_words: tuple[int, int]
    answer_words: tuple[int, int]


class Near(Strict):
    permutations: int = Field(gt=0, le=1024)
    bands: int = Field(gt=0)
    similarity: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def fits(self) -> Near:
        if self.bands > self.permutations:
            raise ValueError("more bands than permutations")
        return self


class Semantic(Strict):
    similarity: float = Field(gt=0, le=1)
    largest: int


class Decontamination(Strict):
    coverage: float = Field(gt=0, le=1)
    least_information: float
    similarity: float = Field(gt=0, le=1)


class Settings(Strict):
    """data/mix.yaml"""

    seed: int
    pieces: int = Field(gt=0)
    rows: Limits
    near_duplicates: Near
    semantic_duplicates: Semantic
    decontamination: Decontamination
    scores: dict[Literal["relevance", "quality"], float]
    size: int | None
    validation: float = Field(ge=0, lt=1)
    shares: dict[str, float]


def settings(path: Path = MIX) -> Settings:
    """The settings as declared. StepError names the field that is wrong."""
    return declared(path, Settings)


@dataclass
class Job:
    """What all stages know: settings, the sources in use, the evaluations, the working folder."""

    folder: Path
    settings: Settings
    sources: list[Source]
    evaluations: list[Dataset]

    def piece(self, number: int) -> str:
        return f"{number:05d}"

    def index(self) -> NDArray[Any]:
        """[rows] of INDEX, over all pieces."""
        names = [self.folder / f"{self.piece(p)}.index.npy" for p in range(self.settings.pieces)]
        return np.concatenate([np.load(name) for name in names])

    def alive(self, *stages: str) -> NDArray[np.bool_]:
        """[rows] that no stage of these has dropped."""
        left = np.ones(len(self.index()), dtype=bool)
        for stage in stages:
            for file in self.folder.glob(f"out-{stage}*.npz"):
                left[np.load(file)["rows"]] = False
        return left

    def read(self, index: NDArray[Any], numbers: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """Rows by their numbers."""
        files = {}
        try:
            for entry in index[numbers]:
                p = int(entry["piece"])
                if p not in files:
                    files[p] = (self.folder / f"{self.piece(p)}.rows.jsonl").open("rb")
                files[p].seek(int(entry["at"]))
                yield json.loads(files[p].readline())
        finally:
            for file in files.values():
                file.close()


def hash_of(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def turns(row: dict[str, Any]) -> list[str]:
    """What is said in a conversation, without the system prompt."""
    return [m["content"] for m in row["messages"] if m["role"] != "system"]


def reject(row: dict[str, Any], stage: str, reason: str, evidence: object) -> dict[str, Any]:
    """A line of rejected.jsonl."""
    facts = {key: row[key] for key in ("source", "id", "place")}
    return {**facts, "stage": stage, "reason": reason, "evidence": evidence}


# --- collect


def check_lengths(messages: list[dict[str, str]], limits: Limits) -> None:
    """Unusable for a turn that is too short or too long, in words."""
    for name, role, (least, most) in (
        ("question", "user", limits.question_words),
        ("answer", "assistant", limits.answer_words),
    ):
        for text in (m["content"] for m in messages if m["role"] == role):
            if not least <= (length := len(text.split())) <= most:
                word = "short" if length < least else "long"
                raise Unusable(f"{name} too {word}", f"{length} words: {text[:200]}")


def made(
    source: Source, raw: dict[str, Any], limits: Limits, changes: Counter[str]
) -> dict[str, Any]:
    """A source's row as a row of the mix. Unusable says why it is none."""
    conversation = convert(source, raw)
    for message in conversation.messages:
        if message["role"] != "system":
            own = source.path is not None
            message["content"] = (
                tidy(message["content"]) if own else clean(message["content"], changes)
            )
    check_lengths(conversation.messages, limits)
    if source.task in ("dialogue_note", "consultation"):
        cleaned = deidentify([m["content"] for m in conversation.messages], changes)
        for message, text in zip(conversation.messages, cleaned, strict=True):
            message["content"] = text
    said = turns({"messages": conversation.messages})
    return {
        "topic": conversation.topic,
        "group": conversation.group,
        "scores": scores(said[0], said[-1]),
        "messages": conversation.messages,
    }


def collect(data: Any, piece: int, pieces: int, job: Job) -> None:
    """Read, convert, clean and score one piece of all sources."""
    name = job.piece(piece)
    limits, near = job.settings.rows, job.settings.near_duplicates
    counts: dict[str, Counter[str]] = {}
    changes: Counter[str] = Counter()
    index: list[tuple[int, ...]] = []
    features: list[dict[str, NDArray[Any]]] = []
    texts: list[str] = []

    def signed() -> None:
        if texts:
            features.append(near_duplicates.features(texts, near.permutations, near.bands))
            texts.clear()

    with (
        (job.folder / f"{name}.rows.jsonl").open("wb") as kept,
        (job.folder / f"{name}.rejected.jsonl").open("w", encoding="utf-8") as rejected,
    ):
        for rank, source in enumerate(job.sources):
            count = counts[source.name] = Counter()
            for number, place, raw in sources.rows(source, piece, pieces, limits.longest_bytes):
                count["read"] += 1
                facts: dict[str, Any] = {"source": source.name, "id": None, "place": place}
                try:
                    if isinstance(raw, sources.Fault):
                        raise Unusable(raw.reason, raw.evidence)
                    column = sources.columns(source).get("id")
                    facts["id"] = f"{source.name}:{sources.key(raw, column) if column else number}"
                    row = {**facts, **made(source, raw, limits, changes)}
                    for score, least in job.settings.scores.items():
                        if not source.path and row["scores"][score] < least:
                            raise Unusable(f"low {score}", row["scores"])
                except (Unusable, KeyError) as error:
                    fault = sources.Fault("missing column", str(error))
                    if isinstance(error, Unusable):
                        fault = error.fault
                    count[fault.reason] += 1
                    line = reject(facts, "collect", fault.reason, fault.evidence)
                    rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                    continue
                count["collected"] += 1
                group = f"{source.name}:{row['group']}" if row["group"] else row["id"]
                order = (rank << 40) | number
                index.append((order, hash_of(row["id"]), hash_of(group), rank, piece, kept.tell()))
                kept.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                texts.append("\n".join(turns(row)))
                if len(texts) == BATCH:
                    signed()
        signed()
    near_duplicates.save(features, job.folder, name)
    np.save(job.folder / f"{name}.index.npy", np.array(index, dtype=INDEX))
    write_json(job.folder / f"{name}.counts.json", {"rows": counts, "changes": changes})


def counted(job: Job) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Rows by source and outcome of collect, and changes by kind, over all pieces."""
    rows: dict[str, Counter[str]] = {s.name: Counter() for s in job.sources}
    changes: Counter[str] = Counter()
    for p in range(job.settings.pieces):
        found = json.loads((job.folder / f"{job.piece(p)}.counts.json").read_text())
        changes.update(found["changes"])
        for name, count in found["rows"].items():
            rows[name].update(count)
    return rows, changes


def check_sources(job: Job) -> None:
    """StepError for a source none of whose rows could be used, or whose labels begin elsewhere."""
    rows, _ = counted(job)
    for source in job.sources:
        count = rows[source.name]
        reasons = {k: n for k, n in count.items() if k not in ("read", "collected")}
        if count["read"] and not count["collected"]:
            raise StepError(
                f"{source.file() or source.hub}: no row of {source.name} can be used: {reasons}; "
                f"columns are declared in {sources.SOURCES.name}"
            )
        if source.answers.startswith("from") and count["label out of range"] > 0.05 * count["read"]:
            raise StepError(
                f"{source.file() or source.hub}: {count['label out of range']} of {count['read']} "
                f"labels are out of range; they are declared to count {source.answers}"
            )


# --- duplicates


def write_out(path: Path, found: dict[int, tuple[str, int, float]]) -> None:
    """Rows that drop out: row → (reason, the row that stays, similarity)."""
    np.savez(
        path,
        rows=np.array(list(found), np.int64),
        reason=np.array([reason for reason, _, _ in found.values()], dtype="U40"),
        like=np.array([like for _, like, _ in found.values()], np.int64),
        value=np.array([value for _, _, value in found.values()], np.float32),
    )


class Closest:
    """The pairs next to a threshold on either side, for a person to judge it by."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.found: dict[tuple[int, int], float] = {}

    def add(self, pairs: near_duplicates.Pairs, values: NDArray[np.float32]) -> None:
        for side in (values >= self.threshold, values < self.threshold):
            nearest = np.argsort(np.abs(values[side] - self.threshold), kind="stable")[: 5 * SHOWN]
            for pair, value in zip(
                pairs[side][nearest].tolist(), values[side][nearest].tolist(), strict=True
            ):
                self.found[(min(pair), max(pair))] = value
        for dropped in (True, False):
            side_of = [(k, v) for k, v in self.found.items() if (v >= self.threshold) == dropped]
            for key, _ in sorted(side_of, key=lambda x: (abs(x[1] - self.threshold), x[0]))[
                5 * SHOWN :
            ]:
                del self.found[key]

    def save(self, path: Path) -> None:
        best = sorted(self.found.items(), key=lambda x: (abs(x[1] - self.threshold), x[0]))
        chosen = [
            (*k, round(v, 4))
            for dropped in (True, False)
            for k, v in [x for x in best if (x[1] >= self.threshold) == dropped][:SHOWN]
        ]
        write_json(path, {"threshold": self.threshold, "pairs": chosen})


def duplicates(data: Any, piece: int, pieces: int, job: Job) -> None:
    """Repeated ids, exact and near duplicates. The row of the earlier source stays."""
    check_sources(job)
    near = job.settings.near_duplicates
    index = job.index()
    order = index["order"].astype(np.int64)
    found = near_duplicates.Features(job.folder, [job.piece(p) for p in range(job.settings.pieces)])
    out: dict[int, tuple[str, int, float]] = {}
    for a, b in near_duplicates.same_key(index["id"], order, neighbors=0).tolist():
        out[b] = ("repeated id", a, 1.0)
    for a, b in near_duplicates.exact_pairs(found, order).tolist():
        if a not in out:
            out.setdefault(b, ("exact duplicate", a, 1.0))
    alive = np.ones(len(index), dtype=bool)
    alive[list(out)] = False
    found_near = near_duplicates.near_pairs(found, order, alive, near.similarity - MARGIN)
    drop_close(job, "duplicates", found_near, near.similarity, out, "near duplicate")


def drop_close(
    job: Job,
    stage: str,
    found: Iterable[tuple[near_duplicates.Pairs, NDArray[np.float32]]],
    threshold: float,
    out: dict[int, tuple[str, int, float]],
    reason: str,
) -> None:
    """Of pairs that come in parts, drop the later rows; save who drops out, and what is related.

    out: what has been dropped before in this stage; it is saved as well.
    """
    order = job.index()["order"].astype(np.int64)
    rows = len(order)
    closest, related, close = Closest(threshold), np.empty(0, np.int64), {}
    for pairs, value in found:
        closest.add(pairs, value)
        related = np.unique(np.concatenate([related, pairs.min(1) * rows + pairs.max(1)]))
        for (a, b), v in zip(pairs.tolist(), value.tolist(), strict=True):
            if v >= threshold:
                close[min(a, b), max(a, b)] = v
    pairs = np.array(list(close), np.int64).reshape(-1, 2)
    value = np.array(list(close.values()), np.float32)
    for b, (a, similarity) in near_duplicates.keep_first(pairs, value, order).items():
        out[b] = (reason, a, similarity)
    write_out(job.folder / f"out-{stage}.npz", out)
    np.save(job.folder / f"related-{stage}.npy", np.stack([related // rows, related % rows], 1))
    closest.save(job.folder / f"closest-{stage}.json")


# --- embed, meanings


def too_many(job: Job) -> bool:
    """Whether there are more rows than are compared by meaning."""
    return int(job.alive("duplicates").sum()) > job.settings.semantic_duplicates.largest


def embed(data: Any, piece: int, pieces: int, job: Job) -> None:
    """Vectors of a piece's rows that are no duplicates, with the rows' numbers."""
    index, name = job.index(), job.piece(piece)
    numbers = np.flatnonzero(job.alive("duplicates") & (index["piece"] == piece))
    if too_many(job):
        numbers = numbers[:0]
    found = {"questions": [EMPTY], "answers": [EMPTY]}
    for start in range(0, len(numbers), BATCH):
        said = [turns(row) for row in job.read(index, numbers[start : start + BATCH])]
        for key, texts in (
            ("questions", ["\n".join(t[:-1]) for t in said]),
            ("answers", [t[-1] for t in said]),
        ):
            found[key].append(semantic_duplicates.vectors(texts).astype(np.float16))
    for key, parts in found.items():
        np.save(job.folder / f"{name}.{key}.npy", np.concatenate(parts))
    np.save(job.folder / f"{name}.numbers.npy", numbers)


def meanings(data: Any, piece: int, pieces: int, job: Job) -> None:
    """Semantic near-duplicates over all pieces."""
    threshold = job.settings.semantic_duplicates.similarity
    names = [job.piece(p) for p in range(job.settings.pieces)]
    numbers, questions, answers = (
        np.concatenate([np.load(job.folder / f"{name}.{key}.npy") for name in names])
        for key in ("numbers", "questions", "answers")
    )
    near = semantic_duplicates.pairs_within(
        questions.astype(np.float32), answers.astype(np.float32), threshold - MARGIN / 2
    )
    told = ((numbers[pairs], value) for pairs, value in near)
    drop_close(job, "meanings", told, threshold, {}, "semantic duplicate")


# --- decontaminate


def prepare(data: Any, piece: int, pieces: int, job: Job) -> None:
    """Index all evaluations once, with a margin that shows what nearly was a hit."""
    s = job.settings.decontamination
    evaluations = Evaluations(
        *read_items(job.evaluations), s.coverage, s.least_information, s.similarity, MARGIN
    )
    with written_whole(job.folder / "evaluations.pickle") as path, path.open("wb") as file:
        pickle.dump(evaluations, file)


def decontaminate(data: Any, piece: int, pieces: int, job: Job) -> None:
    """Rows of a piece that hold an evaluation row: out, with the row each matched."""
    with (job.folder / "evaluations.pickle").open("rb") as file:
        evaluations: Evaluations = pickle.load(file)  # written by `prepare`
    index, name = job.index(), job.piece(piece)
    numbers = np.flatnonzero(job.alive("duplicates", "meanings") & (index["piece"] == piece))
    dropped, lines = [], []
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        rows = list(job.read(index, batch))
        for number, row, hit in zip(batch.tolist(), rows, evaluations.hits(rows), strict=True):
            if hit is None:
                continue
            if hit.over:
                dropped.append(number)
            lines.append({"row": number, **vars(hit), "training": turns(row)[0][:600]})
    np.savez(job.folder / f"out-decontaminate-{name}.npz", rows=np.array(dropped, np.int64))
    write_json(job.folder / f"{name}.hits.json", lines)
