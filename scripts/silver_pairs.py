"""Silver preference pairs, built from the sources of the mix: right against wrong in one form.

    python scripts/silver_pairs.py --out build/silver/silver.jsonl --accept share-alike

multiple_choice    the right option against a wrong one, in the same sentence. A rationale argues
                   for the right option: it is kept only where the wrong option's words can take
                   the right one's place in it, and left out on both sides otherwise.
abstract_question  the right decision against a wrong one, in the same sentence. The authors'
                   conclusion gives the decision away and would speak against the wrong one: it is
                   left out on both sides, always.
question_answer    the right answer against the answer to another question of the same source: on
                   the same subject but of another aspect (its treatment for its symptoms), or of
                   the same aspect on the nearest other subject. Both are cut at a sentence's end.

data/preferences/silver.yaml says how many and within which limits. The licence gate, cleaning,
thresholds of near duplicates and the evaluations are those of the mix (data/mix.yaml).
"""

from __future__ import annotations

import argparse
import heapq
import math
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table

from medalign import build_mix, convert_rows, mix_stages, near_duplicates, sources
from medalign.artifacts import ROOT, StepError, manifest, run_step, sha256, write_json, write_jsonl
from medalign.clean_text import clean
from medalign.convert_rows import LETTERS, Unusable
from medalign.decontaminate import Evaluations, read_items
from medalign.mix_stages import Strict, hash_of
from medalign.rows import words
from medalign.score_rows import STOP
from medalign.semantic_duplicates import centered, vectors
from medalign.settings import declared
from medalign.sources import Source, columns

SILVER = ROOT / "data/preferences/silver.yaml"
PAIRED = ("multiple_choice", "abstract_question", "question_answer")
WHOLE = 0.7  # part of an answer's words that stays when it is cut to the other's length
NEAREST = 200  # questions of nearest meaning that are looked at for a rejected answer
COMBINED = re.compile(  # an option that stands for others
    r"^(?:all|none|both|neither|any)(?: (?:the|of|are|is) .*)?$|\b(?:of the above|of these)\b|"
    r"^(?:both |neither |options? )?\(?[A-E]\)?(?:,? (?:and|or|nor|&) \(?[A-E]\)?)+$",
    re.IGNORECASE,
)
POINTS_TO_LETTER = re.compile(r"\b(?:options?|choices?|ans(?:wers?)?)\b|(?-i:\b[B-E]\b)", re.I)
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
STOP_STEMS = frozenset(words(" ".join(STOP)))
FILLER = frozenset(words("people person patient get have disease disorder syndrome cancer tumor"))
ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|vs|Dr|Mr|Mrs|Ms|St|U\.S|approx|etc|no|Fig|spp|[A-Z])|^\W*\d+)\.$"
)


class Choice(Strict):
    wrong_options: int = Field(gt=0)
    rationale_words: int = Field(ge=0)
    frames: list[str] = Field(min_length=1)
    needs: list[re.Pattern[str]]

    @field_validator("frames")
    @classmethod
    def complete(cls, frames: list[str]) -> list[str]:
        return checked(frames, {"letter", "option"})


class Abstract(Strict):
    frames: list[str] = Field(min_length=1)

    @field_validator("frames")
    @classmethod
    def complete(cls, frames: list[str]) -> list[str]:
        return checked(frames, {"decision"})


class Answer(Strict):
    answer_words: tuple[int, int]
    same_subject: float = Field(ge=0, le=1)
    subject_overlap: float = Field(gt=0, le=1)
    alike: dict[Literal["same subject", "other subject"], float]
    reuse: int = Field(gt=0)
    skip: list[re.Pattern[str]]
    titles: list[re.Pattern[str]]
    boilerplate: list[re.Pattern[str]]


class SilverSettings(Strict):
    """data/preferences/silver.yaml"""

    seed: int
    rows: dict[str, int]
    ratio: tuple[float, float]
    multiple_choice: Choice
    abstract_question: Abstract
    question_answer: Answer


def checked(frames: list[str], names: set[str]) -> list[str]:
    """Frames that hold each name once and nothing else in braces, or ValueError."""
    for frame in frames:
        if sorted(re.findall(r"\{(.*?)\}", frame)) != sorted(names):
            raise ValueError(f"{frame!r} must hold {', '.join(sorted(names))} in braces, once each")
    return frames


