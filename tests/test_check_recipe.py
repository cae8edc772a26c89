"""Every recipe is right for the card in its name; each broken one is told its fault.

A file of tests/fixtures/broken_recipes/ is one fault put into a real recipe: `of` the recipe,
`set` the keys changed (null removes one), `fault` a pattern of what is to be said.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import pytest
import yaml
from axolotl.integrations.base import PluginManager
from conftest import script

from medalign import check_recipe
from medalign.artifacts import ROOT, StepError
from medalign.check_recipe import (
    HARDWARE,
    Card,
    card_of,
    faults,
    hardware_faults,
    isolated,
    validation_faults,
)
from medalign.pick_recipe import pick
from medalign.recipe import all_recipes, read_yaml

BROKEN = sorted((Path(__file__).parent / "fixtures/broken_recipes").glob("*.yaml"))
CARDS = [Card(name=name, **entry) for name, entry in read_yaml(HARDWARE).items()]
T4 = ROOT / "recipes/mistral-7b/sft-lora-t4.yaml"


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


# ---- the recipes of this repository


@pytest.mark.parametrize("recipe", all_recipes(), ids=name)
def test_a_recipe_has_no_fault_on_its_hardware(recipe: Path) -> None:
    assert faults(recipe, read_yaml(recipe)) == []


@pytest.mark.parametrize(
    ("recipe", "bf16"),
    [(r, bf16) for r in all_recipes() for bf16 in (True, False) if card_of(r).bf16 in (None, bf16)],
    ids=lambda value: name(value) if isinstance(value, Path) else f"bf16={value}",
)
def test_axolotl_accepts_a_recipe_on_its_hardware(recipe: Path, bf16: bool) -> None:
    with isolated():
        assert validation_faults(read_yaml(recipe), card_of(recipe), bf16) == []


@pytest.mark.parametrize("card", [card for card in CARDS if card.memory_gib], ids=lambda c: c.name)
def test_a_card_is_given_a_recipe_of_its_name(card: Card) -> None:
    assert card.compute_capability and card.memory_gib
    capability = int(card.compute_capability.removeprefix("sm_")) / 10
    assert pick([(card.name, capability, card.memory_gib)]).endswith(f"-{card.name}.yaml")
    assert pick([]).endswith("-cpu.yaml")


# ---- broken recipes


@pytest.mark.parametrize("file", BROKEN, ids=lambda p: p.stem)
def test_a_broken_recipe_is_told_its_fault(file: Path) -> None:
    broken = read_yaml(file)
    recipe = ROOT / broken["of"]
    config = {**read_yaml(recipe), **broken["set"]}
    found = faults(recipe, {key: value for key, value in config.items() if value is not None})
    assert any(re.search(f"^{broken['of']}: .*{broken['fault']}", line) for line in found), found


def test_a_fault_is_the_only_one_that_is_told() -> None:
    assert len(faults(T4, read_yaml(T4) | {"bf16": "auto"})) == 1
    assert len(faults(T4, read_yaml(T4) | {"learning_rat": 1})) == 1


def test_all_faults_are_told_at_once() -> None:
    wrong = {"bf16": True, "sample_packing": True, "learning_rat": 1, "warmup_steps": 10}
    assert len(faults(T4, read_yaml(T4) | wrong)) == len(wrong)


def test_a_name_without_hardware_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="one of -cpu, -t4, -a100") as error:
        card_of(tmp_path / "sft-lora-tpu.yaml")
    assert str(error.value).startswith("sft-lora-tpu.yaml: its name")


def test_a_full_fine_tuning_needs_no_word_on_lora_kernels() -> None:
    cpu = CARDS[0]
    config = {"plugins": [check_recipe.PLUGIN], "bf16": "auto", "tf32": False}
    assert list(hardware_faults(config, cpu)) == []


def test_what_axolotl_raises_unasked_is_a_fault_too(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise NotImplementedError("not on a Sunday")

    monkeypatch.setattr(check_recipe, "validate_config", refuse)
    assert faults(T4, read_yaml(T4)) == [f"{T4.relative_to(ROOT)}: axolotl: not on a Sunday"]


def test_checking_leaves_no_trace() -> None:
    manager = PluginManager.get_instance()
    config = read_yaml(T4)

    def state():
        silence = logging.root.manager.disable
        return list(manager.plugins), dict(os.environ), yaml.safe_dump(config), silence

    before = state()
    faults(T4, config)
    assert state() == before


# ---- the command


def test_the_command_says_ok_of_every_recipe_and_downloads_nothing() -> None:
    done = script("check_recipe.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{p.relative_to(ROOT)}: ok" for p in all_recipes()]


def test_the_command_names_the_faults_and_fails(tmp_path: Path, monkeypatch, capsys) -> None:
    broken = tmp_path / "broken-t4.yaml"
    broken.write_text(yaml.safe_dump(read_yaml(T4) | {"bf16": True, "sample_packing": True}))
    monkeypatch.setattr(sys, "argv", ["check_recipe.py", str(broken), str(T4)])
    assert check_recipe.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["broken-t4.yaml", "bf16"],
        ["broken-t4.yaml", "sample_packing"],
        [str(T4.relative_to(ROOT)), "ok"],
    ]
