"""Train a recipe with Axolotl: recipe → adapter, resumable.

    python scripts/train_adapter.py --recipe recipes/smollm2-135m/sft-lora-cpu.yaml \\
        --out runs/smollm2-135m/sft-lora-cpu/adapter

Runs `axolotl train` on the recipe in a folder of a temporary name, where the checkpoints lie;
an interrupted run goes on from the last of them. When training has ended, the folder gets
its manifest and its name. `axolotl train RECIPE` by hand does the same without the safety.
`--processes 4` shares the batch out among four GPUs, recipes/distributed/ says how else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    partial,
    remove,
    replace,
    require_space,
    run_step,
    sha256,
    write_json,
)
from medalign.distributed import launcher_arguments, shared_out
from medalign.recipe import Model, check, family_of, local_files, model, read_yaml
from medalign.run_axolotl import locked, run_axolotl
from medalign.sources import trained

# Where results go, how often they are saved, who tracks them: no other adapter comes of it.
DECIDES_NOTHING = {"output_dir", "save_steps", "save_total_limit", "logging_steps"}
DECIDES_NOTHING |= {"use_wandb", "wandb_project", "use_tensorboard", "dataset_prepared_path"}
DECIDES_NOTHING |= {"dataloader_num_workers"}
BYTES_PER_PARAMETER = 0.8  # on disk, of the whole model: adapter, Adam's states, two checkpoints


def effective(
    recipe: Path, out: Path, overrides: dict[str, Any], processes: int = 1
) -> dict[str, Any]:
    """The recipe as it is run: overrides, the output folder, the tracker's environment.

    overrides: keys to replace; None takes a key out. processes: how many share the batch.
    """
    config = {**read_yaml(recipe), **overrides, "output_dir": str(partial(out))}
    config = {key: value for key, value in config.items() if value is not None}
    check(recipe, config)
    config = shared_out(config, processes)
    if project := os.environ.get("WANDB_PROJECT"):
        config |= {"use_wandb": True, "wandb_project": project}
    return config


def fingerprint(config: dict[str, Any]) -> dict[str, str]:
    """What a training depends on: the configuration and the files it names, by SHA-256."""
    files = {key: sha256(ROOT / name) for key, name in local_files(config).items()}
    decides = {k: v for k, v in config.items() if k not in DECIDES_NOTHING}
    return {"config": json.dumps(decides, sort_keys=True), **files}


def prepare(folder: Path, config: dict[str, Any], now: dict[str, str]) -> None:
    """Make the folder ready to start or resume: drop what does not belong to this run.

    now: the fingerprint of `config`.
    """
    mark = folder / "fingerprint.json"
    if folder.exists() and (not mark.exists() or json.loads(mark.read_text()) != now):
        print("the recipe or its data changed since the interrupted run: starting anew")
        remove(folder)
    for checkpoint in folder.glob("checkpoint-*"):
        state = checkpoint / "trainer_state.json"  # written last
        try:
            json.loads(state.read_text())
        except (OSError, ValueError):
            print(f"{checkpoint.name} was cut short, going on from the one before")
            remove(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / "training.json")
    write_json(mark, now)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def train(
    recipe: Path, out: Path, overrides: dict[str, Any], launcher: str, processes: int = 1
) -> dict[str, Any]:
    """Train `recipe` into the adapter folder `out`. Returns its manifest."""
    began = time.monotonic()
    config = effective(recipe, out, overrides, processes)
    family = model(family_of(recipe))
    folder = partial(out)
    made_of = fingerprint(config)
    manifest_file = out / "manifest.json"
    if manifest_file.exists():
        facts = json.loads(manifest_file.read_text())
        if facts.get("fingerprint") == made_of:
            print(f"{out}: made of this very recipe, data and base; nothing to train")
            manifest_file.touch()
            return facts
    require_space(out, 1 + BYTES_PER_PARAMETER * family.parameters / 2**30)
    axolotl = str(Path(sys.executable).parent / "axolotl")
    with locked(out.with_name(".train.lock")) as lock:
        prepare(folder, config, made_of)
        command = [axolotl, "train", str(folder / "recipe.yaml"), "--launcher"]
        command += launcher_arguments(launcher, processes)
        data = learnt(config)  # before it begins: others may make the rows anew meanwhile
        run_axolotl(command, folder / "train.log", lock, processes)
        return finish(recipe, out, config, overrides, made_of, data, family, began, processes)


def learnt(config: dict[str, Any]) -> dict[str, Any]:
    """What the manifests beside the training rows say of them: their licence, their sources.

    By file name, or by path where two files have the same.
    """
    data: dict[str, Any] = {}
    for key, name in local_files(config).items():
        if not key.startswith("datasets"):
            continue
        path = ROOT / name
        beside = path.with_name("manifest.json")
        known = json.loads(beside.read_text()) if beside.exists() else {}
        told = {key: known.get(key) for key in ("rows", "examples", "license")}
        told["sources"] = {
            source: {key: said[key] for key in ("license", "terms", "hub") if key in said}
            for source, said in trained(known).items()
        }
        data[Path(name).as_posix() if path.name in data else path.name] = told
    return data


def finish(
    recipe: Path,
    out: Path,
    config: dict[str, Any],
    overrides: dict[str, Any],
    made_of: dict[str, str],
    data: dict[str, Any],
    family: Model,
    began: float,
    processes: int,
) -> dict[str, Any]:
    """Give a trained folder its manifest and its name, then drop the checkpoints."""
    folder = partial(out)

    state_file = folder / "training.json"
    if not state_file.exists():
        raise StepError(f"training ended before its last step; see {folder / 'train.log'}")
    state = json.loads(state_file.read_text())
    inputs = {key: ROOT / name for key, name in local_files(config).items()}
    facts = manifest(
        "adapter",
        {"recipe": recipe, **inputs},
        began,
        name=family.name,
        parameters=family.parameters,
        base={"id": config["base_model"], "revision": config.get("revision_of_model")},
        data=data,
        fingerprint=made_of,
        seed=config.get("seed"),
        overrides=overrides,
        processes=processes,
        steps=state["global_step"],
        epochs=state["epoch"],
        final_loss=state["final_loss"],
        train_loss=state["train_loss"],
        tokens=state["tokens"],
        train_seconds=state["train_seconds"],
        sessions=state["sessions"],
        trainable_parameters=state["trainable_parameters"],
        dtype=state["dtype"],
        peak_gib=state["peak_gib"],
    )
    write_json(folder / "manifest.json", facts)
    replace(folder, out)
    for leftover in (*out.glob("checkpoint-*"), out / "README.md", out / "fingerprint.json"):
        remove(leftover)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--launcher", choices=["python", "accelerate", "torchrun"], default="python"
    )
    parser.add_argument("--processes", type=int, default=1, help="GPUs that share the batch")
    parser.add_argument("--overlay", type=Path, help="YAML of keys laid over the recipe")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
    args = parser.parse_args()
    if shutil.which("axolotl", path=str(Path(sys.executable).parent)) is None:
        raise StepError("axolotl is not installed in this environment; run make setup")
    overrides = read_yaml(args.overlay) if args.overlay else {}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise StepError(f"--set {pair}: write KEY=VALUE")
        overrides[key] = yaml.safe_load(value)
    recipe, out = args.recipe.resolve(), args.out.resolve()
    facts = train(recipe, out, overrides, args.launcher, args.processes)
    print(f"{args.out}: {facts['steps']} steps, final loss {facts['final_loss']:.4f}")


if __name__ == "__main__":
    run_step(main)
