"""How well retrieval finds passages, stays silent, and cites: figures with n and intervals.

    python scripts/evaluate_retrieval.py --out docs/results/retrieval.json

Questions, answers and passages of data/retrieval, written by one author (its README says what that
is worth). Rates have Wilson intervals, MRR a bootstrap one. `ranking_alone` leaves the declared
score aside, `by_min_score` shows others; `shuffled` is the control: every text under another id.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medalign import cite, sections
from medalign.artifacts import StepError, manifest, read_jsonl, run_step, write_json
from medalign.measures import grouped, mean
from medalign.passages import PASSAGES, SETTINGS, Passage, read_passages, settings
from medalign.retrieval import Index
from medalign.suite import rate, told

FOLDER = PASSAGES.parent
DEPTH = 10  # ranks that the mean reciprocal rank looks at
CURVE = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # scores below which nothing is returned

Row = dict[str, Any]


def shuffled(passages: list[Passage]) -> Index:
    """The index with every title and text moved to the id half the file away."""
    half = len(passages) // 2
    moved = passages[half:] + passages[:half]
    return Index.build(
        [
            p.model_copy(update={"title": other.title, "text": other.text})
            for p, other in zip(passages, moved, strict=True)
        ]
    )


def ranked(index: Index, rows: list[Row], min_score: float | None = None) -> list[Row]:
    """For each question: rank of the first right passage (None: not found), the first found."""
    found = []
    for row in rows:
        ids = [hit.passage.id for hit in index.search(row["question"], DEPTH, min_score)]
        ranks = [i for i, name in enumerate(ids, 1) if name in row["passages"]]
        rank = min(ranks, default=None)
        found.append({"id": row["id"], "kind": row["kind"], "rank": rank, "found": ids[:3]})
    return found


def finding(items: list[Row]) -> Row:
    """Figures of questions that a passage answers, and of those that none does."""
    can = [item for item in items if item["kind"] == "answerable"]
    cannot = [item for item in items if item["kind"] != "answerable"]

    def answered(of: list[Row]) -> Row:
        return rate(sum(bool(item["found"]) for item in of), len(of))

    return {
        "hit_at_1": rate(sum(item["rank"] == 1 for item in can), len(can)),
        "hit_at_3": rate(sum((item["rank"] or DEPTH) <= 3 for item in can), len(can)),
        "mrr": mean([1 / item["rank"] if item["rank"] else 0.0 for item in can]),
        "silent_though_answerable": rate(sum(not item["found"] for item in can), len(can)),
        "answered_though_unanswerable": answered(cannot),
        "answered_by_kind": grouped(cannot, lambda item: str(item["kind"]), answered),
    }


def curve(index: Index, rows: list[Row]) -> list[Row]:
    """What another score below which nothing is returned would give."""
    wanted = ("hit_at_1", "answered_though_unanswerable")
    found = [(least, finding(ranked(index, rows, least))) for least in CURVE]
    return [
        {"min_score": least, **{name: f[name]["rate"] for name in wanted}} for least, f in found
    ]


def sentences_of(answer: Row) -> list[Row]:
    """The sentences of an answer that may be cited, each with what supports it."""
    return [*answer["explanation"], *answer["clinical_relevance"]]


def text_of(answer: Row) -> str:
    """An answer row in the four sections."""
    said = [" ".join(s["text"] for s in answer[p]) for p in ("explanation", "clinical_relevance")]
    return sections.render(answer["definition"], *said)


def marks(answer: Row, passages: list[Passage]) -> list[tuple[Row, set[str]]]:
    """Each sentence of an answer and the ids that `cite` gave it. StepError if the format broke."""
    text = cite.cite(text_of(answer), passages)
    if not sections.parse(text).ok:
        raise StepError(f"{answer['id']}: with its citations it does not keep the format")
    given: dict[str, set[str]] = {}
    for found in cite.check_citations(text, passages):
        given.setdefault(cite.plain(found.sentence), set()).add(found.id)
    return [(s, given.get(s["text"], set())) for s in sentences_of(answer)]


def citing(index: Index, answers: list[Row]) -> Row:
    """Precision and recall of citations after retrieval, and what wrong passages are cited for."""
    pairs = [
        pair
        for answer in answers
        for pair in marks(answer, [hit.passage for hit in index.search(answer["question"])])
    ]
    given = sum(len(ids) for _, ids in pairs)
    right = sum(len(ids & set(s["passages"])) for s, ids in pairs)
    true = [(s, ids) for s, ids in pairs if s["passages"]]
    false = [(s, ids) for s, ids in pairs if not s["passages"]]
    wrong = [
        support >= settings().citations.min_support
        for answer in answers
        for support in mismatched(answer, index.passages)
    ]
    return {
        "precision": rate(right, given),
        "recall": rate(sum(bool(ids & set(s["passages"])) for s, ids in true), len(true)),
        "cited_though_unsupported": grouped(
            [{"kind": s["kind"], "cited": bool(ids)} for s, ids in false],
            lambda item: str(item["kind"]),
            lambda of: rate(sum(item["cited"] for item in of), len(of)),
        ),
        "cited_of_mismatched": rate(sum(wrong), len(wrong)),
    }


def mismatched(answer: Row, passages: list[Passage]) -> Iterable[float]:
    """Support of an answer's sentences by every passage that it was not written from."""
    own = {name for s in sentences_of(answer) for name in s["passages"]}
    for passage in passages:
        if passage.id not in own:
            yield from (cite.support(s["text"], passage) for s in sentences_of(answer))


