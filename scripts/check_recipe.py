"""Check recipes for the hardware in their names, without that hardware.

    python scripts/check_recipe.py [recipes/mistral-7b/sft-lora-t4.yaml …]
    python scripts/check_recipe.py --processes 4 --overlay recipes/distributed/zero2.yaml …

A recipe `<stage>-<card>.yaml` is held against the card's entry in recipes/hardware.yaml: keys
that nothing reads, what Axolotl lets pass although the card cannot do it, and Axolotl's own
validation, told that it runs on that card. Nothing is downloaded, no model is loaded.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pydoc import locate
from typing import Any
from unittest import mock

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")  # read when Axolotl is imported

from axolotl.integrations.base import PluginManager
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.enums import LEGACY_ATTN_FLAG_TO_IMPL
from pydantic import ValidationError

from medalign.artifacts import StepError, run_step, shown
from medalign.axolotl_plugin import unknown_keys
from medalign.distributed import sharding_faults, shared_out
from medalign.recipe import RECIPES, all_recipes, read_yaml

HARDWARE = RECIPES / "hardware.yaml"
PLUGIN = "medalign.axolotl_plugin.MedAlignPlugin"
LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")


@dataclass(frozen=True)
class Card:
    """An entry of recipes/hardware.yaml; None: differs from CPU to CPU."""

    name: str
    compute_capability: str | None
    memory_gib: float | None
    bf16: bool | None
    tf32: bool
    flash_attention_2: bool
    triton: bool


def card_of(recipe: Path) -> Card:
    """The card that the recipe's file name ends in. StepError if there is no such entry."""
    cards = read_yaml(HARDWARE)
    name = recipe.stem.rpartition("-")[2]
    if name not in cards:
        raise StepError(
            f"{shown(recipe)}: its name does not end in its hardware, one of -{', -'.join(cards)}"
            f" ({shown(HARDWARE)}); rename it"
        )
    return Card(name=name, **cards[name])


def hardware_faults(config: dict[str, Any], card: Card) -> Iterator[str]:
    """What Axolotl accepts and this card, or any, does not: "key: what and what to do"."""
    yield from precision_faults(config, card)
    yield from kernel_faults(config, card)
    yield from sharding_faults(config, gpu=bool(card.compute_capability))
    if PLUGIN not in (config.get("plugins") or []):
        yield f"plugins: without {PLUGIN} typos pass and make sft does not end; add it"
    if config.get("trust_remote_code"):
        yield "trust_remote_code: runs code that comes with a model; remove it"
    if config.get("adapter") == "lora" and config.get("load_in_4bit"):
        yield "load_in_4bit: is ignored under adapter: lora, nothing is quantized; write qlora"
    if config.get("fp16") and config.get("lora_modules_to_save"):
        yield "lora_modules_to_save: trains fp16 weights, which fp16's scaler refuses; remove it"
    for key in ("load_in_4bit", "load_in_8bit"):
        if config.get(key) and not card.compute_capability:
            yield f"{key}: saves memory that a CPU has and costs time; remove it"


def precision_faults(config: dict[str, Any], card: Card) -> Iterator[str]:
    """The number formats that the card does not compute in."""
    bf16, fp16 = config.get("bf16"), config.get("fp16")
    if card.bf16 is None:
        if bf16 not in ("auto", False):
            yield "bf16: not every CPU computes in it; write auto"
        if fp16:
            yield "fp16: a CPU does not train in it; remove it"
    elif not card.bf16:
        if bf16 is not False:
            yield f"bf16: a {card.name} only emulates it, also by way of auto; write false"
        if fp16 is not True:
            yield f"fp16: is the only half precision of a {card.name}; write true"
    if config.get("bfloat16") and not card.bf16:
        yield f"bfloat16: not every {card.name} computes in it; remove it"
    if not card.tf32 and config.get("tf32") is not False:
        yield f"tf32: a {card.name} does not compute in it; write false"


