"""Search a local index of passages with BM25, to ground answers in text that can be cited.

    python scripts/retrieval.py search data/retrieval/passages.jsonl "Why do the ankles swell?"
    python scripts/retrieval.py build build/retrieval/pubmed.jsonl --out build/retrieval/pubmed

Off unless asked for: a server takes a passages file or a built index folder by `--retrieval`.
BM25 is bm25s (Lucene's variant); words are stemmed by Snowball. All settings, and the score below
which nothing is returned, stand in data/retrieval/retrieval.yaml. scripts/cite.py cites passages.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np

from medalign.artifacts import (
    StepError,
    manifest,
    read_json,
    require_file,
    run_step,
    sha256,
    write_json,
    write_jsonl,
    written_whole,
)
from medalign.passages import (
    SETTINGS,
    Passage,
    content_words,
    read_passages,
    settings,
    stop_words,
)


@dataclass(frozen=True)
class Hit:
    """A passage found. score: BM25 over √(weight of one rare word · what the question could reach).

    Over the first alone, long questions add up chance words; over the second alone, short ones win.
    Both weights grow with the index, so that the score means about the same for a larger one.
    """

    passage: Passage
    score: float


def recipe() -> str:
    """SHA-256 of what decides the index: k1, b, the stop words, the versions of its makers."""
    chosen = settings().index
    parts = [chosen.k1, chosen.b, sorted(stop_words()), bm25s.__version__]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Index:
    """Passages and their BM25 index. Reading only: searches may run in several threads."""

    def __init__(self, passages: Sequence[Passage], bm25: bm25s.BM25) -> None:
        self.passages = list(passages)
        self._bm25 = bm25
        # bm25s keeps a column a word: its length is the number of passages with that word.
        found = np.diff(bm25.scores["indptr"])
        weights = np.log1p((len(self.passages) - found + 0.5) / (found + 0.5))
        self._weight = {word: float(weights[i]) for word, i in bm25.vocab_dict.items() if word}
        self._unknown = float(np.log1p((len(self.passages) + 0.5) / 0.5))

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> Index:
        """Index passages in memory. StepError if none has a word to search for."""
        texts = [content_words(f"{p.title}\n{p.text}") for p in passages]
        if not any(texts):
            raise StepError("the passages hold no word to search for; are they in English?")
        bm25 = bm25s.BM25(k1=settings().index.k1, b=settings().index.b, method="lucene")
        bm25.index(texts, show_progress=False)
        return cls(passages, bm25)

    def search(
        self, question: str, k: int | None = None, min_score: float | None = None
    ) -> list[Hit]:
        """The best passages for a question, best first, at most `k` (else: as declared).

        Empty if no passage reaches `min_score` (else: as declared): nothing here answers it. Ties
        keep the order of the file.
        """
        chosen = settings().index
        words = list(dict.fromkeys(content_words(question)))
        known = [word for word in words if word in self._weight]
        if not known:
            return []
        reach = sum(self._weight.get(word, self._unknown) for word in words)
        scores = self._bm25.get_scores(known) / math.sqrt(self._unknown * reach)
        least = chosen.min_score if min_score is None else min_score
        best = np.argsort(-scores, kind="stable")[: chosen.k if k is None else k]
        return [
            Hit(self.passages[i], float(scores[i]))
            for i in best
            if scores[i] >= least and scores[i] > 0
        ]

    def save(self, out: Path, source: Path) -> None:
        """Write the index as a folder that `load` reads, with its manifest."""
        began = time.monotonic()
        with written_whole(out) as folder:
            folder.mkdir()
            rows = [p.model_dump(exclude_none=True) for p in self.passages]
            write_jsonl(folder / "passages.jsonl", rows)
            self._bm25.save(folder / "bm25", show_progress=False)
            facts = {"passages": len(rows), "recipe": recipe(), "bm25": sha256(folder / "bm25")}
            facts["rows"] = sha256(folder / "passages.jsonl")
            made = manifest("retrieval index", {"passages": source}, began, **facts)
            write_json(folder / "manifest.json", made)


def load(path: Path) -> Index:
    """An index from a passages JSONL (indexed now) or from a folder that `build` wrote.

    StepError if the folder is incomplete, altered, or made under other settings.
    """
    require_file(path, "scripts/pubmed.py or scripts/retrieval.py build writes it")
    if not path.is_dir():
        return Index.build(read_passages(path))
    command = f"python scripts/retrieval.py build PASSAGES --out {path}"
    made, again = read_json(path / "manifest.json", command), f"run: {command}"
    for name, field in (("passages.jsonl", "rows"), ("bm25", "bm25")):
        if sha256(require_file(path / name, again)) != made.get(field):
            raise StepError(f"{path / name}: not what its manifest says; {again}")
    if made.get("recipe") != recipe():
        raise StepError(f"{path}: made under other settings than {SETTINGS.name} has; {again}")
    bm25 = bm25s.BM25.load(
        path / "bm25", load_corpus=False, allow_pickle=False, show_progress=False
    )
    return Index(read_passages(path / "passages.jsonl"), bm25)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write an index folder")
    build.add_argument("passages", type=Path)
    build.add_argument("--out", type=Path, required=True, help="index folder")
    search = commands.add_parser("search", help="show what is found for a question")
    search.add_argument("index", type=Path, help="passages JSONL or index folder")
    search.add_argument("question")
    search.add_argument("--k", type=int, default=None)
    args = parser.parse_args()
    if args.command == "build":
        index = Index.build(read_passages(args.passages))
        index.save(args.out, args.passages)
        print(f"{args.out}: {len(index.passages)} passages")
        return
    hits = load(args.index).search(args.question, args.k)
    for hit in hits:
        print(f"{hit.score:.2f} [{hit.passage.id}] {hit.passage.title}")
    if not hits:
        print(f"nothing reaches the score {settings().index.min_score}")


if __name__ == "__main__":
    run_step(main)
