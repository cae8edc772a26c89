"""Artifacts: whole or not at all, hashes, and errors in one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign import artifacts
from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_jsonl,
    require_file,
    require_space,
    run_step,
    scratch,
    sha256,
    shown,
    write_json,
    write_jsonl,
    written_whole,
)


def names(folder: Path) -> list[str]:
    """The names in a folder, to see that nothing else is left in it."""
    return sorted(path.name for path in folder.iterdir())


def write_folder(path: Path, text: str) -> None:
    """Make a folder of one file."""
    path.mkdir()
    (path / "file").write_text(text)


# ---- written whole or not at all


def test_a_file_appears_only_when_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with written_whole(path) as temporary:
        temporary.write_text("all")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "all"
    assert names(path.parent) == ["file"]


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_replaced_at_the_end_with_nothing_of_the_old_in_it(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with written_whole(path) as temporary:
        write_folder(temporary, "new")
        assert names(path) == ["old"]
    assert names(path) == ["file"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("write", [Path.write_text, write_folder])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException], write) -> None:
    with pytest.raises(error), written_whole(tmp_path / "artifact") as temporary:
        write(temporary, "half")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_earlier_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), written_whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_earlier_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    with pytest.raises(error), written_whole(path) as temporary:
        write_folder(temporary, "half")
        raise error
    assert (path / "file").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_a_file_never_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_never_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert names(tmp_path) == ["folder"]
    assert (path / "file").read_text() == "old"


@pytest.mark.parametrize("left", [Path.write_text, write_folder])
def test_what_a_killed_run_left_is_no_hindrance(tmp_path: Path, left) -> None:
    path = tmp_path / "folder"
    left(artifacts.partial(path), "half")
    with written_whole(path) as temporary:
        assert not temporary.exists()
        write_folder(temporary, "new")
    assert (path / "file").read_text() == "new"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("write", [Path.write_text, write_folder])
def test_scratch_is_gone_in_the_end(tmp_path: Path, write) -> None:
    with scratch(tmp_path / "middle") as temporary:
        write(temporary, "intermediate")
        assert names(tmp_path) == [temporary.name]
    assert names(tmp_path) == []


def test_scratch_is_gone_after_an_interrupt_and_leaves_the_named_file(tmp_path: Path) -> None:
    path = tmp_path / "middle"
    path.write_text("mine")
    with pytest.raises(KeyboardInterrupt), scratch(path) as temporary:
        temporary.write_text("intermediate")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["middle"]
    assert path.read_text() == "mine"


def test_json_that_cannot_be_written_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"µ": 1})
    with pytest.raises(TypeError):
        write_json(path, {"path": path})
    assert path.read_text(encoding="utf-8") == '{\n  "µ": 1\n}\n'
    assert names(tmp_path) == ["facts.json"]


# ---- JSONL


@settings(deadline=None, database=None)
@given(rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())))
def test_rows_are_read_as_they_were_written(tmp_path_factory, rows: list[dict]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


@pytest.mark.parametrize(
    "line", [b"{broken", b'{"a": "\xff"}', b"[1]", b'"text"', b"null", b"", b'{"a": 1}{']
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(StepError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no\.jsonl does not exist; make data"):
        read_jsonl(tmp_path / "no.jsonl")
    with pytest.raises(StepError, match=r"no\.bin does not exist; make base"):
        require_file(tmp_path / "no.bin", "make base")
    assert require_file(tmp_path, "") == tmp_path


# ---- hashes and manifests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    (path / "inner").mkdir(parents=True)
    (path / "a").write_text("1")
    (path / "inner" / "b").write_text("2")
    return path


def test_the_hash_of_a_file_is_that_of_its_bytes(folder: Path) -> None:
    assert sha256(folder / "a") == hashlib.sha256(b"1").hexdigest()


def test_the_hash_of_a_folder_changes_with_content(folder: Path) -> None:
    before = sha256(folder)
    (folder / "inner" / "b").write_text("3")
    assert sha256(folder) != before


def test_the_hash_of_a_folder_changes_with_a_name(folder: Path) -> None:
    before = sha256(folder)
    (folder / "inner" / "b").rename(folder / "inner" / "c")
    assert sha256(folder) != before


def test_the_hash_of_a_folder_changes_when_two_files_change_places(folder: Path) -> None:
    before = sha256(folder)
    (folder / "a").write_text("2")
    (folder / "inner" / "b").write_text("1")
    assert sha256(folder) != before


def test_the_hash_of_a_folder_changes_with_a_file_more(folder: Path) -> None:
    before = sha256(folder)
    (folder / "inner" / "empty").touch()
    assert sha256(folder) != before


def test_the_hash_of_a_folder_ignores_its_manifest_and_its_own_name(folder: Path) -> None:
    before = sha256(folder)
    (folder / "manifest.json").write_text("{}")
    assert sha256(folder) == before
    assert sha256(folder.rename(folder.with_name("elsewhere"))) == before


def test_a_manifest_names_inputs_by_hash_and_keeps_the_facts(folder: Path) -> None:
    facts = manifest("a step", {"data": folder / "a", "model": folder}, 0.0, seed=7)
    assert facts["inputs"]["data"] == {"path": "a", "sha256": hashlib.sha256(b"1").hexdigest()}
    assert facts["inputs"]["model"]["sha256"] == sha256(folder)
    assert (facts["kind"], facts["seed"]) == ("a step", 7)
    assert facts["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert facts["hardware"]["cores"] >= 1
    json.dumps(facts)


def test_a_path_is_shown_relative_to_the_repository(tmp_path: Path) -> None:
    assert shown(ROOT / "data" / "system_prompt.txt") == "data/system_prompt.txt"
    assert shown(tmp_path / "elsewhere.txt") == "elsewhere.txt"


# ---- run_step


@pytest.fixture(autouse=True)
def old_handler():
    """run_step takes SIGTERM over: give it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def exit_code(main) -> int | str | None:
    """The code with which run_step leaves."""
    with pytest.raises(SystemExit) as left:
        run_step(main)
    return left.value.code


