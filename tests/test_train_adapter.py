"""Training's safety: what is resumed, what is dropped, and who may train at one time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import RECIPE

from medalign import train_adapter
from medalign.artifacts import ROOT, StepError
from medalign.recipe import read_yaml
from medalign.run_axolotl import locked, run_axolotl
from medalign.train_adapter import effective, fingerprint, prepare


@pytest.fixture
def config(tmp_path):
    """A configuration whose files exist without a base model."""
    config = read_yaml(RECIPE)
    config["base_model"] = "someone/on-a-hub"
    config["datasets"][0]["path"] = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return config


def checkpoint(folder, step, whole=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}" if whole else '{"global_')
    return path


def test_a_resumed_run_keeps_its_checkpoints(tmp_path, config):
    folder = tmp_path / "adapter.partial"
    prepare(folder, config, fingerprint(config))
    kept = checkpoint(folder, 20)
    prepare(folder, config, fingerprint(config))
    assert kept.exists()
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == config


def test_a_checkpoint_cut_short_is_dropped(tmp_path, config, capsys):
    folder = tmp_path / "adapter.partial"
    prepare(folder, config, fingerprint(config))
    whole, cut = checkpoint(folder, 20), checkpoint(folder, 40, whole=False)
    prepare(folder, config, fingerprint(config))
    assert whole.exists() and not cut.exists()
    assert "checkpoint-40 was cut short" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["recipe", "data"])
def test_a_changed_recipe_or_data_starts_anew(tmp_path, config, capsys, what):
    folder = tmp_path / "adapter.partial"
    prepare(folder, config, fingerprint(config))
    old = checkpoint(folder, 20)
    if what == "recipe":
        config["learning_rate"] = 1e-5
    else:
        (tmp_path / "rows.jsonl").write_text('{"other": 1}\n')
    prepare(folder, config, fingerprint(config))
    assert not old.exists()
    assert "starting anew" in capsys.readouterr().out


def test_two_trainings_of_one_run_are_refused(tmp_path):
    lock = tmp_path / "run/.train.lock"
    with locked(lock), pytest.raises(StepError, match="this run is being trained"), locked(lock):
        pass
    with locked(lock):
        pass  # free again


def test_a_child_that_outlives_its_parent_keeps_the_lock(tmp_path):
    lock = tmp_path / ".train.lock"
    with locked(lock) as descriptor:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    try:
        with pytest.raises(StepError), locked(lock):
            pass
    finally:
        child.communicate()
    with locked(lock):
        pass


def test_a_failing_axolotl_is_one_line_with_its_last_error(tmp_path, capfdbinary):
    code = "print('step 1', flush=True); raise RuntimeError('no such optimizer')"
    with pytest.raises(StepError, match=r"ended with 1: RuntimeError: no such optimizer \("):
        run_axolotl([sys.executable, "-c", code], tmp_path / "log")
    shown = capfdbinary.readouterr().out
    assert b"step 1" in shown and b"RuntimeError" not in shown
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_missing_data_file_is_named(tmp_path):
    rows = tmp_path / "nothing.jsonl"
    overrides = {"datasets": [{"path": str(rows), "type": "chat_template"}]}
    with pytest.raises(StepError, match=r"datasets\[0\]\.path names .*nothing\.jsonl"):
        effective(RECIPE, tmp_path / "adapter", overrides)


def test_one_variable_switches_weights_and_biases_on(tmp_path, monkeypatch, base, data):
    assert "use_wandb" not in effective(RECIPE, tmp_path / "adapter", {})
    monkeypatch.setenv("WANDB_PROJECT", "terms")
    config = effective(RECIPE, tmp_path / "adapter", {"seed": 7})
    assert (config["use_wandb"], config["wandb_project"], config["seed"]) == (True, "terms", 7)
    assert config["output_dir"].endswith("adapter.partial")


def test_a_malformed_override_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/train_adapter.py"), "--recipe", str(RECIPE)]
    command += ["--out", str(tmp_path / "adapter"), "--set", "seed"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stderr == "error: --set seed: write KEY=VALUE\n"
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == "[]"


def test_what_was_learnt_names_the_sources_that_trained(tmp_path, monkeypatch):
    """Later pairs without them change nothing: publish reads this where the rows were made anew."""
    monkeypatch.setattr(train_adapter, "ROOT", tmp_path)
    for folder in ("pairs", "own"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text("{}")
    theirs = {"name": "theirs", "license": "mit", "terms": "research", "hub": None, "columns": {}}
    facts = {
        "license": "apache-2.0, silver.jsonl as its sources say",
        "funnel": {"theirs": {"read": 9, "train": 8}, "dropped": {"read": 9, "train": 0}},
        "sources": {"theirs": theirs, "dropped": theirs, "an evaluation": {"license": "mit"}},
    }
    (tmp_path / "pairs/manifest.json").write_text(json.dumps(facts))
    names = {"datasets[0].path": "pairs/train.jsonl", "datasets[1].path": "own/train.jsonl"}
    monkeypatch.setattr(train_adapter, "local_files", lambda config: {**names, "base_model": "b"})
    data = train_adapter.learnt({})
    assert list(data) == ["train.jsonl", "own/train.jsonl"]
    assert data["train.jsonl"]["sources"] == {
        "theirs": {"license": "mit", "terms": "research", "hub": None}
    }
    assert data["own/train.jsonl"] == {
        "rows": None,
        "examples": None,
        "license": None,
        "sources": {},
    }
