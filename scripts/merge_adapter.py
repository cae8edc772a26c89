"""Merge an adapter into its base: adapter → ordinary model folder.

    python scripts/merge_adapter.py --adapter runs/smollm2-135m/sft-lora-cpu/adapter \\
        --out runs/smollm2-135m/sft-lora-cpu/merged

Runs `axolotl merge-lora` with the recipe that the adapter was trained with. What a QLoRA
adapter is merged into, the recipe's `qlora_merge` says (medalign.trained_base). The merged
folder gets what a converter and a server need beside the weights: tokenizer, SentencePiece
file, chat template, generation settings that stop at the end of a turn.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    require_file,
    require_space,
    run_step,
    scratch,
    write_json,
    written_whole,
)
from medalign.recipe import read_yaml
from medalign.run_axolotl import run_axolotl
from medalign.trained_base import (
    DTYPES,
    QloraMerge,
    fetch,
    qlora_merge,
    shards,
    write_as_trained,
)


def finish(merged: Path, base: Path, template: Path) -> None:
    """Bring what the merge leaves out: tokenizer.model, our template, the eos of a turn."""
    if not (merged / "tokenizer.model").exists() and (base / "tokenizer.model").exists():
        shutil.copyfile(base / "tokenizer.model", merged / "tokenizer.model")
    (merged / "chat_template.jinja").write_text(template.read_text())
    settings = merged / "tokenizer_config.json"
    tokenizer = json.loads(settings.read_text())
    if tokenizer.pop("chat_template", None):  # the file speaks for itself
        settings.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False))
    # Greedy by default: a temperature belongs to whoever serves the model.
    generation = merged / "generation_config.json"
    if (base / "generation_config.json").exists():
        shutil.copyfile(base / "generation_config.json", generation)


def merge_recipe(
    config: dict[str, Any], base: Path, work: Path, way: QloraMerge | None, dtype: str
) -> dict[str, Any]:
    """The recipe that `axolotl merge-lora` gets, its base being a folder.

    base: the base's folder. work: where a base as trained may be written. dtype: bf16, fp16
    or fp32, as trained.
    """
    if way == "as_trained":
        write_as_trained(base, work / "base", config, DTYPES[dtype])
        base = work / "base"
    plan = {**config, "base_model": str(base)}
    plan.pop("revision_of_model", None)  # of the hub's
    if way in ("as_trained", "unquantized"):  # to Axolotl an ordinary LoRA: no NF4 of its own
        plan |= {"adapter": "lora", "load_in_4bit": False}
    return plan


def scaled(adapter: Path, scale: float, work: Path) -> Path:
    """A copy of the adapter whose change of the weights, B A, is `scale` times as large."""
    copy = work / "adapter"
    shutil.copytree(adapter, copy, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    tensors = load_file(copy / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensors[name] = tensor * scale
        elif "lora_A" not in name:
            raise StepError(f"{name} is no part of B A: only a plain LoRA can be scaled")
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    return copy


def merge(
    adapter: Path, out: Path, way: QloraMerge | None = None, scale: float = 1.0
) -> dict[str, Any]:
    """Merge `adapter` into its base. Returns the manifest.

    way: another base for a QLoRA adapter than its recipe says. scale: of what was learnt, 0 the
    base, 1 as trained.
    """
    began = time.monotonic()
    recipe = require_file(adapter / "recipe.yaml", "make sft trains the adapter")
    require_file(adapter / "adapter_model.safetensors", "make sft trains the adapter")
    trained = json.loads(require_file(adapter / "manifest.json", "make sft").read_text())
    config = read_yaml(recipe)
    way = qlora_merge(config) and (way or qlora_merge(config))
    base = fetch(config)
    weights = sum(p.stat().st_size for p in shards(base)) / 2**30
    require_space(out, 0.5 + (2.2 if way == "as_trained" else 1.2) * weights)
    with scratch(out.with_name("merging")) as work, written_whole(out) as folder:
        work.mkdir()
        plan = merge_recipe(config, base, work, way, trained["dtype"])
        (work / "recipe.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        command = [str(Path(sys.executable).parent / "axolotl"), "merge-lora"]
        learnt = adapter if scale == 1 else scaled(adapter, scale, work)
        command += [str(work / "recipe.yaml"), "--lora-model-dir", str(learnt)]
        command += ["--output-dir", str(work)]
        log = out.with_name("merge.log")
        run_axolotl(command, log)
        if not any((work / "merged").glob("*.safetensors")):
            raise StepError(f"axolotl merge-lora wrote no weights; see {log}")
        (work / "merged").rename(folder)
        finish(folder, base, ROOT / config["chat_template_jinja"])
        local = (ROOT / config["base_model"]).is_dir()
        facts = manifest(
            "merged",
            {"adapter": adapter} | ({"base": base} if local else {}),
            began,
            name=trained["name"],
            base={"id": config["base_model"], "revision": None if local else base.name},
            merge_method=config.get("merge_method", "memory_efficient"),
            qlora_merge=way,
            scale=scale,
        )
        write_json(folder / "manifest.json", facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="of what was learnt, 1 all")
    args = parser.parse_args()
    merge(args.adapter, args.out, scale=args.scale)
    print(f"{args.out}: merged")


if __name__ == "__main__":
    run_step(main)