def settings(path: Path = SILVER) -> SilverSettings:
    """The settings as declared. StepError names the field that is wrong."""
    return declared(path, SilverSettings)


@dataclass
class Row:
    """A source's row: the prompt and the right answer as the mix has them, and what they are of.

    number: from 0, in the source.
    """

    source: Source
    number: int
    id: str
    place: str
    prompt: str
    answer: str
    raw: dict[str, Any]


Sides = tuple[str, str, str]  # what tells the pair from the row's others, chosen, rejected


def chance(*key: object) -> float:
    """A number from 0 to 1, the same for the same key."""
    return hash_of(" ".join(map(str, key))) / 2**64


def matches(patterns: list[re.Pattern[str]], text: str) -> bool:
    """Whether a text holds one of the patterns, in any case."""
    return any(re.search(p.pattern, text, re.IGNORECASE) for p in patterns)


def length_ratio(chosen: str, rejected: str) -> float:
    """Words of the chosen answer for a word of the rejected one."""
    return len(chosen.split()) / max(1, len(rejected.split()))


# --- rows


def choose_sources(s: SilverSettings, accept: set[str]) -> tuple[list[Source], dict[str, str]]:
    """The sources that make pairs here, and the others with the reason why not."""
    if unknown := s.rows.keys() - {source.name for source in sources.load()[0]}:
        raise StepError(f"{SILVER}: rows: {', '.join(sorted(unknown))}: no such source")
    used, left_out = build_mix.usable(accept)
    for source in used:
        if source.task not in PAIRED:
            left_out[source.name] = f"no pairs are made of {source.task}"
        elif source.name not in s.rows:
            left_out[source.name] = f"not named in {SILVER.name}"
    return [source for source in used if source.name not in left_out], left_out


def collect(source: Source, s: SilverSettings, entry: dict[str, Any]) -> list[Row]:
    """The rows drawn of a source, converted, cleaned and scored as for the mix, in their order.

    entry: the source's line of the funnel, in which rows and drops are counted.
    """
    mix, dropped = mix_stages.settings(), entry["dropped"]

    def counted() -> Iterator[sources.Read]:
        for read in sources.rows(source, longest=mix.rows.longest_bytes):
            entry["rows"] += 1
            yield read

    drawn = heapq.nsmallest(
        s.rows[source.name], counted(), key=lambda read: chance(s.seed, source.name, read[0])
    )
    if more := entry["rows"] - len(drawn):
        dropped["not drawn"] = more
    rows, ids = [], set()
    for number, place, raw in sorted(drawn, key=lambda read: read[0]):
        try:
            if isinstance(raw, sources.Fault):
                raise Unusable(raw.reason, raw.evidence)
            made = mix_stages.made(source, raw, mix.rows, Counter())
            for score, least in mix.scores.items():
                if made["scores"][score] < least:
                    raise Unusable(f"low {score}", made["scores"])
            column = columns(source).get("id")
            key = sources.key(raw, column) if column else number
            if (id_ := f"{source.name}:{key}") in ids:
                raise Unusable("repeated id", id_)
        except (Unusable, KeyError) as error:
            dropped[str(error) if isinstance(error, Unusable) else "missing column"] += 1
            continue
        ids.add(id_)
        prompt, answer = (m["content"] for m in made["messages"])
        prompt = tidied(prompt, s.question_answer.titles)
        rows.append(Row(source, number, id_, place, prompt, answer, raw))
    if source.answers.startswith("from") and dropped["label out of range"] > 0.05 * len(drawn):
        raise StepError(
            f"{source.name}: {dropped['label out of range']} of {len(drawn)} labels are out of "
            f"range; they are declared to count {source.answers}"
        )
    return rows


