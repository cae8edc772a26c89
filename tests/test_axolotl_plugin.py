"""The Axolotl plugin: unknown keys, precision on a CPU, prepared data kept by content."""

from __future__ import annotations

import pytest
import torch
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from medalign import axolotl_plugin
from medalign.axolotl_plugin import MedAlignPlugin, content_key
from medalign.recipe import all_recipes, read_yaml


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    from medalign.artifacts import ROOT

    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_has_only_keys_that_axolotl_or_its_plugins_read(recipe):
    config = read_yaml(recipe)
    for plugin in config["plugins"]:
        PluginManager.get_instance().register(plugin)
    MedAlignPlugin().register(DictDefault(config))


def test_a_typo_is_an_error_that_names_the_nearest_key():
    with pytest.raises(ValueError, match="unknown key 'learning_rat', is it 'learning_rate'"):
        MedAlignPlugin().register(DictDefault({"learning_rat": 1}))


@pytest.mark.parametrize("has", [True, False])
def test_bf16_auto_on_a_cpu_is_what_the_cpu_computes_in(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(axolotl_plugin, "cpu_has_bf16", lambda: has)
    config = DictDefault({"bf16": "auto"})
    MedAlignPlugin().register(config)
    assert (config["bf16"], config["fp16"]) == (has, False)
    assert MedAlignPlugin().get_training_args(config)["use_cpu"] is True


@pytest.mark.parametrize(("capability", "bf16"), [((7, 5), False), ((8, 0), True)])
def test_bf16_auto_on_a_gpu_is_what_it_computes_in(monkeypatch, capability, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    config = DictDefault({"bf16": "auto"})
    MedAlignPlugin().register(config)
    assert (config["bf16"], config["fp16"]) == (bf16, not bf16)
    assert MedAlignPlugin().get_training_args(config) == {"logging_nan_inf_filter": False}


def test_prepared_data_is_kept_by_content(tmp_path):
    rows, template = tmp_path / "rows.jsonl", tmp_path / "t.jinja"
    rows.write_text("one"), template.write_text("two")
    config = {"datasets": [{"path": str(rows)}], "chat_template_jinja": str(template)}
    first = content_key(config)
    assert content_key(config) == first
    rows.write_text("three")
    second = content_key(config)
    template.write_text("four")
    assert len({first, second, content_key(config)}) == 3
    prepared = DictDefault({**config, "dataset_prepared_path": "build/prepared"})
    MedAlignPlugin().register(prepared)
    MedAlignPlugin().register(prepared)  # axolotl may do so twice
    assert prepared["dataset_prepared_path"] == f"build/prepared/{content_key(config)}"


def test_positions_of_a_resumed_run_are_those_of_all_its_sessions():
    log = [{"tokens/total": 10}, {"tokens/total": 25}, {"tokens/total": 7}, {"tokens/total": 9}]
    assert axolotl_plugin.positions(log) == 25 + 9
    assert axolotl_plugin.positions([{"num_tokens": 5}, {"num_tokens": 8}]) == 8
    assert axolotl_plugin.positions([{"loss": 1.0}]) is None
