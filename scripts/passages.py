"""Passages that can be cited, their words, and the settings of retrieval.

Settings: data/retrieval/retrieval.yaml. Words are stemmed by Snowball (English) without bm25s's
stop words, for the search and for the citations alike.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path
from typing import Any

from bm25s.stopwords import STOPWORDS_EN_PLUS
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medalign.artifacts import ROOT, StepError
from medalign.rows import STRICT, stem
from medalign.rows import load as load_rows
from medalign.settings import declared

SETTINGS = ROOT / "data/retrieval/retrieval.yaml"
PASSAGES = ROOT / "data/retrieval/passages.jsonl"
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


class IndexSettings(BaseModel):
    """How the index is searched. k: passages at most; min_score: as Hit has it."""

    model_config = ConfigDict(extra="forbid")
    k: int = Field(ge=1, le=50)
    min_score: float = Field(ge=0)
    k1: float = Field(gt=0)
    b: float = Field(ge=0, le=1)
    stop_words: list[str]


class ContextSettings(BaseModel):
    """How passages are shown to the model."""

    model_config = ConfigDict(extra="forbid")
    words_per_passage: int = Field(ge=20)
    instruction: str


class CitationSettings(BaseModel):
    """Where and when a sentence is given a citation. min_support: of 0 to 1."""

    model_config = ConfigDict(extra="forbid")
    sections: list[str]
    min_support: float = Field(gt=0, le=1)
    min_words: int = Field(ge=1)
    per_sentence: int = Field(ge=1)


class Settings(BaseModel):
    """data/retrieval/retrieval.yaml; the part `pubmed` is read by scripts/pubmed.py."""

    model_config = ConfigDict(extra="forbid")
    index: IndexSettings
    context: ContextSettings
    citations: CitationSettings
    pubmed: dict[str, Any]


@functools.cache
def settings() -> Settings:
    """The settings as declared. StepError names the field that is wrong."""
    return declared(SETTINGS, Settings)


class Passage(BaseModel):
    """A text that can be cited as [id]. A record of PubMed, and nothing else, has a pmid."""

    model_config = STRICT
    id: str = Field(pattern=r"^(PMID [1-9][0-9]{0,8}|[A-Z]{2,8}-[0-9]{1,8})$")
    title: str = Field(min_length=1)
    text: str = Field(min_length=1)
    topic: str = ""
    source: str = Field(min_length=1)
    pmid: str | None = None
    journal: str | None = None
    year: int | None = None
    copyright: str | None = None

    @model_validator(mode="after")
    def _pmid_is_the_id(self) -> Passage:
        named = self.id.startswith("PMID") or self.pmid is not None
        if named and self.id != f"PMID {self.pmid}":
            raise ValueError("a pmid belongs to an id 'PMID <pmid>', and to no other")
        return self


@functools.cache
def stop_words() -> frozenset[str]:
    """Words that are not searched for. Single letters are: vitamin D is not vitamin B."""
    english = {w for w in STOPWORDS_EN_PLUS if len(w) > 1} | {"a", "i"}
    return frozenset(english | set(settings().index.stop_words))


def content_words(text: str) -> list[str]:
    """Stemmed words in lower case without stop words and accents."""
    text = unicodedata.normalize("NFKD", text).replace("\u2019", "'").lower()
    text = "".join(c for c in text if not unicodedata.combining(c))
    return [stem(word) for word in WORD.findall(text) if word not in stop_words()]


def read_passages(path: Path) -> list[Passage]:
    """The passages of a JSONL file. StepError names file and line of a fault or a repeated id."""
    table = load_rows(path, Passage)
    seen: dict[str, int] = {}
    for line, passage in table.rows:
        if passage.id in seen:
            table.fault(line, f"id {passage.id} also in line {seen[passage.id]}")
        seen[passage.id] = line
    if table.faults:
        raise StepError("; ".join(table.faults[:5]))
    if not table.rows:
        raise StepError(
            f"{path}: holds no passage; scripts/pubmed.py writes one, or write your own"
        )
    return [passage for _, passage in table.rows]