def tidied(text: str, titles: list[re.Pattern[str]] | None = None) -> str:
    """A question or option without what tables and web pages have left in it.

    Tripled quotes, a quote that has no partner in its line, repeated question marks, bytes written
    as in an address ("%27"). titles: what is taken out besides.
    """
    text = re.sub(
        r"(?<!\d)(?:%[2-7CDE][0-9A-F](?:%[89AB][0-9A-F])*)+", lambda m: unquote(m[0]), text
    )
    for title in titles or ():
        text = re.sub(title.pattern, "", text, flags=re.IGNORECASE)
    lines = []
    for line in text.replace('"""', '"').split("\n"):
        if line.count('"') % 2:
            line = re.sub(r'^"|"$', "", line.strip())
        lines.append(re.sub(r"(?:\s*\?)+$", "?", line.strip()))
    return "\n".join(lines).strip()


def content(text: str) -> frozenset[str]:
    """The stems of a text's words that carry meaning."""
    return frozenset(words(text)) - STOP_STEMS


def repeated(rows: list[Row], folder: Path) -> dict[int, str]:
    """Rows whose prompt an earlier row has, in the same words or nearly → the reason.

    Short questions differ by one word and yet in all: nearly the same are rows whose prompt and
    answer together are (as in the mix), or whose questions hold the same words of meaning.
    """
    near, order = mix_stages.settings().near_duplicates, np.arange(len(rows))
    out, seen = {}, set()
    for n, row in enumerate(rows):
        key = content(row.prompt) or frozenset(words(row.prompt))
        if key in seen:
            out[n] = "repeated prompt"
        seen.add(key)
    texts = [f"{row.prompt}\n{row.answer}" for row in rows]
    starts = range(0, len(rows), mix_stages.BATCH)
    found = [
        near_duplicates.features(texts[i : i + mix_stages.BATCH], near.permutations, near.bands)
        for i in starts
    ]
    near_duplicates.save(found, folder, "silver")
    features = near_duplicates.Features(folder, ["silver"])
    alive = np.ones(len(rows), dtype=bool)
    alive[list(out)] = False
    parts = list(near_duplicates.near_pairs(features, order, alive, near.similarity))
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(p for p, _ in parts)])
    values = np.concatenate([np.empty(0, np.float32), *(v for _, v in parts)])
    close = near_duplicates.keep_first(pairs, values, order)
    return out | dict.fromkeys(close, "near duplicate")


def held(rows: list[Row], index: Evaluations) -> dict[int, str]:
    """Rows that hold a row of an evaluation → its place."""
    found = {}
    for start in range(0, len(rows), mix_stages.BATCH):
        batch = rows[start : start + mix_stages.BATCH]
        said = [{"messages": convert_rows.turn(row.prompt, row.answer)} for row in batch]
        for n, hit in enumerate(index.hits(said), start):
            if hit is not None and hit.over:
                found[n] = hit.place
    return found


# --- multiple choice and abstracts


def choices(row: Row, s: SilverSettings) -> list[Sides]:
    """The right option against each wrong one. Unusable says why a question makes no pairs."""
    c, rules = columns(row.source), s.multiple_choice
    options = convert_rows.option_list(sources.take(row.raw, c["options"]))
    right = convert_rows.right_option(row.raw[str(c["answer"])], options, row.source.answers)
    options = [option_text(option) for option in options]
    if COMBINED.search(options[right]):
        raise Unusable("right option stands for others", options[right])
    if matches(rules.needs, row.prompt):
        raise Unusable("needs what is not in the text", row.prompt)
    wrong = [n for n, o in enumerate(options) if words(o) != words(options[right])]
    drawn = sorted(wrong, key=lambda n: chance(s.seed, row.id, n))[: rules.wrong_options]
    given = convert_rows.text(row.raw, c.get("rationale"), needed=False)
    rationale = clean(given) if len(given.split()) <= rules.rationale_words else ""
    frame = rules.frames[int(chance(s.seed, row.id, "frame") * len(rules.frames))]
    sides = []
    for n in sorted(drawn):
        chosen, rejected = (
            re.sub(r'(?<=[.?!]["”])\.|(?<=[?!])\.', "", filled)
            for filled in (frame.format(letter=LETTERS[k], option=options[k]) for k in (right, n))
        )
        others = [o for k, o in enumerate(options) if k not in (right, n)]
        if (both := argued(rationale, options[right], options[n], others)) is not None:
            chosen, rejected = f"{chosen} {both[0]}", f"{rejected} {both[1]}"
        sides.append((LETTERS[n], chosen, rejected))
    return sides


