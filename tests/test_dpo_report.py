"""The report of aligned runs: what is left out of it."""

from __future__ import annotations

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
