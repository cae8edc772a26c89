"""The figures in the recipes' headers: parameters counted on torch's meta device, batches.

The adapter is put in by Axolotl's own code from the recipe, on a model of the real shape whose
weights take no memory.
"""

from __future__ import annotations

import math
import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from axolotl.loaders.adapter import load_adapter
from axolotl.utils.dict import DictDefault
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PreTrainedModel

from medalign import recipe as recipes
from medalign.artifacts import ROOT
from medalign.recipe import all_recipes, family_of, model, read_yaml

# config.json of mistralai/Mistral-7B-Instruct-v0.3
MISTRAL_7B = MistralConfig(
    vocab_size=32768,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=32768,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    sliding_window=None,
    tie_word_embeddings=False,
)
each_recipe = pytest.mark.parametrize(
    "recipe", all_recipes(), ids=lambda p: f"{p.parent.name}/{p.stem}"
)


@pytest.fixture
def empty_model(request):
    """family → a model of its shape, without weights."""

    def build(family: str) -> PreTrainedModel:
        if family == "mistral-7b":
            config = MISTRAL_7B
        else:
            config = AutoConfig.from_pretrained(request.getfixturevalue("base"))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    return build


def header(recipe: Path) -> dict[str, str]:
    """The labelled paragraphs of the comment that a recipe begins with."""
    paragraphs: dict[str, str] = {}
    label = ""
    for line in takewhile(lambda line: line.startswith("#"), recipe.read_text().splitlines()):
        if begins := re.match(r"# ([A-Z]\w+)  +(.*)", line):
            label, text = begins.groups()
            paragraphs[label] = text
        elif label:
            paragraphs[label] += " " + line.lstrip("# ")
    return paragraphs


def counted(model: torch.nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("family", list(read_yaml(recipes.MODELS)))
def test_a_family_has_as_many_parameters_as_it_says(family: str, empty_model) -> None:
    assert counted(empty_model(family)) == model(family).parameters


@each_recipe
def test_a_recipe_trains_as_many_parameters_as_its_header_says(recipe: Path, empty_model) -> None:
    config = DictDefault(read_yaml(recipe))
    with torch.device("meta"):
        tuned, _ = load_adapter(empty_model(family_of(recipe)), config, config["adapter"])
    said = re.search(
        r"([\d,]+) trainable parameters(?: \((\d+\.\d+) %\))?", " ".join(header(recipe).values())
    )
    assert said, "the header names no trainable parameters"
    assert counted(tuned, trainable=True) == int(said[1].replace(",", ""))
    if said[2]:  # of all, the adapter's own among them, as PEFT prints it
        share = 100 * counted(tuned, trainable=True) / counted(tuned)
        assert f"{share:.2f}" == said[2]


@pytest.mark.parametrize(
    ("name", "parameters"), [("sft-lora-t4", 83_886_080), ("sft-qlora-a100", 167_772_160)]
)
def test_mistral_recipes_train_every_linear_layer(name: str, parameters: int) -> None:
    config = read_yaml(ROOT / f"recipes/mistral-7b/{name}.yaml")
    wide, narrow, inner = 4096, 1024, 14336
    widths = 2 * (wide + wide) + 2 * (wide + narrow) + 3 * (wide + inner)
    assert 32 * config["lora_r"] * widths == parameters


@each_recipe
def test_a_header_names_the_batch_that_is_trained(recipe: Path) -> None:
    config, said = read_yaml(recipe), header(recipe)["Batch"]
    batch = re.match(r"(\d+)(?: x (\d+) accumulated = (\d+))?", said)
    assert batch, "the header names no batch"
    micro, accumulated = int(batch[1]), int(batch[2] or 1)
    assert micro == config["micro_batch_size"]
    assert accumulated == config["gradient_accumulation_steps"]
    assert int(batch[3] or micro) == micro * accumulated
    assert ("packed" in said) == bool(config.get("sample_packing"))
    if epochs := re.search(r"(\d+) epochs?", said):
        assert int(epochs[1]) == config["num_epochs"]
    if tokens := re.search(r"sequences of (\d+) tokens", said):
        assert int(tokens[1]) == config["sequence_len"]


@each_recipe
def test_a_header_names_the_steps_that_its_rows_make(recipe: Path, data: Path) -> None:
    config, said = read_yaml(recipe), header(recipe)["Batch"]
    steps = re.search(r"(\d+) rows.*? (\d+) epochs? = (\d+) steps", said)
    if not steps:
        pytest.skip("names none")
    rows = sum(len((ROOT / d["path"]).read_bytes().splitlines()) for d in config["datasets"])
    assert rows == int(steps[1])
    batch = config["micro_batch_size"] * config["gradient_accumulation_steps"]
    assert math.ceil(rows / batch) * config["num_epochs"] == int(steps[3])


@each_recipe
def test_a_header_names_rank_input_and_output(recipe: Path) -> None:
    config, said = read_yaml(recipe), header(recipe)
    assert {int(r) for r in re.findall(r"\br=(\d+)", said["Memory"])} <= {config.get("lora_r")}
    assert all(dataset["path"] in said["Input"] for dataset in config["datasets"])
    assert config["output_dir"] in said["Output"]
    assert recipe.relative_to(ROOT).as_posix() in recipe.read_text().partition("\n\n")[0]