def raising(error: BaseException):
    """A main that raises `error`."""

    def main() -> None:
        raise error

    return main


def test_a_step_that_went_well_exits_with_0(capsys) -> None:
    assert exit_code(lambda: None) in (None, 0)
    assert capsys.readouterr().err == ""


def test_a_step_chooses_its_own_exit_code() -> None:
    assert exit_code(lambda: 3) == 3


def test_a_step_error_exits_with_1_and_one_line(capsys) -> None:
    assert exit_code(raising(StepError("data.jsonl:3: no id; add one"))) == 1
    assert capsys.readouterr().err == "error: data.jsonl:3: no id; add one\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_exits_with_1_and_one_line_that_says_so(capsys, code: int) -> None:
    reason = os.strerror(code)
    assert exit_code(raising(OSError(code, reason, "/runs/model.gguf"))) == 1
    message = capsys.readouterr().err
    assert message == f"error: /runs/model.gguf: {reason}; free space and run again\n"
    assert exit_code(raising(OSError(code, reason))) == 1
    assert capsys.readouterr().err.startswith(f"error: writing: {reason}")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_file_that_may_not_be_written_is_named_with_fitting_advice(capsys, code: int) -> None:
    assert exit_code(raising(OSError(code, os.strerror(code), "/runs/model.gguf"))) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: /runs/model.gguf: {os.strerror(code)}")
    assert message.count("\n") == 1
    assert "free space" not in message


def test_an_interrupt_exits_with_130_and_no_traceback(capsys) -> None:
    assert exit_code(raising(KeyboardInterrupt())) == 130
    message = capsys.readouterr().err.strip()
    assert message == "interrupted: what was finished is kept, run the same again"


def test_an_exit_passes_with_its_own_code() -> None:
    assert exit_code(raising(SystemExit(7))) == 7


@pytest.mark.parametrize("error", [KeyError("bug"), FileNotFoundError(errno.ENOENT, "no file")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_step(raising(error))


def test_a_terminated_step_exits_with_143_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    def main() -> None:
        with written_whole(tmp_path / "artifact") as temporary:
            temporary.write_text("half")
            signal.raise_signal(signal.SIGTERM)

    assert exit_code(main) == 143
    assert names(tmp_path) == []


# ---- disk space

Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_an_error_that_says_how_much(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2 * 2**30))
    require_space(tmp_path, 2.0)
    with pytest.raises(StepError, match=r"2\.0 GiB free, this step needs about 2\.5 GiB"):
        require_space(tmp_path, 2.5)


def test_space_is_looked_up_where_the_nearest_folder_is(tmp_path: Path, monkeypatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, 2**40))
    require_space(tmp_path / "runs" / "not" / "yet", 1.0)
    monkeypatch.chdir(tmp_path)
    require_space(Path("runs/model"), 1.0)
    assert asked == [tmp_path, tmp_path]
