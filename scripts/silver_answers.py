"""Silver pairs of questions and answers: the right answer against the answer to another question.

The other is of the same source: on the same subject but of another aspect (its treatment for its
symptoms), or of the same aspect on the nearest other subject. Both are cut at a sentence's end.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medalign.convert_rows import Unusable
from medalign.rows import words
from medalign.score_rows import STOP
from medalign.semantic_duplicates import centered, vectors
from medalign.silver_rows import (
    Answer,
    Row,
    Sides,
    SilverSettings,
    chance,
    content,
    length_ratio,
    matches,
)

WHOLE = 0.7  # part of an answer's words that stays when it is cut to the other's length
NEAREST = 200  # questions of nearest meaning that are looked at for a rejected answer
# What a question asks about its subject: the first that is found.
ASPECTS = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "prevention": r"\bprevent\w*",
        "diagnosis": r"\bdiagnos\w*|\b(?:exams?|tests?)\b",
        "symptoms": r"\b(?:symptoms?|signs?)\b|\bhow (?:to|do i|can i) know if\b",
        "care": r"\bwhen (?:to|should|could|can|may)\b.*?\b(?:seek|contact|call|have)\b"
        r"(?: (?:urgent )?medical care)?",
        "treatment": r"\btreat(?:ed|ing|ments?)?\b|\bwhat to do\b|\bmedic(?:ines?|ations?)\b",
        "outlook": r"\boutlook/prognosis\b|\b(?:outlook|prognosis|expect)\b",
        "complications": r"\bcomplications?\b",
        "cause": r"\bcauses?d?\b|\b(?:highest )?risk\b|\binherited\b|\bgenetic changes related\b",
        "frequency": r"\bhow (?:many|common)\b|\bpeople are affected\b",
        "stages": r"\bstages?\b",
        "meaning": r"\bwhat (?:is|are)\b(?: \(are\))?",
    }.items()
}
# Aspects whose answers tell much of each other's; an overview ("meaning") tells of all.
OVERLAP = [
    {"prevention", "cause"}, {"prevention", "treatment"}, {"prevention", "complications"},
    {"symptoms", "diagnosis"}, {"symptoms", "care"}, {"symptoms", "complications"},
    {"symptoms", "stages"}, {"diagnosis", "stages"}, {"care", "treatment"},
    {"care", "complications"}, {"outlook", "complications"}, {"outlook", "treatment"},
    {"cause", "frequency"}, {"outlook", "stages"}, {"outlook", "symptoms"},
]  # fmt: skip
FILLER = frozenset(words("people person patient get have disease disorder syndrome cancer tumor"))
ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|vs|Dr|Mr|Mrs|Ms|St|U\.S|approx|etc|no|Fig|spp|[A-Z])|^\W*\d+)\.$"
)


@dataclass
class Told:
    """A question with what it asks and of what, and the prefixes at which its answer may end."""

    row: Row
    aspect: str
    subject: frozenset[str]
    cuts: list[str]


def asked(question: str) -> tuple[str, frozenset[str]]:
    """The aspect a question is about and the stems of its subject. Unusable if not known."""
    for aspect, pattern in ASPECTS.items():
        if pattern.search(question):
            subject = content(pattern.sub(" ", question)) - FILLER
            if subject:
                return aspect, subject
    raise Unusable("what is asked is not known", question)


def lines_of(answer: str) -> list[str]:
    """An answer's lines, with items that stand in a row (" - a - b - c") on lines of their own."""
    lines = []
    for line in re.sub(r"(?<=[a-z]{3}[.,])\d{1,2}(?=\s|$)", "", answer).split("\n"):  # footnotes
        if len(re.findall(r"(?:^|[^\d-]) [-•] (?=[^\W\d])", f" {line}")) > 2:
            if not line.startswith("-"):
                line = re.sub(r"(?<=\w) [-•] (?=[^\W\d])", ":\n- ", line, count=1)
            line = re.sub(r" [-•] (?=[^\W\d])", "\n- ", line)
        line = re.sub(r"(?<=[.:;?!]) [-•] (?=\S)", "\n- ", line)
        lines += [re.sub(r"^[-•*]\s*", "- ", part.strip()) for part in line.split("\n")]
    return [line for line in lines if line]


def parts(answer: str, boilerplate: list[re.Pattern[str]]) -> list[str]:
    """An answer's sentences and list items, each with the white space before it.

    Lines without an end are items after a colon and headings elsewhere; headings are left out, and
    what is told a second time. Unusable where items run into each other.
    """
    found: list[str] = []
    told: set[str] = set()
    listed = False
    for line in lines_of(answer):
        marked = line.startswith("- ")
        ended = re.search(r"[.!?:][\"”)]*$", line)
        run = [w for w in re.findall(r"\b([a-z]{3,}) (?=[A-Z][a-z])", line) if w not in STOP]
        if (
            len(run) > (1 if ended or marked else 0)
            or (not ended and len(line.split()) > 15)
            or re.search(r"(?<!\w\.\w)(?<!vs)[.?] [a-z]+ [a-z]", line)
        ):
            raise Unusable("list without marks", line)
        if not ended and not marked and not listed:
            continue
        line = line if ended or marked else f"- {line}"
        listed = line.endswith(":") if ended and not marked else listed
        for n, piece in enumerate(split(line)):
            whole = piece.count("(") == piece.count(")") and re.search("[A-Za-z]{2}", piece)
            if whole and not matches(boilerplate, piece) and piece.casefold() not in told:
                told.add(piece.casefold())
                found.append(f"{' ' if n else chr(10)}{piece}")
    return found