def option_text(option: str) -> str:
    """An option as it stands in a sentence: cleaned, in one line, no full stop."""
    return " ".join(tidied(clean(option)).split()).rstrip(".").strip()


def argued(rationale: str, right: str, wrong: str, others: list[str]) -> tuple[str, str] | None:
    """A rationale for the right option, and the same with the wrong one in its place; or None.

    None unless nothing but the name need be changed: no letter, no other option, no other mention
    of the right one, and both options alike in grammar as far as their first and last letters tell.
    """

    def name(option: str) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w){re.escape(option)}(?!\w)", re.IGNORECASE)

    rationale = rationale.strip()
    if not rationale.endswith((".", "!", "?")) or POINTS_TO_LETTER.search(rationale):
        return None
    if not name(right).search(rationale) or name(wrong).search(rationale):
        return None
    if any(name(other).search(rationale) for other in others):
        return None
    if (right[-1] == "s") != (wrong[-1] == "s") or (right[0] in "aeiouAEIOU") != (
        wrong[0] in "aeiouAEIOU"
    ):
        return None

    def placed(match: re.Match[str]) -> str:
        written = wrong if wrong[:2].isupper() else wrong[0].lower() + wrong[1:]
        return written[0].upper() + written[1:] if match[0][0].isupper() else written

    swapped = name(right).sub(placed, rationale)
    if content(right) & (content(swapped) - content(wrong)):
        return None
    return rationale, swapped


def decisions(row: Row, s: SilverSettings) -> list[Sides]:
    """The right decision against the opposite one; against "maybe", yes or no by the seed."""
    right = convert_rows.text(row.raw, columns(row.source)["answer"]).lower()
    either = "yes" if chance(s.seed, row.id, "maybe") < 0.5 else "no"
    wrong = {"yes": "no", "no": "yes", "maybe": either}[right]
    frames = s.abstract_question.frames
    frame = frames[int(chance(s.seed, row.id, "frame") * len(frames))]
    first = frame.startswith("{")
    chosen, rejected = (
        frame.format(decision=word.capitalize() if first else word) for word in (right, wrong)
    )
    return [(wrong, chosen, rejected)]


# --- questions and answers


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


# --- all


