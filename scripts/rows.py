"""Rows of a JSONL file under a schema; every fault is kept with its file and line."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import snowballstemmer
from pydantic import BaseModel, ConfigDict, ValidationError
from rapidfuzz import fuzz, process

from medalign.artifacts import ROOT, require_file

STRICT = ConfigDict(extra="forbid", str_strip_whitespace=False)
Row = TypeVar("Row", bound=BaseModel)


@dataclass
class Table(Generic[Row]):
    """The rows of one JSONL file that fit its schema, with their lines, and the faults."""

    path: Path
    rows: list[tuple[int, Row]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def fault(self, line: int, message: str) -> None:
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        self.faults.append(f"{name}:{line}: {message}")


def load(path: Path, schema: type[Row]) -> Table[Row]:
    """Read a JSONL file, keeping what fits the schema and a fault for all that does not."""
    table: Table[Row] = Table(path)
    require_file(path, "git checkout brings it back")
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            table.rows.append((number, schema.model_validate(json.loads(raw.decode("utf-8")))))
        except ValidationError as error:
            for e in error.errors():
                where = ".".join(map(str, e["loc"])) or "row"
                table.fault(number, f"{where}: {e['msg']}")
        except ValueError as error:
            table.fault(number, f"not a line of JSON in UTF-8 ({error})")
    return table


stem = functools.cache(snowballstemmer.stemmer("english").stemWord)


def words(text: str) -> list[str]:
    """Lower-cased, stemmed words (Snowball, English)."""
    return [stem(word) for word in re.findall(r"[a-z0-9]+", text.lower())]


def first_seen(entries: Iterable[tuple[Table[Any], int, str]], what: str) -> None:
    """A fault for every entry (table, line, key) whose key occurred before."""
    seen: dict[str, tuple[str, int]] = {}
    for table, line, key in entries:
        if key in seen:
            name, other = seen[key]
            table.fault(line, f"{what} also at {name}:{other}: {key[:80]!r}")
        else:
            seen[key] = (table.path.name, line)


def near_twins(texts: list[str], cutoff: float) -> Iterator[tuple[int, int]]:
    """Indices (i, j), j < i, of texts whose words are the same to `cutoff`.

    cutoff: of 0 to 100, rapidfuzz's ratio of the sorted words. They are sorted once here:
    token_sort_ratio sorts them for every pair.
    """
    sorted_words = [" ".join(sorted(text.split())) for text in texts]
    alike = process.cdist(sorted_words, sorted_words, scorer=fuzz.ratio, score_cutoff=cutoff)
    for i in range(len(texts)):
        yield from ((i, int(j)) for j in alike[i, :i].nonzero()[0])
