"""Recipes: found by walking, read with errors that name the place, tied to their family."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medalign import recipe
from medalign.artifacts import ROOT, StepError
from medalign.recipe import (
    RECIPES,
    all_recipes,
    check,
    family_of,
    local_files,
    model,
    read_yaml,
    system_prompt,
)

FAMILIES = list(read_yaml(recipe.MODELS))
SHORT = [path.relative_to(RECIPES).as_posix() for path in all_recipes()]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """A repository of one family with one recipe, all of whose files are there."""
    folder = tmp_path / "recipes" / "tiny"
    folder.mkdir(parents=True)
    (tmp_path / "recipes" / "models.yaml").write_text("tiny:\n  name: tiny\n")
    (tmp_path / "recipes" / "tiny.jinja").write_text("{{ messages }}")
    (tmp_path / "build" / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "build" / "train.jsonl").write_text("")
    config = {
        "base_model": "build/models/tiny",
        "chat_template_jinja": "recipes/tiny.jinja",
        "datasets": [{"path": "build/train.jsonl"}],
        "output_dir": "runs/tiny/sft/adapter",
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(recipe, "ROOT", tmp_path)
    monkeypatch.setattr(recipe, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(recipe, "MODELS", tmp_path / "recipes" / "models.yaml")
    return tmp_path


@pytest.fixture
def sft(repository: Path) -> Path:
    return repository / "recipes" / "tiny" / "sft.yaml"


# ---- the recipes of this repository


def test_the_embedded_default_is_among_the_recipes() -> None:
    assert "smollm2-135m/sft-lora-cpu.yaml" in SHORT


@pytest.mark.parametrize("short", SHORT)
def test_a_recipe_puts_its_adapter_where_its_name_says(short: str) -> None:
    path = RECIPES / short
    config = read_yaml(path)
    assert config["output_dir"] == f"runs/{family_of(path)}/{path.stem}/adapter"


@pytest.mark.parametrize("short", SHORT)
def test_a_recipe_belongs_to_a_family_that_is_known(short: str) -> None:
    assert family_of(RECIPES / short) in FAMILIES


@pytest.mark.parametrize("short", SHORT)
def test_a_recipe_names_a_template_that_is_committed(short: str) -> None:
    assert (ROOT / read_yaml(RECIPES / short)["chat_template_jinja"]).is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_all_that_serving_needs(family: str) -> None:
    entry = model(family)
    assert entry.family == family
    assert (ROOT / entry.ollama_template).is_file()
    assert entry.stop and entry.num_ctx > 0 and entry.parameters > 0


def test_the_system_prompt_is_that_of_the_data_folder() -> None:
    text = (ROOT / "data" / "system_prompt.txt").read_text(encoding="utf-8")
    assert system_prompt() == text.strip() != ""


# ---- finding recipes


def test_recipes_in_folders_below_a_family_are_found_too(repository: Path, sft: Path) -> None:
    deep = sft.parent / "ablations" / "rank.yaml"
    deep.parent.mkdir()
    deep.write_text("seed: 1\n")
    assert all_recipes() == [deep, sft]
    assert family_of(deep) == "tiny"


def test_yaml_that_is_in_no_family_is_no_recipe(repository: Path, sft: Path) -> None:
    other = repository / "recipes" / "distributed" / "accelerate.yaml"
    other.parent.mkdir()
    other.write_text("num_machines: 1\n")
    assert all_recipes() == [sft]


def test_a_recipe_outside_recipes_has_no_family(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"mine\.yaml: a recipe lies in recipes/<family>/"):
        family_of(tmp_path / "mine.yaml")


def test_a_file_right_in_recipes_has_no_family() -> None:
    with pytest.raises(StepError, match=r"models\.yaml: a recipe lies in"):
        family_of(RECIPES / "models.yaml")


def test_a_path_that_climbs_out_of_recipes_has_no_family() -> None:
    with pytest.raises(StepError, match="a recipe lies in"):
        family_of(RECIPES / "tiny" / ".." / ".." / "data" / "x.yaml")


def test_an_unknown_family_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(StepError, match="'gpt-5' is no model family") as error:
        model("gpt-5")
    assert all(family in str(error.value) for family in FAMILIES)


# ---- reading YAML


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(StepError, match=r"sft-lora-tpu\.yaml: no such recipe") as error:
        read_yaml(RECIPES / "smollm2-135m" / "sft-lora-tpu.yaml")
    assert all(f"recipes/{short}" in str(error.value) for short in SHORT)


@pytest.mark.parametrize(
    "text",
    ["seed: 1\nlist: ]\n", "seed: 1\nbase: *none\n", "seed: 1\n\tbase: x\n", "seed: 1\nx: y: z"],
)
def test_bad_yaml_is_named_by_file_and_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(StepError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: not YAML: ")
    assert "line 2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"base: \xff\n", b"base: \x00\n", b"began: 2026-02-31\n"])
def test_yaml_with_a_value_that_cannot_be_read_is_named_by_file(
    tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(StepError, match=r"bad\.yaml: not YAML: "):
        read_yaml(path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_yaml_that_is_no_mapping_is_named_by_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(StepError, match=r"list\.yaml: a recipe is a mapping of keys"):
        read_yaml(path)


# ---- checking a recipe


def test_a_recipe_whose_files_are_all_there_passes(sft: Path) -> None:
    check(sft, read_yaml(sft))


@pytest.mark.parametrize("key", ["base_model", "datasets", "output_dir", "chat_template_jinja"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_key_that_is_needed_is_named_with_the_recipe(sft: Path, key: str, value) -> None:
    with pytest.raises(StepError, match=f"sft.yaml: no {key}$"):
        check(sft, {**read_yaml(sft), key: value})


@pytest.mark.parametrize(
    ("key", "role", "value"),
    [
        ("base_model", "base_model", "runs/tiny/sft/merged"),
        ("base_model", "base_model", "build/models/none"),
        ("chat_template_jinja", "chat_template_jinja", "recipes/none.jinja"),
        ("datasets", r"datasets\[0\].path", [{"path": "build/data/none.jsonl"}]),
        ("deepspeed", "deepspeed", "recipes/distributed/none.json"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_key_and_recipe(
    sft: Path, key: str, role: str, value
) -> None:
    name = value[0]["path"] if isinstance(value, list) else value
    with pytest.raises(StepError, match=f"sft.yaml: {role} names {name}, which does not exist"):
        check(sft, {**read_yaml(sft), key: value})


def test_the_second_dataset_is_checked_too(sft: Path) -> None:
    datasets = [{"path": "build/train.jsonl"}, {"path": "build/more.jsonl"}]
    with pytest.raises(StepError, match=r"datasets\[1\].path names build/more.jsonl"):
        check(sft, {**read_yaml(sft), "datasets": datasets})


@pytest.mark.parametrize("datasets", [[{"type": "chat_template"}], ["build/train.jsonl"]])
def test_a_dataset_without_a_path_is_named(sft: Path, datasets: list) -> None:
    with pytest.raises(StepError, match=r"sft.yaml: .*datasets\[0\]"):
        check(sft, {**read_yaml(sft), "datasets": datasets})


def test_a_base_model_on_the_hub_is_no_local_file() -> None:
    config = {"base_model": "mistralai/Mistral-7B-Instruct-v0.3"}
    assert local_files(config) == {}
