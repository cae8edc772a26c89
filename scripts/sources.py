"""The sources of the mix and the evaluations it is kept apart from: data/sources.yaml, read.

Rows come one by one with their number and place, from the hub by pinned revision or, where
MEDALIGN_DATA_DIR names a folder, from the same files below it. What cannot be read as a row comes
as a Fault, with its place: nothing is skipped silently.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medalign.artifacts import ROOT, StepError

SOURCES = ROOT / "data/sources.yaml"
DATA_DIR = "MEDALIGN_DATA_DIR"
HELD = "holds an evaluation row"  # why a row was dropped, in every funnel
LARGEST_JSON = 2**26  # bytes of a .json file, which is parsed whole; JSONL has no such limit
csv.field_size_limit(2**27)

Columns = dict[str, str | list[str]]


class Dataset(BaseModel):
    """Where rows lie and what their columns are called."""

    model_config = ConfigDict(extra="forbid")
    name: str
    about: str = ""
    hub: str | None = None
    config: str | None = None
    configs: list[str] = Field(default_factory=list)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    split: str = "train"
    local: str | None = None
    path: str | None = None
    license: str
    columns: Columns
    hub_columns: Columns | None = None
    answers: Literal["letter", "text", "from 0", "from 1"] = "letter"
    shots: str | None = (
        None  # solved examples by config, below MEDALIGN_DATA_DIR; the hub's split dev
    )

    def file(self) -> Path | None:
        """The file to read instead of the hub: of the repository, or below MEDALIGN_DATA_DIR.

        Where it is not there, a pinned hub dataset is read.
        """
        if self.path:
            return ROOT / self.path
        folder = os.environ.get(DATA_DIR)
        if not folder or not self.local:
            return None
        file = Path(folder) / self.local
        return file if file.exists() or not (self.hub and self.revision) else None


Terms = Literal["open", "share-alike", "non-commercial", "unclear", "research"]


class Refusals(Dataset):
    """Harmful requests with the refusal of each: for preference pairs, never for the mix."""

    terms: Terms


class Source(Dataset):
    """Rows that may be trained on."""

    terms: Terms
    task: Literal[
        "multiple_choice", "abstract_question", "question_answer",
        "dialogue_note", "consultation", "conversation",
    ]  # fmt: skip
    system_prompt: bool = False


@dataclass(frozen=True)
class Fault:
    """A row that could not be read: why, and what of it can be shown."""

    reason: str
    evidence: str

    def __post_init__(self) -> None:
        # It is written down, and what was wrong may be that it cannot be.
        shown = self.evidence.encode("utf-8", "replace").decode()
        object.__setattr__(self, "evidence", shown)


D = TypeVar("D", bound=Dataset)
Read = tuple[int, str, dict[str, Any] | Fault]  # number from 0, place, row


def load(path: Path = SOURCES) -> tuple[list[Source], list[Dataset]]:
    """Sources and evaluations as declared. StepError names the field that is wrong."""
    return _declared(path, "sources", Source), _declared(path, "evaluations", Dataset)


def refusals(path: Path = SOURCES) -> list[Refusals]:
    """The sets of refused requests as declared. StepError names the field that is wrong."""
    return _declared(path, "refusals", Refusals)


def _declared(path: Path, part: str, kind: type[D]) -> list[D]:
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [kind(name=n, **d) for n, d in declared[part].items()]
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise StepError(f"{path}: {'; '.join(faults)}") from error
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise StepError(f"{path}: {error!r}") from error


def trained(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sources a manifest of training rows names, as it says them: those of which rows are left.

    Without a funnel all of them.
    """
    said = made.get("sources") or {}
    if not (funnel := made.get("funnel")):
        return said
    return {name: said.get(name, {}) for name, rows in funnel.items() if rows.get("train")}


def own_evaluations() -> list[Dataset]:
    """The evaluation prompts of this repository: every evals/*/*.jsonl, and the education test."""
    files = [ROOT / "data/education/test.jsonl", *sorted(ROOT.glob("evals/*/*.jsonl"))]
    asked: Columns = {"id": "id", "question": "prompt"}
    return [
        Dataset(
            name=file.relative_to(ROOT).with_suffix("").as_posix(),
            path=file.relative_to(ROOT).as_posix(),
            license="apache-2.0",
            columns={**asked, "answer": "answer"} if file == files[0] else asked,
        )
        for file in files
    ]


def evaluations() -> list[Dataset]:
    """Everything that training is kept apart from: the declared evaluations and our own."""
    return [*load()[1], *own_evaluations()]


def local_folder() -> Path:
    """The folder that MEDALIGN_DATA_DIR names. StepError if it names none."""
    if not (folder := os.environ.get(DATA_DIR)):
        raise StepError(f"{DATA_DIR} names no folder")
    return Path(folder)


def missing(source: Dataset) -> str | None:
    """Why a dataset cannot be read here, or None."""
    file = source.file()
    if file is not None:
        if not file.exists():
            return f"no {source.path or source.local}"
        return None if file.stat().st_size else f"{source.local or source.path} is empty"
    if source.hub is None:
        return f"not on the hub; {DATA_DIR} names a folder that has {source.local}"
    if source.revision is None:
        return f"{source.hub} is not pinned to a revision: make pin"
    return None


