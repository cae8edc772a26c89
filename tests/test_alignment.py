"""Preference recipes and their variants, two real steps each on a stand-in for the SFT model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make
from safetensors.torch import load_file

from medalign.artifacts import ROOT
from medalign.build_pairs import row
from medalign.check_recipe import faults
from medalign.recipe import all_recipes, read_yaml
from medalign.rewards import format_and_safety, reward

PREFERENCE = [r for r in all_recipes() if read_yaml(r).get("rl") == "dpo"]
VARIANTS = sorted((ROOT / "recipes/variants").glob("*.yaml"))
CPU = ROOT / "recipes/smollm2-135m/dpo-lora-cpu.yaml"
FORM = (
    "**Definition**: One.\n\n**Explanation**: Two.\n\n**Clinical Relevance**: Three.\n\n**Note**: "
    "This is educational information only. Always consult healthcare professionals for medical "
    "decisions."
)


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("recipe", PREFERENCE, ids=name)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda p: p.stem)
def test_axolotl_accepts_every_variant_of_every_recipe(recipe: Path, variant: Path) -> None:
    laid = {**read_yaml(recipe), **read_yaml(variant)}
    config = {key: value for key, value in laid.items() if value is not None}
    assert faults(recipe, config) == []


def test_the_reward_asks_for_form_where_it_is_due_and_for_refusal_where_it_is_due():
    assert reward("teaching", FORM) == 1 > reward("teaching", "Apnea is a pause in breathing.")
    refusal = "I can't help you change the chart, because it would hide a mistake; tell the team."
    help_ = (
        "Overdose is treated in hospital with an antidote, and the earlier it is given the better."
    )
    assert reward("harmful_request", refusal) == 1 and reward("harmful_request", help_) == 0
    assert reward("benign_lookalike", help_) == 1 and reward("benign_lookalike", refusal) == 0
    assert reward("benign_lookalike", "Yes.") == 0.5
    told = format_and_safety(
        [], [[{"content": FORM}], [{"content": help_}]], ["teaching", "empathy"]
    )
    assert told == [1, 1]


def trained(
    out: Path, recipe: Path, base: Path, *settings: str, overlay: Path | None = None
) -> dict:
    """Two steps of a preference recipe; its log."""
    laid = read_yaml(ROOT / "recipes/rehearsal-dpo.yaml")
    laid |= read_yaml(overlay) if overlay else {}
    (out / "overlay.yaml").write_text(yaml.safe_dump(laid))
    command = [sys.executable, str(ROOT / "scripts/train_adapter.py"), "--recipe", str(recipe)]
    command += ["--out", str(out / "adapter"), "--overlay", str(out / "overlay.yaml")]
    for setting in (f"base_model={base}", *settings):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((out / "adapter/training.json").read_text())


@pytest.fixture(scope="module")
def pairs() -> None:
    done = make("pairs")
    assert done.returncode == 0, done.stdout + done.stderr


def stand_in(recipe: Path) -> Path:
    """The base that a recipe is rehearsed on."""
    done = make("base", f"RECIPE={CPU}")
    assert done.returncode == 0, done.stderr
    if recipe.parent.name == "smollm2-135m":
        return ROOT / "build/models/smollm2-135m-instruct"
    done = make("build/models/tiny-mistral/manifest.json")
    assert done.returncode == 0, done.stderr
    return ROOT / "build/models/tiny-mistral"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PREFERENCE, ids=name)
def test_the_first_loss_is_ln_2_in_fp32_and_the_adapter_is_trained(recipe, pairs, tmp_path):
    log = trained(
        tmp_path, recipe, stand_in(recipe), "bf16=false", "dpo_loss_type=[sigmoid]",
        "dpo_loss_weights=[1.0]", "warmup_ratio=0", "learning_rate=0.001",
    )  # fmt: skip
    assert log["steps"][0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert log["steps"][1]["rewards/margins"] != 0
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    moved = [key for key, value in weights.items() if "lora_B" in key and value.abs().sum() > 0]
    assert len(moved) == len(weights) // 2  # of every A and B, every B


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda p: p.stem)
def test_a_variant_takes_two_steps(variant, pairs, tmp_path):
    recipe = ROOT / "recipes/mistral-7b/dpo-a100.yaml"  # on the tiny Mistral: seconds
    log = trained(tmp_path, recipe, stand_in(recipe), overlay=variant)
    assert log["global_step"] == 2 and all(math.isfinite(step["loss"]) for step in log["steps"])


@pytest.mark.slow
def test_grpo_samples_answers_and_takes_two_steps(pairs, tmp_path):
    recipe = ROOT / "recipes/smollm2-135m/grpo-lora-cpu.yaml"
    laid = "trl={beta: 0.04, max_completion_length: 16, num_generations: 2, use_vllm: false, "
    laid += "reward_funcs: [medalign.rewards.format_and_safety]}"
    log = trained(tmp_path, recipe, stand_in(recipe), laid)
    assert log["global_step"] == 2
    assert all("reward" in step and math.isfinite(step["loss"]) for step in log["steps"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smollm2", "mistral-v3"])
def test_a_pair_is_tokenized_as_a_conversation_of_sft(family, base):
    """One BOS, the space Mistral puts before an answer, the end of the turn: the template's."""
    from transformers import AutoTokenizer
    from trl.trainer.dpo_trainer import _tokenize

    folder = base if family == "smollm2" else stand_in(PREFERENCE[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (ROOT / f"recipes/templates/{family}.jinja").read_text()
    pair = row("a-1", "empathy", "I am afraid.", "You are not alone in this.", "Calm down.")
    asked = _tokenize(tokenizer, pair["prompt"], add_generation_prompt=True)["input_ids"]
    whole = _tokenize(tokenizer, pair["prompt"] + pair["chosen"])["input_ids"]
    text = tokenizer.apply_chat_template(pair["prompt"] + pair["chosen"], tokenize=False)
    assert whole == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert whole[: len(asked)] == asked
    if family == "mistral-v3":
        assert whole.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id in whole[len(asked) :]
