"""Merge an adapter into its base: adapter → ordinary model folder.

    python scripts/merge_adapter.py --adapter runs/smollm2-135m/sft-lora-cpu/adapter \\
        --out runs/smollm2-135m/sft-lora-cpu/merged

Runs `axolotl merge-lora` with the recipe that the adapter was trained with. The merged folder
gets what a converter and a server need beside the weights: tokenizer, SentencePiece file,
chat template, generation settings that stop at the end of a turn.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

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


def merge(adapter: Path, out: Path) -> dict[str, Any]:
    """Merge `adapter` into its base. Returns the manifest."""
    began = time.monotonic()
    recipe = require_file(adapter / "recipe.yaml", "make sft trains the adapter")
    require_file(adapter / "adapter_model.safetensors", "make sft trains the adapter")
    config = read_yaml(recipe)
    base = ROOT / config["base_model"]
    weights = sum(p.stat().st_size for p in base.glob("*.safetensors")) if base.is_dir() else 0
    require_space(out, 0.5 + 1.2 * weights / 2**30)
    with scratch(out.with_name("merging")) as work, written_whole(out) as folder:
        command = [str(Path(sys.executable).parent / "axolotl"), "merge-lora", str(recipe)]
        command += ["--lora-model-dir", str(adapter), "--output-dir", str(work)]
        work.mkdir()
        log = out.with_name("merge.log")
        run_axolotl(command, log)
        if not any((work / "merged").glob("*.safetensors")):
            raise StepError(f"axolotl merge-lora wrote no weights; see {log}")
        (work / "merged").rename(folder)
        finish(folder, base, ROOT / config["chat_template_jinja"])
        trained = json.loads(require_file(adapter / "manifest.json", "make sft").read_text())
        inputs = {"adapter": adapter} | ({"base": base} if base.is_dir() else {})
        facts = manifest(
            "merged",
            inputs,
            began,
            name=trained["name"],
            merge_method=config.get("merge_method", "memory_efficient"),
        )
        write_json(folder / "manifest.json", facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    merge(args.adapter, args.out)
    print(f"{args.out}: merged")


if __name__ == "__main__":
    run_step(main)
