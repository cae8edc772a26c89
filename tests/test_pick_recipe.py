"""The hardware chooses the recipe; a fake nvidia-smi stands for the hardware."""

from __future__ import annotations

import pytest
from conftest import make

from medalign import pick_recipe
from medalign.artifacts import ROOT


@pytest.mark.parametrize(
    ("cards", "recipe"),
    [
        ([], pick_recipe.CPU),
        ([("Tesla T4", 7.5, 15.0)], pick_recipe.T4),
        ([("NVIDIA L4", 8.9, 22.5)], pick_recipe.T4),
        ([("NVIDIA A100-SXM4-40GB", 8.0, 40.0)], pick_recipe.A100),
        ([("NVIDIA H100", 9.0, 79.6)], pick_recipe.A100),
        ([("Quadro RTX 8000", 7.5, 47.5)], pick_recipe.T4),
    ],
)
def test_each_card_gets_the_recipe_it_can_run(cards, recipe):
    assert pick_recipe.pick(cards) == recipe


@pytest.mark.parametrize("card", [("Tesla V100", 7.0, 16.0), ("GeForce RTX 3050", 8.6, 8.0)])
def test_a_card_that_no_recipe_fits_is_told_so(card):
    with pytest.raises(ValueError, match=f"no recipe fits {card[0]}"):
        pick_recipe.pick([card])


def with_smi(tmp_path, monkeypatch, line):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{line}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_make_asks_the_hardware(tmp_path, monkeypatch):
    with_smi(tmp_path, monkeypatch, "Tesla T4, 7.5, 15360")
    assert f"now: {pick_recipe.T4}" in make("help").stdout


def test_make_sft_refuses_an_unsupported_card_in_one_line(tmp_path, monkeypatch):
    with_smi(tmp_path, monkeypatch, "Tesla P100-PCIE-16GB, 6.0, 16384")
    done = make("sft")
    assert done.returncode != 0
    assert "error: no recipe fits Tesla P100-PCIE-16GB (sm_60" in done.stderr


def test_an_unknown_recipe_is_refused_with_those_there_are():
    done = make("sft", "RECIPE=recipes/smollm2-135m/nothing.yaml")
    assert done.returncode != 0
    assert "no such recipe" in done.stderr and "sft-lora-cpu.yaml" in done.stderr


def test_the_recipes_it_picks_exist():
    for recipe in (pick_recipe.CPU, pick_recipe.T4):
        assert (ROOT / recipe).is_file()
