"""The report of aligned runs: what is left out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medalign.artifacts import manifest_path, sha256, write_json
from medalign.dpo_report import answered, evaluated


def stage(run: Path, asked: str, quantized_from: str | None = None) -> Path:
    """A run whose GGUF "g1" was made of `quantized_from`, and an evaluation of `asked`."""
    (run / "merged").mkdir(parents=True)
    (run / "merged/model.safetensors").write_bytes(b"weights")
    made_from = quantized_from or sha256(run / "merged")
    write_json(
        manifest_path(run / "m.gguf"), {"sha256": "g1", "inputs": {"model": {"sha256": made_from}}}
    )
    scores = {"harmful": {"refused": {"k": 1, "n": 2}}}
    asked_of = {"model": {"path": f"runs/{run.name}/m.gguf", "sha256": asked}}
    write_json(run / "eval/safety.json", {"inputs": asked_of, "scores": scores, "items": []})
    return run


def test_an_evaluation_of_the_model_that_lies_there_counts(tmp_path: Path) -> None:
    assert evaluated(stage(tmp_path / "a", "g1")) == {"harmful": {"k": 1, "n": 2}}


@pytest.mark.parametrize(("asked", "quantized_from"), [("g0", None), ("g1", "trained anew since")])
def test_an_evaluation_of_an_earlier_model_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, quantized_from: str | None
) -> None:
    run = stage(tmp_path / "run", asked, quantized_from)
    assert evaluated(run) == {} and answered(run, "tuned.json") is None
    assert "safety.json is of an earlier model" in capsys.readouterr().out


def test_false_refusals_are_summed_over_the_harmless_sets(tmp_path: Path) -> None:
    run = stage(tmp_path / "a", "g1")
    path = run / "eval/safety.json"
    result = json.loads(path.read_text())
    asked = {"xstest_safe": (2, 250), "benign_medical": (3, 140)}
    result["scores"] |= {name: {"refused": {"k": k, "n": n}} for name, (k, n) in asked.items()}
    write_json(path, result)
    found = evaluated(run)["harmless"]
    assert (found["k"], found["n"]) == (5, 390) and found["low"] < 5 / 390 < found["high"]