def rows(source: Dataset, piece: int = 0, pieces: int = 1, longest: int = 10**9) -> Iterator[Read]:
    """Rows number `piece`, `piece` + `pieces`, … of a dataset, with number and place.

    longest: bytes of a line; a longer one comes as a Fault. StepError where nothing can be read.
    """
    if (why := missing(source)) is not None:
        raise StepError(f"{source.name}: {why}")
    file = source.file()
    if file is None:
        yield from _hub_rows(source, piece, pieces, longest)
        return
    read = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}.get(file.suffix)
    if read is None:
        raise StepError(f"{file}: neither .jsonl, .json nor .csv")
    yield from read(file, piece, pieces, longest)


def _jsonl(file: Path, piece: int, pieces: int, longest: int) -> Iterator[Read]:
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(longest + 2):
            size = len(line)
            while not line.endswith(b"\n") and (rest := lines.readline(2**20)):
                size, line = size + len(rest), rest  # of a line too long only its size is wanted
            if number % pieces == piece and line.strip():
                place = f"{file.name}:{number + 1}"
                if size > longest + 1:
                    yield number, place, Fault("row too long", f"{size:,} bytes")
                else:
                    yield number, place, _object(line)
            number += 1


def _object(line: bytes) -> dict[str, Any] | Fault:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():  # half a character, written as an escape
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeError as error:
        return Fault("not UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        return Fault("not JSON", str(error))
    return row if isinstance(row, dict) else Fault("not an object", type(row).__name__)


def _json(file: Path, piece: int, pieces: int, longest: int) -> Iterator[Read]:
    if file.stat().st_size > LARGEST_JSON:
        raise StepError(
            f"{file}: {file.stat().st_size / 2**20:.0f} MiB in one JSON value; use JSONL"
        )
    try:
        found = json.loads(file.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StepError(f"{file}: not JSON in UTF-8: {error}") from error
    if not isinstance(found, list):
        raise StepError(f"{file}: a list of rows is expected, not {type(found).__name__}")
    for number, row in itertools.islice(enumerate(found), piece, None, pieces):
        yield number, f"{file.name}[{number}]", _parsed(row, longest)


def _parsed(row: Any, longest: int) -> dict[str, Any] | Fault:
    """A row that something else has parsed, held to the same limits."""
    if not isinstance(row, dict):
        return Fault("not an object", type(row).__name__)
    try:
        size = len(json.dumps(row, ensure_ascii=False, default=str).encode())
    except UnicodeError as error:
        return Fault("not UTF-8", str(error))
    return Fault("row too long", f"{size:,} bytes") if size > longest else row


def _csv(file: Path, piece: int, pieces: int, longest: int) -> Iterator[Read]:
    # Bytes that are no UTF-8 come as lone surrogates, so that only their row is rejected.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        heads = reader.fieldnames  # read before the first line is counted
        if not heads:
            raise StepError(f"{file}: no columns")
        numbers = itertools.count()
        while True:
            begin = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise StepError(f"{file}:{reader.line_num}: {error}") from error
            number = next(numbers)
            if number % pieces == piece:
                yield number, f"{file.name}:{begin}", _checked(row, longest)


def _checked(row: dict[Any, Any], longest: int) -> dict[str, Any] | Fault:
    if None in row or None in row.values():
        return Fault("wrong number of columns", str(next(iter(row.values())))[:200])
    size = sum(len(value) for value in row.values())
    if size > longest:
        return Fault("row too long", f"{size:,} characters")
    try:
        "".join(row.values()).encode("utf-8")
    except UnicodeEncodeError as error:
        return Fault("not UTF-8", str(error)[:200])
    return row


def _hub_rows(source: Dataset, piece: int, pieces: int, longest: int) -> Iterator[Read]:
    from datasets import load_dataset

    start = 0
    configs: list[str | None] = [*source.configs] or [source.config]
    for config in configs:
        try:
            found = load_dataset(source.hub, config, split=source.split, revision=source.revision)
        except Exception as error:
            where = f"{source.hub} at {source.revision}"
            raise StepError(f"{source.name}: {where} cannot be loaded: {error}") from error
        for number in range(start + (piece - start) % pieces, start + len(found), pieces):
            place = f"{source.hub}/{config or 'default'}/{source.split}[{number - start}]"
            yield number, place, _parsed(dict(found[number - start]), longest)
        start += len(found)


def columns(source: Dataset) -> Columns:
    """The columns of the rows as they come from where they are read."""
    return source.columns if source.file() is not None else source.hub_columns or source.columns


def key(row: dict[str, Any], column: str | list[str]) -> str:
    """What identifies a row: a column, or several joined; empty if one of them is."""
    parts = [row[name] for name in ([column] if isinstance(column, str) else column)]
    return "" if any(part in (None, "") for part in parts) else "/".join(map(str, parts))


def take(row: dict[str, Any], column: str | list[str]) -> Any:
    """A column's value; of several columns the list. KeyError names one that is not there."""
    if isinstance(column, list):
        return [row[name] for name in column]
    return row[column]
