"""The rows that silver pairs are made of: drawn of the sources, cleaned, none twice, none leaked.

The licence gate, cleaning, thresholds of near duplicates and the evaluations are those of the mix
(data/mix.yaml); data/preferences/silver.yaml says how many rows and within which limits.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from pydantic import Field, field_validator

from medalign import build_mix, convert_rows, mix_stages, near_duplicates, sources
from medalign.artifacts import ROOT, StepError
from medalign.convert_rows import Unusable
from medalign.decontaminate import Evaluations
from medalign.mix_stages import Strict, hash_of
from medalign.rows import words
from medalign.score_rows import STOP
from medalign.settings import declared
from medalign.sources import Source, columns

SILVER = ROOT / "data/preferences/silver.yaml"
PAIRED = ("multiple_choice", "abstract_question", "question_answer")
STOP_STEMS = frozenset(words(" ".join(STOP)))


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
