"""Figures in README are those of docs/results, and runs are pooled only if alike."""

from __future__ import annotations

import copy
import json

import pytest

from medalign.artifacts import StepError
from medalign.publish_results import (
    ALIGNED,
    ALIGNED_MARKS,
    MARKS,
    README,
    RESULTS,
    aligned_markdown,
    markdown,
    pool,
    with_table,
)


def run(seed: int, k: int) -> dict:
    """A run's manifest, as far as the table reads it."""
    one = {"k": k, "n": 50, "rate": k / 50, "low": 0.1, "high": 0.9}
    sets = {
        "test": {"strict": one},
        "frozen": {"strict": one, "by_term_in_training": {"seen": one, "unseen": one}},
    }
    adapter = {
        "seed": seed, "overrides": {"seed": seed}, "final_loss": 2.0,
        "train_seconds": 600, "dtype": "bf16",
        "hardware": {"cpu": "X", "cores": 2},
        "inputs": {
            "recipe": {"sha256": "r", "path": "recipes/x.yaml"},
            "datasets[0].path": {"sha256": "d"},
        },
    }  # fmt: skip
    steps = {
        "adapter": adapter,
        "gguf": {"quantization": "Q4_K_M"},
        "tuned evaluation": {"made": "2026-11-22T00:00:00"},
    }
    return {"steps": steps, "results": {"base": sets, "tuned": copy.deepcopy(sets)}}


def test_hits_and_prompts_are_added_up():
    row = pool([run(42, 50), run(1, 48)])["table"]["50 test prompts, new terms"]
    assert (row["pooled"]["k"], row["pooled"]["n"]) == (98, 100)
    assert row["first seed"]["k"] == 50


def test_runs_of_another_recipe_or_the_same_seed_are_not_pooled():
    other = run(1, 50)
    other["steps"]["adapter"]["inputs"]["recipe"]["sha256"] = "s"
    with pytest.raises(StepError):
        pool([run(42, 50), other])
    with pytest.raises(StepError):
        pool([run(42, 50), run(42, 50)])


def test_readmes_table_is_generated_from_the_results():
    text = README.read_text(encoding="utf-8")
    for path in RESULTS.glob("*-lora-cpu.json"):
        assert with_table(text, markdown(json.loads(path.read_text()))) == text
    assert any(RESULTS.glob("*-lora-cpu.json"))


def test_readmes_table_of_refusals_is_generated_from_the_results():
    text, result = README.read_text(encoding="utf-8"), json.loads(ALIGNED.read_text())
    assert with_table(text, aligned_markdown(result), ALIGNED_MARKS) == text
    for rates in result["results"].values():
        if "harmful" in rates:  # refusals never without the false ones
            assert {"xstest_safe", "benign_medical"} <= rates.keys()


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(StepError, match="marks"):
        with_table("no table here", "| x |")
    assert with_table(f"a\n{MARKS[0]}\nold\n{MARKS[1]}\nb", "new").count("new") == 1
