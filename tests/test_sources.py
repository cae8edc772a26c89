"""Reading the sources: what cannot be read as a row is a fault with its place, never skipped."""

import json
import re

import pytest
import yaml

from medalign import sources
from medalign.artifacts import StepError
from medalign.sources import DATA_DIR, Fault, Source, own_evaluations, rows


def source(local: str = "rows.jsonl", **changes) -> Source:
    facts = {
        "name": "tested", "hub": "some/where", "local": local, "license": "mit", "terms": "open",
        "task": "question_answer", "columns": {"question": "q", "answer": "a"},
    }  # fmt: skip
    return Source(**{**facts, **changes})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    return tmp_path


def test_the_declaration_is_read_and_names_each_fact_once():
    declared, evaluations = sources.load()
    assert {
        "medqa",
        "medmcqa",
        "pubmedqa-labeled",
        "pubmedqa-artificial",
        "meddialog",
        "medquad",
    } <= {s.name for s in declared}
    assert {"medqa-test", "medmcqa-validation", "pubmedqa-test", "mmlu-medical"} <= {
        e.name for e in evaluations
    }
    used = {(s.hub, s.config, s.split) for s in declared if s.hub}
    assert not used & {(e.hub, e.config, e.split) for e in evaluations if e.hub}


def test_every_set_of_the_repository_is_an_evaluation():
    names = {e.name for e in own_evaluations()}
    assert {"data/education/test", "evals/education_format/phrasing_frozen"} <= names


def test_sets_of_refusals_are_neither_sources_of_the_mix_nor_evaluations():
    declared, evaluations = sources.load()
    others = {d.local for d in (*declared, *evaluations)}
    for dataset in sources.refusals():
        assert dataset.terms != "open" and dataset.local not in others


def test_the_sources_that_trained_are_those_the_funnel_left_rows_of():
    said = {"a": {"terms": "research"}, "b": {"terms": "open"}}
    funnel = {"a": {"train": 3}, "b": {"train": 0}, "c": {"train": 1}}
    assert sources.trained({"sources": said, "funnel": funnel}) == {"a": said["a"], "c": {}}
    assert sources.trained({"sources": said}) == said  # pairs of a model's own answers have none
    assert sources.trained({}) == {}


def test_no_revision_is_made_up():
    for dataset in [d for part in (*sources.load(), sources.refusals()) for d in part]:
        assert dataset.revision is None or re.fullmatch("[0-9a-f]{40}", dataset.revision)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"splitt": "train"}, "splitt"),
        ({"terms": "free"}, "terms"),
        ({"task": "quiz"}, "task"),
        ({"revision": "main"}, "revision"),
    ],
)
def test_a_wrong_declaration_names_the_field(tmp_path, entry, said):
    facts = source().model_dump(exclude={"name"}, exclude_none=True) | entry
    file = tmp_path / "sources.yaml"
    file.write_text(yaml.safe_dump({"sources": {"x": facts}, "evaluations": {}}))
    with pytest.raises(StepError, match=said):
        sources.load(file)


def test_bad_lines_are_faults_with_their_place(folder):
    good = json.dumps({"q": "Q?", "a": "A."}).encode()
    lines = [
        good,
        b'{"q": "cut off',
        b'{"q": "\xff\xfe"}',
        b"[1]",
        b"",
        b'{"q": "' + b"x" * 500 + b'"}',
        good,
    ]
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    found = list(rows(source(), longest=200))
    assert [place for _, place, _ in found] == [f"rows.jsonl:{n}" for n in (1, 2, 3, 4, 6, 7)]
    reasons = [row.reason if isinstance(row, Fault) else "row" for _, _, row in found]
    assert reasons == ["row", "not JSON", "not UTF-8", "not an object", "row too long", "row"]


def test_the_pieces_are_the_whole(folder):
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"q": i, "a": i}) for i in range(23)))
    whole = list(rows(source()))
    pieces = [row for p in range(4) for row in rows(source(), p, 4)]
    assert sorted(pieces, key=lambda r: r[0]) == whole
    assert len(whole) == 23


def test_csv_rows_of_several_lines_and_bad_bytes(folder):
    (folder / "rows.csv").write_bytes(
        b'q,a\n"two\nlines",yes\nbad \xff byte,no\nonly one\none,two,three\nlast,row\n'
    )
    found = list(rows(source("rows.csv")))
    assert [place for _, place, _ in found] == [f"rows.csv:{n}" for n in (2, 4, 5, 6, 7)]
    assert found[0][2] == {"q": "two\nlines", "a": "yes"}
    assert [row.reason for _, _, row in found[1:4]] == [
        "not UTF-8", "wrong number of columns", "wrong number of columns",
    ]  # fmt: skip
    assert found[4][2] == {"q": "last", "a": "row"}


def test_a_json_file_that_is_no_list_names_the_file(folder):
    (folder / "rows.json").write_text('{"a": 1}')
    with pytest.raises(StepError, match=r"rows\.json: a list of rows is expected"):
        list(rows(source("rows.json")))
    (folder / "rows.json").write_text('[{"a": 1}')
    with pytest.raises(StepError, match=r"rows\.json: not JSON"):
        list(rows(source("rows.json")))


def test_a_hub_dataset_without_a_revision_is_refused(monkeypatch):
    monkeypatch.delenv(DATA_DIR, raising=False)
    with pytest.raises(StepError, match="not pinned to a revision: make pin"):
        list(rows(source()))


def test_a_hub_dataset_is_read_at_its_revision(monkeypatch):
    monkeypatch.delenv(DATA_DIR, raising=False)
    asked = []

    def load_dataset(name, config, split, revision):
        asked.append((name, config, split, revision))
        return [{"q": f"{config} {i}", "a": "A"} for i in range(5)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    pinned = source(revision="0" * 40, configs=["one", "two"])
    whole = list(rows(pinned))
    assert [row["q"] for _, _, row in whole] == [
        f"{c} {i}" for c in ("one", "two") for i in range(5)
    ]
    assert asked[0] == ("some/where", "one", "train", "0" * 40)
    assert sorted((r for p in range(3) for r in rows(pinned, p, 3)), key=lambda r: r[0]) == whole


def test_an_empty_or_absent_file_is_said(folder):
    assert "no rows.jsonl" in str(sources.missing(source()))
    (folder / "rows.jsonl").touch()
    assert sources.missing(source()) == "rows.jsonl is empty"


def test_half_characters_are_a_fault_that_can_be_written_down(folder):
    (folder / "rows.jsonl").write_text('{"q": "x \\ud83d"}\n\ufeff{"q": "fine"}')
    (_, _, bad), (_, _, good) = rows(source())
    assert bad.reason == "not UTF-8"
    assert good == {"q": "fine"}
    (folder / "rows.csv").write_bytes(b"q,a\n\xff only one\n")
    ((_, _, fault),) = rows(source("rows.csv"))
    fault.evidence.encode("utf-8")


def test_of_an_overlong_line_only_the_size_is_kept(folder):
    (folder / "rows.jsonl").write_bytes(b"x" * 5_000_000 + b'\n{"q": 1}\n')
    (_, place, fault), (_, after, row) = rows(source(), longest=1000)
    assert (place, fault.reason, fault.evidence) == (
        "rows.jsonl:1",
        "row too long",
        "5,000,001 bytes",
    )
    assert (after, row) == ("rows.jsonl:2", {"q": 1})


def test_a_pinned_hub_dataset_stands_in_for_a_file_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: [{"q": "Q", "a": "A"}])
    assert [row for _, _, row in rows(source(revision="0" * 40))] == [{"q": "Q", "a": "A"}]
