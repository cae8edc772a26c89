"""Every recipe, two real steps on a CPU, as far as a GGUF that is served as it was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make

from medalign.artifacts import ROOT, manifest_path
from medalign.recipe import all_recipes, family_of, model, read_yaml

pytestmark = pytest.mark.slow
RECIPES = [r for r in all_recipes() if not read_yaml(r).get("rl")]


def folder_of(recipe: Path) -> Path:
    return ROOT / "build/rehearsal" / family_of(recipe) / recipe.stem


@pytest.fixture(scope="module", params=RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def rehearsed(request):
    """A recipe and what `make verify REHEARSAL=1` printed of it."""
    recipe = request.param
    done = make("verify", "REHEARSAL=1", f"RECIPE={recipe.relative_to(ROOT)}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return recipe, done.stdout


def test_two_steps_were_taken_on_what_the_recipe_says(rehearsed):
    recipe, _ = rehearsed
    folder, wanted = folder_of(recipe), read_yaml(recipe)
    log = json.loads((folder / "adapter/training.json").read_text())
    assert log["global_step"] == 2 and all(s["loss"] > 0 for s in log["steps"])
    made = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"]) == (wanted["lora_r"], wanted["lora_alpha"])
    assert made["lora_dropout"] == wanted["lora_dropout"]
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(made["target_modules"]) == projections
    merged = json.loads((folder / "merged/manifest.json").read_text())
    assert (merged["qlora_merge"] is None) == (wanted["adapter"] != "qlora")


def test_trained_is_served(rehearsed):
    recipe, printed = rehearsed
    parity = json.loads((folder_of(recipe) / "parity.json").read_text())
    assert "⟦**Definition**: " in printed and "0 mismatches" in printed
    assert parity["mismatches"] == 0 and parity["conversations"] > 300
    ways = {"training row", "llama.cpp", "llama.cpp template", "Ollama", "Ollama template"}
    assert ways <= set(parity["compared"]) and parity["compared"]["Ollama"] > 300
    assert ("mistral-common" in parity["compared"]) == (family_of(recipe) == "mistral-7b")


def test_the_gguf_is_really_quantized(rehearsed):
    recipe, _ = rehearsed
    gguf = folder_of(recipe) / f"{model(family_of(recipe)).name}-Q4_K_M.gguf"
    facts = json.loads(manifest_path(gguf).read_text())
    assert facts["quantization_loss"]["tokens"] > 1500
    if family_of(recipe) == "mistral-7b":  # 576 is no multiple of 256
        assert set(facts["tensor_types"]) == {"F32", "Q4_K", "Q6_K"}


def test_accelerate_launch_starts_it_as_well(rehearsed, tmp_path):
    recipe, _ = rehearsed
    laid_over = folder_of(recipe) / "adapter/recipe.yaml"
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu"]
    command += ["-m", "axolotl.cli.train", str(laid_over), "--max_steps=1", "--save_steps=1"]
    command += [f"--output_dir={tmp_path / 'adapter'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "adapter/training.json").read_text())["global_step"] == 1


def test_what_is_not_there_yet_is_named():
    """The A100 recipe trains on the curated mix as well."""
    recipe = "recipes/mistral-7b/sft-qlora-a100.yaml"
    if (ROOT / "build/data/train.jsonl").exists():
        pytest.skip("the mix is there")
    command = [sys.executable, "scripts/train_adapter.py", "--recipe", recipe]
    command += ["--out", "build/nothing/adapter", "--set", "base_model=build/models/tiny-mistral"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "datasets[1].path names build/data/train.jsonl, which does not exist" in done.stderr
