"""Pinning writes only what the hub named, and only where nothing stood."""

import pytest
import yaml

from medalign.artifacts import StepError
from medalign.pin_revisions import MODELS, pin
from medalign.sources import SOURCES

COMMIT = "a" * 40
TEXT = """\
# a comment
sets:
  one:
    hub: some/where
    revision: null  # later
    split: train
  two:
    hub: null
    revision: null

  three:
    revision: null
    hub: else/where
  four:
    hub: pinned/already
    revision: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
"""


def test_null_is_filled_in_and_all_else_stays():
    asked = []
    text, pinned = pin(TEXT, "hub", lambda name: asked.append(name) or COMMIT)
    assert asked == ["some/where", "else/where"]
    assert pinned == [f"some/where @ {COMMIT}", f"else/where @ {COMMIT}"]
    assert text.replace(f"revision: {COMMIT}", "revision: null") == TEXT
    assert "# later" in text


@pytest.mark.parametrize("answer", [None, "", "main", "a" * 39])
def test_what_is_no_commit_is_not_written(answer):
    with pytest.raises(StepError, match="some/where: the hub named no commit"):
        pin(TEXT, "hub", lambda name: answer)


@pytest.mark.parametrize(("path", "key"), [(SOURCES, "hub"), (MODELS, "hub_id")])
def test_the_real_files_can_be_pinned(path, key):
    text, pinned = pin(path.read_text("utf-8"), key, lambda name: COMMIT)
    before, after = yaml.safe_load(path.read_text("utf-8")), yaml.safe_load(text)

    def entries(tree):
        if isinstance(tree, dict):
            if "revision" in tree:
                yield tree
            for value in tree.values():
                yield from entries(value)

    assert len(pinned) == sum(e["revision"] is None and bool(e.get(key)) for e in entries(before))
    assert all(e["revision"] for e in entries(after) if e.get(key))