def build(
    s: SilverSettings, accept: set[str], work: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pairs of all sources that can be used here, and the funnel.

    accept: terms to use besides open ones. work: a folder for what lies on disk while it runs.
    Funnel, by source: rows read = used (those that make pairs) + dropped, by reason; pairs made +
    pairs_dropped = pairs tried; held: places of the evaluation rows that were hit, with counts.
    StepError unless that adds up.
    """
    used, _ = choose_sources(s, accept)
    funnel: dict[str, Any] = {
        source.name: {
            "rows": 0, "used": 0, "tried": 0, "pairs": 0,
            "dropped": Counter(), "pairs_dropped": Counter(), "held": Counter(),
        }
        for source in used
    }  # fmt: skip
    if not used:
        return [], funnel
    sets, limits = build_mix.evaluations(), mix_stages.settings().decontamination
    rows = [row for source in used for row in collect(source, s, funnel[source.name])]
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = repeated(rows, Path(folder))
    for n, reason in out.items():
        funnel[rows[n].source.name]["dropped"][reason] += 1
    rows = [row for n, row in enumerate(rows) if n not in out]
    index = Evaluations(
        *read_items(sets), limits.coverage, limits.least_information, limits.similarity
    )
    hits = held(rows, index)
    for n, place in hits.items():
        funnel[rows[n].source.name]["dropped"][sources.HELD] += 1
        funnel[rows[n].source.name]["held"][place] += 1
    rows = [row for n, row in enumerate(rows) if n not in hits]
    pairs: list[dict[str, Any]] = []
    for source in used:
        own = [row for row in rows if row.source is source]
        pairs += paired(source, own, s, funnel[source.name])
    for name, line in funnel.items():
        if (
            line["rows"] != line["used"] + line["dropped"].total()
            or line["tried"] != line["pairs"] + line["pairs_dropped"].total()
        ):
            raise StepError(f"{name}: rows in and out do not add up: {line}")
    return pairs, {name: plain(line) for name, line in funnel.items()}


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """A funnel's line without Counters, the most frequent reason first."""
    return {k: dict(v.most_common()) if isinstance(v, Counter) else v for k, v in line.items()}


def paired(
    source: Source, rows: list[Row], s: SilverSettings, entry: dict[str, Any]
) -> list[dict[str, Any]]:
    """The pairs of one source; rows, tries and drops are counted in its line of the funnel."""
    sides: dict[int, list[Sides]] = {}
    if source.task == "question_answer":
        sides = answers(rows, s, entry["dropped"])
    else:
        make = choices if source.task == "multiple_choice" else decisions
        for n, row in enumerate(rows):
            try:
                sides[n] = make(row, s)
            except Unusable as error:
                entry["dropped"][str(error)] += 1
    pairs: list[dict[str, Any]] = []
    for n, found in sides.items():
        before = len(pairs)
        for suffix, chosen, rejected in found:
            entry["tried"] += 1
            if not s.ratio[0] <= length_ratio(chosen, rejected) <= s.ratio[1]:
                entry["pairs_dropped"]["lengths differ"] += 1
                continue
            row = rows[n]
            pairs.append(
                {
                    "id": f"{row.id}:{suffix}",
                    "category": "silver",
                    "kind": source.task,
                    "source": source.name,
                    "place": row.place,
                    "prompt": row.prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "license": source.license,
                }
            )
        entry["used"] += len(pairs) > before
        entry["dropped"]["no pair of like length"] += len(pairs) == before
    entry["pairs"] = len(pairs)
    entry["dropped"] += Counter()  # without zeros
    return pairs


def mean_ratios(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean words of chosen / rejected, by kind."""
    of = defaultdict(list)
    for pair in pairs:
        of[pair["kind"]].append(length_ratio(pair["chosen"], pair["rejected"]))
    return {kind: round(fmean(found), 3) for kind, found in of.items()}


def show(funnel: dict[str, Any], ratios: dict[str, float], left_out: dict[str, str]) -> None:
    """Print the funnel."""
    table = Table("source", "rows", "used", "pairs", "dropped, by reason", title="Silver pairs")
    for name, line in funnel.items():
        reasons = [f"{k} {n:,}" for k, n in line["dropped"].items()]
        reasons += [f"pairs: {k} {n:,}" for k, n in line["pairs_dropped"].items()]
        numbers = (f"{line[key]:,}" for key in ("rows", "used", "pairs"))
        table.add_row(name, *numbers, ", ".join(reasons))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", highlight=False, soft_wrap=True)
    for kind, ratio in ratios.items():
        print(f"{kind}: chosen / rejected words {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/silver/silver.jsonl")
    parser.add_argument("--accept", default="", help="terms to use besides open ones")
    args = parser.parse_args()
    began, accept = time.monotonic(), set(filter(None, args.accept.split(",")))
    s = settings(SILVER)
    used, left_out = choose_sources(s, accept)
    pairs, funnel = build(s, accept, args.out.parent)
    ratios = mean_ratios(pairs)
    facts_at = args.out.with_suffix(".manifest.json")
    facts_at.unlink(missing_ok=True)  # it tells of what is now replaced
    write_jsonl(args.out, pairs)
    inputs = {source.name: file for source in used if (file := source.file()) is not None}
    facts = manifest(
        "silver pairs",
        {"settings": SILVER, "mix": mix_stages.MIX, "declaration": sources.SOURCES, **inputs},
        began,
        seed=s.seed,
        accept=sorted(accept),
        rows=len(pairs),
        funnel=funnel,
        mean_ratio=ratios,
        left_out=left_out,
        outputs={args.out.name: sha256(args.out)},
    )
    write_json(facts_at, facts)
    if not used:
        print(f"no source can be used here, {args.out} is empty: " + "; ".join(
            f"{name}: {why}" for name, why in left_out.items()
        ))  # fmt: skip
        return
    show(funnel, ratios, left_out)
    print(f"{len(pairs):,} silver pairs: {args.out}")


if __name__ == "__main__":
    run_step(main)