def split(line: str) -> list[str]:
    """Sentences of a line. An abbreviation's dot ends none."""
    found: list[str] = []
    for piece in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"“(])|(?<=[.!?][\"”)])\s+(?=[A-Z])", line):
        if found and ABBREVIATED.search(found[-1]):
            found[-1] += f" {piece}"
        else:
            found.append(piece)
    return found


def cuts(answer: str, rules: Answer) -> list[str]:
    """The beginnings of an answer that end with a sentence, within the limits of length.

    None ends with what only heads the next: a colon, or two or three words. Unusable without any.
    """
    least, most = rules.answer_words
    text, found = "", []
    for part in parts(answer, rules.boilerplate):
        text += part
        if len(text.split()) > most:
            break
        heads = part.endswith(":") or (len(part.split()) < 4 and not part.startswith("\n- "))
        if len(text.split()) >= least and not heads:
            found.append(text.strip())
    if not found:
        raise Unusable("no answer of the wanted length", answer)
    if text.startswith("\n- "):
        raise Unusable("begins with a list", answer)
    return found


def differ(a: str, b: str) -> bool:
    """Whether answers on two aspects of one subject tell different things."""
    return "meaning" not in (a, b) and a != b and {a, b} not in OVERLAP


def candidates(told: list[Told], rules: Answer) -> Iterator[tuple[list[int], list[int]]]:
    """For each row: those with another aspect of its subject, the nearest with another subject."""
    of_subject, of_aspect = defaultdict(list), defaultdict(list)
    for n, t in enumerate(told):
        of_subject[t.subject].append(n)
        of_aspect[t.aspect].append(n)
    questions = vectors([t.row.prompt for t in told])
    for n, t in enumerate(told):
        same = [m for m in of_subject[t.subject] if differ(t.aspect, told[m].aspect)]
        peers = np.array(of_aspect[t.aspect])
        cosine = np.round(questions[peers] @ questions[n], 4)
        nearest = peers[np.argsort(-cosine, kind="stable")[:NEAREST]].tolist()
        other = []
        for m in nearest:
            both = t.subject | told[m].subject
            if m != n and len(t.subject & told[m].subject) / len(both) < rules.subject_overlap:
                other.append(m)
        yield same, other


def answers(rows: list[Row], s: SilverSettings, dropped: Counter[str]) -> dict[int, list[Sides]]:
    """Pairs of one source's questions, by the place of the row in `rows`; drops are counted."""
    rules, told, at = s.question_answer, [], []
    for n, row in enumerate(rows):
        try:
            if matches(rules.skip, row.prompt):
                raise Unusable("asks for a page, a place or a program", row.prompt)
            t = Told(row, *asked(row.prompt), cuts(row.answer, rules))
            if t.aspect == "meaning" and not t.subject & content(t.cuts[0]):
                raise Unusable("answer does not name its subject", row.answer)
            told.append(t)
            at.append(n)
        except Unusable as error:
            dropped[str(error)] += 1
    if not told:
        return {}
    center = vectors([t.cuts[-1] for t in told]).mean(0, dtype=np.float64).astype(np.float32)
    used: Counter[int] = Counter()
    found: dict[int, list[Sides]] = {}
    for n, (same, other) in enumerate(candidates(told, rules)):
        first = chance(s.seed, told[n].row.id, "subject") < rules.same_subject
        for m in same + other if first else other + same:
            if used[m] < rules.reuse and (both := fits(told[n], told[m], center, s)):
                used[m] += 1
                found[at[n]] = [(str(told[m].row.number), *both)]
                break
        else:
            dropped["no other answer fits"] += 1
    return found


def fits(
    this: Told, other: Told, center: NDArray[np.float32], s: SilverSettings
) -> tuple[str, str] | None:
    """A row's answer and another row's, cut to like length, if they can stand against each other.

    center [256]: the mean vector of the source's answers. At most a small part of the right answer
    is given up for the length.
    """
    left, right = ([(len(cut.split()), cut) for cut in reversed(t.cuts)] for t in (this, other))
    (_, chosen), (_, rejected) = min(
        ((c, r) for c in left for r in right),
        key=lambda both: (
            both[0][0] < WHOLE * left[0][0],
            round(abs(math.log(both[0][0] / both[1][0])), 2),
        ),
    )
    if not s.ratio[0] <= length_ratio(chosen, rejected) <= s.ratio[1]:
        return None
    relation: Literal["same subject", "other subject"] = "same subject"
    if this.subject != other.subject:
        relation = "other subject"
        # It must name what it is about, and not what was asked about.
        stems = content(rejected)
        if not stems & (other.subject - this.subject) or this.subject <= stems:
            return None
    both = centered(vectors([chosen, rejected]), center)
    if round(float(both[0] @ both[1]), 4) >= s.question_answer.alike[relation]:
        return None
    return chosen, rejected