def evaluate(passages: Path, questions: Path, answers: Path) -> Row:
    """All figures of one index. Also the items, so that a miss can be looked at."""
    rows, read = read_jsonl(questions), read_passages(passages)
    index = Index.build(read)
    items = ranked(index, rows)
    alone = finding(ranked(index, rows, 0.0))
    return {
        "settings": settings().model_dump(include={"index", "citations"}),
        "passages": len(read),
        "retrieval": finding(items),
        "ranking_alone": {name: alone[name] for name in ("hit_at_1", "hit_at_3", "mrr")},
        "by_min_score": curve(index, rows),
        "shuffled": {"hit_at_1": finding(ranked(shuffled(read), rows, 0.0))["hit_at_1"]},
        "citations": citing(index, read_jsonl(answers)),
        "items": items,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=Path, default=PASSAGES)
    parser.add_argument("--questions", type=Path, default=FOLDER / "questions.jsonl")
    parser.add_argument("--answers", type=Path, default=FOLDER / "answers.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="result JSON")
    args = parser.parse_args()
    began = time.monotonic()
    inputs = {"passages": args.passages, "questions": args.questions, "answers": args.answers}
    figures = evaluate(**inputs)
    facts = manifest("retrieval", {**inputs, "settings": SETTINGS}, began)
    write_json(args.out, {**facts, **figures})
    found, cited = figures["retrieval"], figures["citations"]
    alone = figures["ranking_alone"]
    print(f"ranking: hit@1 {told(alone['hit_at_1'])}, hit@3 {told(alone['hit_at_3'])}")
    print(f"with the declared score: hit@1 {told(found['hit_at_1'])}")
    mrr = alone["mrr"]
    print(f"ranking: MRR {mrr['value']} ({mrr['low']}-{mrr['high']}), n {mrr['n']}")
    print(f"answered though unanswerable {told(found['answered_though_unanswerable'])}")
    print(f"silent though answerable {told(found['silent_though_answerable'])}")
    print(f"control, shuffled: hit@1 {told(figures['shuffled']['hit_at_1'])}")
    print(f"citations: precision {told(cited['precision'])}, recall {told(cited['recall'])}")
    print(f"mismatched passages cited {told(cited['cited_of_mismatched'])}")


if __name__ == "__main__":
    run_step(main)
