"""The chats that training reads: their shape, their number, and that they are made whole."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from medalign import build_sft
from medalign.artifacts import ROOT, StepError

DATA = ROOT / "data"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The education set, built once."""
    out = tmp_path_factory.mktemp("build") / "education"
    build_sft.build(out)
    return out


def prompts_by_id(chats: list[dict[str, Any]]) -> dict[str, list[str]]:
    prompts = defaultdict(list)
    for chat in chats:
        prompts[chat["id"]].append(chat["messages"][1]["content"])
    return prompts


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_chat_is_system_user_assistant_and_nothing_else(built: Path, split: str) -> None:
    for chat in read(built / f"{split}.jsonl"):
        assert set(chat) == {"id", "category", "messages"}
        assert [m["role"] for m in chat["messages"]] == ["system", "user", "assistant"]
        assert all(set(m) == {"role", "content"} for m in chat["messages"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_system_message_is_the_one_system_prompt(built: Path, split: str) -> None:
    prompt = (DATA / "system_prompt.txt").read_text(encoding="utf-8").strip()
    assert {c["messages"][0]["content"] for c in read(built / f"{split}.jsonl")} == {prompt}


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_and_category_is_that_of_its_row(built: Path, split: str) -> None:
    rows = {row["id"]: row for row in read(DATA / "education" / f"{split}.jsonl")}
    for chat in read(built / f"{split}.jsonl"):
        assert chat["messages"][2]["content"] == rows[chat["id"]]["answer"]
        assert chat["category"] == rows[chat["id"]]["category"]


def test_each_of_150_examples_is_asked_for_in_6_ways(built: Path) -> None:
    prompts = prompts_by_id(read(built / "train.jsonl"))
    assert len(prompts) == 150
    assert {len(ways) for ways in prompts.values()} == {6}
    assert {len(set(ways)) for ways in prompts.values()} == {6}


def test_the_prompts_are_those_of_the_row_and_its_wordings(built: Path) -> None:
    own = {row["id"]: [row["prompt"]] for row in read(DATA / "education" / "train.jsonl")}
    for row in read(DATA / "education" / "wordings.jsonl"):
        own[row["id"]] += row["wordings"]
    prompts = prompts_by_id(read(built / "train.jsonl"))
    assert {i: sorted(p) for i, p in prompts.items()} == {i: sorted(p) for i, p in own.items()}


def test_each_of_50_test_rows_keeps_its_one_prompt(built: Path) -> None:
    rows = read(DATA / "education" / "test.jsonl")
    assert len(rows) == 50
    asked = [(c["id"], c["messages"][1]["content"]) for c in read(built / "test.jsonl")]
    assert asked == [(row["id"], row["prompt"]) for row in rows]


def test_the_wordings_of_an_example_do_not_stand_together(built: Path) -> None:
    ids = [chat["id"] for chat in read(built / "train.jsonl")]
    neighbours = sum(a == b for a, b in pairwise(ids))
    assert neighbours < len(ids) / 20


def test_two_builds_are_byte_identical(built: Path, tmp_path: Path) -> None:
    build_sft.build(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()
    first, second = (json.loads((out / "manifest.json").read_text()) for out in (built, tmp_path))
    assert first | {"made": "", "wall_seconds": 0} == second | {"made": "", "wall_seconds": 0}


def test_the_manifest_holds_the_hashes_of_what_went_in_and_came_out(built: Path) -> None:
    facts = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    assert set(facts["inputs"]) == {"train", "test", "wordings", "system_prompt"}
    for entry in facts["inputs"].values():
        content = (ROOT / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert set(facts["outputs"]) == {"train.jsonl", "test.jsonl"}
    for name, digest in facts["outputs"].items():
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == digest


def test_the_manifest_counts_what_is_in_the_files(built: Path) -> None:
    facts = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    assert facts["rows"] == {"train": 900, "test": 50}
    assert facts["examples"] == {"train": 150, "test": 50}
    for split in ("train", "test"):
        categories = Counter(chat["category"] for chat in read(built / f"{split}.jsonl"))
        assert facts["categories"][split] == categories


@pytest.mark.parametrize("writer", ["write_jsonl", "write_json"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch, writer: str, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = tmp_path / "education"
    out.mkdir()
    (out / "train.jsonl").write_text("earlier")
    monkeypatch.setattr(build_sft, writer, fail)
    with pytest.raises(error):
        build_sft.build(out)
    assert [path.name for path in tmp_path.iterdir()] == ["education"]
    assert [path.name for path in out.iterdir()] == ["train.jsonl"]
    assert (out / "train.jsonl").read_text() == "earlier"


def test_a_set_with_faults_is_not_built(tmp_path: Path, monkeypatch) -> None:
    def faults() -> None:
        raise StepError("3 faults")

    out = tmp_path / "education"
    monkeypatch.setattr(build_sft, "check_education", faults)
    monkeypatch.setattr(sys, "argv", ["build_sft.py", "--out", str(out)])
    with pytest.raises(StepError, match="3 faults"):
        build_sft.main()
    assert not out.exists()


def test_the_command_says_what_it_has_built(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "education"
    monkeypatch.setattr(build_sft, "check_education", lambda: None)
    monkeypatch.setattr(sys, "argv", ["build_sft.py", "--out", str(out)])
    build_sft.main()
    assert capsys.readouterr().out == f"{out}: 900 training rows, 50 test rows\n"
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "test.jsonl", "train.jsonl"]