def kernel_faults(config: dict[str, Any], card: Card) -> Iterator[str]:
    """The kernels that are not made for the card."""
    if not card.flash_attention_2:
        asked = {flag: impl for flag, impl in LEGACY_ATTN_FLAG_TO_IMPL.items() if config.get(flag)}
        asked["attn_implementation"] = config.get("attn_implementation")
        for key, kernel in asked.items():
            if kernel not in ("sdpa", "eager", None):
                yield f"{key}: {kernel} does not run on a {card.name}; write sdpa"
        if config.get("sample_packing"):  # sdpa with packing calls a flash kernel as well
            yield f"sample_packing: needs a flash kernel, a {card.name} has none; write false"
    if not card.triton:
        for key in LORA_KERNELS:
            if config.get("adapter") and config.get(key) is not False:
                yield f"{key}: is on unless forbidden and needs sm_80 (Triton); write false"
        for key in config:
            if (key.startswith("liger_") or key == "lora_embedding_kernel") and config[key]:
                yield f"{key}: needs sm_80 (Triton); remove it"


@contextmanager
def isolated() -> Iterator[PluginManager]:
    """Axolotl silent, with no plugins yet and no GPU; all is put back at the end."""
    manager = PluginManager.get_instance()
    with (
        mock.patch.dict(manager.plugins, clear=True),
        mock.patch.dict(os.environ),
        mock.patch("torch.cuda.is_available", return_value=False),
    ):
        silenced = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield manager
        finally:
            logging.disable(silenced)


def validation_faults(
    config: dict[str, Any], card: Card, bf16: bool, processes: int = 1
) -> list[str]:
    """What Axolotl's validation says on so many such cards; bf16: whether they compute in it."""
    cfg = DictDefault(copy.deepcopy(config))
    if cfg["bf16"] == "auto":  # as the plugin decides on the hardware itself
        cfg["bf16"], cfg["fp16"] = bf16, bool(card.compute_capability) and not bf16
    capabilities = {
        "bf16": bf16,
        "fp8": False,
        "tf32": card.tf32,
        "n_gpu": processes,
        "compute_capability": card.compute_capability,
    }
    environment = {"torch_version": version("torch").partition("+")[0]}
    try:
        prepare_plugins(cfg)
        validate_config(cfg, capabilities=capabilities, env_capabilities=environment)
    except ValidationError as error:
        return [
            ": ".join([*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")])
            for e in error.errors()
        ]
    except Exception as error:  # of whatever kind: it is the recipe that Axolotl refuses
        return [f"axolotl: {error}"]
    return []


def faults(recipe: Path, config: dict[str, Any], processes: int = 1) -> list[str]:
    """All that is wrong with a recipe of this name and content: "recipe: key: what, what to do".

    processes: cards that share its batch. StepError if the name tells no hardware, or if the
    batch cannot be shared so.
    """
    card = card_of(recipe)
    config = shared_out(copy.deepcopy(config), processes)
    found = list(hardware_faults(config, card))
    with isolated() as manager:
        for plugin in list(config.get("plugins") or []):
            if locate(plugin):
                manager.register(plugin)
            else:
                found.append(f"plugins: there is no {plugin} to import; correct it")
                config["plugins"].remove(plugin)
        for key in list(config):
            if unknown := unknown_keys({key: None}):
                found.append(f"{key}: {unknown[0]}; correct or remove it")
                del config[key]
        for bf16 in [True, False] if card.bf16 is None else [card.bf16]:
            found += validation_faults(config, card, bf16, processes)
    return [f"{shown(recipe)}: {fault}" for fault in dict.fromkeys(found)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE", help="default: all")
    parser.add_argument("--overlay", type=Path, help="YAML of keys laid over each recipe")
    parser.add_argument("--processes", type=int, default=1, help="cards that share the batch")
    args = parser.parse_args()
    overlay = read_yaml(args.overlay) if args.overlay else {}
    bad = 0
    for recipe in args.recipes or all_recipes():
        config = {k: v for k, v in {**read_yaml(recipe), **overlay}.items() if v is not None}
        found = faults(recipe, config, args.processes)
        print("\n".join(found) or f"{shown(recipe)}: ok")
        bad += bool(found)
    return min(bad, 1)


if __name__ == "__main__":
    run_step(main)
