"""The same training in the words of MedAlign, of TRL and of LLaMA-Factory.

Each takes base, data, LoRA, optimizer, schedule, batch, steps and seed from the recipe. None but
MedAlign packs, groups, compiles or checkpoints; their other arguments are their defaults.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from medalign.artifacts import ROOT, StepError, read_jsonl, write_json, write_jsonl, written_whole
from medalign.recipe import cpu_has_bf16, read_yaml

STAGES = {
    "sft": "recipes/smollm2-135m/sft-lora-cpu.yaml",
    "dpo": "recipes/smollm2-135m/dpo-lora-cpu.yaml",
}
SYSTEMS = {
    "sft": ["medalign", "trl-fp32", "trl-bf16", "llamafactory"],
    "dpo": ["medalign", "trl-fp32", "trl-bf16"],
}
LLAMAFACTORY = ROOT / "build/bench/llamafactory"
# As of November 2026 its newest; beside it the torch and numpy that MedAlign has itself.
LLAMAFACTORY_PACKAGES = ["llamafactory==0.9.5", "torch==2.13.0", "numpy==2.3.5"]
# Images and sound: compiled for other builds of torch, and not read here. LLaMA-Factory imports
# the second at its start, whatever it trains, and gets an empty module.
NOT_FOR_TEXT = ["torchvision", "torchaudio"]
# Of preferences only the training is timed.
LEFT_OUT = ("test_datasets", "evals_per_epoch", "warmup_ratio")


def bench_config(stage: str, steps: int | None, seed: int, folder: Path) -> dict[str, Any]:
    """The stage's recipe with what all systems share: rows, max_steps, warmup_steps, seed.

    steps: None for all epochs of the recipe. Else as many rows as so many steps take, drawn by
    the seed and written into `folder`: an epoch of them is the training, so that all systems meet
    the same rows, in whatever order. More steps than an epoch has go around all rows.
    """
    config = read_yaml(ROOT / STAGES[stage])
    (dataset,) = config["datasets"]
    rows = read_jsonl(ROOT / dataset["path"])
    batch = config["micro_batch_size"] * config["gradient_accumulation_steps"]
    whole = math.ceil(len(rows) * config["num_epochs"] / batch)
    if steps and steps * batch <= len(rows):
        drawn = folder / f"{stage}-{seed}.jsonl"
        write_jsonl(drawn, random.Random(seed).sample(rows, steps * batch))
        config["datasets"] = [dataset | {"path": str(drawn)}]
        config["num_epochs"] = 1
    steps = steps or whole
    warmup = int(config["warmup_ratio"] * steps)
    shared = {"max_steps": steps, "warmup_steps": warmup, "seed": seed}
    return {k: v for k, v in config.items() if k not in LEFT_OUT} | shared


def schedule(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' trainer that a recipe decides."""
    return {
        "max_steps": config["max_steps"],
        "per_device_train_batch_size": config["micro_batch_size"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "optim": config["optimizer"],
        "learning_rate": config["learning_rate"],
        "lr_scheduler_type": config["lr_scheduler"],
        "warmup_steps": config["warmup_steps"],
        "weight_decay": config["weight_decay"],
        "max_grad_norm": config["max_grad_norm"],
        "seed": config["seed"],
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def trl_arguments(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Of TRL's SFTConfig, or of its DPOConfig for a recipe of preferences. dtype: fp32, bf16."""
    arguments = schedule(config) | {
        "bf16": dtype == "bf16",
        "gradient_checkpointing": False,
        "max_length": config["sequence_len"],
    }
    if config.get("rl") != "dpo":
        return arguments | {"packing": False, "completion_only_loss": True}
    return arguments | {
        "beta": config["rl_beta"],
        "loss_type": config["dpo_loss_type"],
        "loss_weights": config["dpo_loss_weights"],
    }


def lora_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Of peft's LoraConfig."""
    return {
        "r": config["lora_r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }


def llamafactory_arguments(config: dict[str, Any], folder: Path, dtype: str) -> dict[str, Any]:
    """Of LLaMA-Factory's training file; its template chatml is the recipe's without a default."""
    return schedule(config) | {
        "model_name_or_path": str(ROOT / config["base_model"]),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": config["lora_r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "lora_target": "all",
        "dataset_dir": str(folder),
        "dataset": "rows",
        "template": "chatml",
        "cutoff_len": config["sequence_len"],
        "packing": False,
        "disable_gradient_checkpointing": True,
        "bf16": dtype == "bf16",
        "output_dir": str(folder / "adapter"),
    }


def llamafactory_dataset(config: dict[str, Any]) -> dict[str, Any]:
    """What LLaMA-Factory's dataset_info.json says of the recipe's rows."""
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {f"{role}_tag": role for role in ("system", "user", "assistant")}
    return {
        "rows": {
            "file_name": str(ROOT / config["datasets"][0]["path"]),
            "formatting": "sharegpt",
            "columns": {"messages": config["datasets"][0]["field_messages"]},
            "tags": tags,
        }
    }


def medalign_overrides(config: dict[str, Any], folder: Path) -> list[str]:
    """What train_adapter.py is to lay over the recipe: what is shared, and nothing cached."""
    plugins = [*config["plugins"], "medalign.step_log_plugin.StepLogPlugin"]
    shared = ("datasets", "num_epochs", "max_steps", "warmup_steps", "seed")
    changed: dict[str, Any] = {k: config[k] for k in shared}
    changed |= {"plugins": plugins, **dict.fromkeys(LEFT_OUT)}
    if "dataset_prepared_path" in config:
        changed["dataset_prepared_path"] = str(folder / "prepared")
    return [f"{k}={yaml.safe_dump(v, default_flow_style=True)}" for k, v in changed.items()]


def dtype_of(system: str) -> str:
    """What a system computes in: as its name says, else bf16 where the CPU has it."""
    if system.startswith("trl-"):
        return system.removeprefix("trl-")
    return "bf16" if cpu_has_bf16() else "fp32"


def command(system: str, stage: str, config: dict[str, Any], folder: Path) -> list[str]:
    """The command that trains `config` into `folder`/adapter; the files it needs are written."""
    scripts, dtype = ROOT / "scripts", dtype_of(system)
    if system == "medalign":
        changed = medalign_overrides(config, folder)
        trained = [sys.executable, str(scripts / "train_adapter.py")]
        trained += ["--recipe", str(ROOT / STAGES[stage]), "--out", str(folder / "adapter")]
        return [*trained, *(part for pair in changed for part in ("--set", pair))]
    if system.startswith("trl-"):
        write_json(folder / "recipe.json", config)
        trained = [sys.executable, "-P", str(scripts / "step_log.py"), "medalign.bench_trl"]
        return [*trained, str(folder / "recipe.json"), str(folder / "adapter"), dtype]
    write_json(folder / "dataset_info.json", llamafactory_dataset(config))
    arguments = llamafactory_arguments(config, folder, dtype)
    write_json(folder / "recipe.yaml", arguments)  # JSON is YAML
    python = str(LLAMAFACTORY / "bin/python")
    trained = [python, "-P", str(scripts / "step_log.py"), "llamafactory.cli", "train"]
    return [*trained, str(folder / "recipe.yaml")]


def shown_arguments(system: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A competitor's arguments in its own words, as the bench prints and records them."""
    dtype = dtype_of(system)
    if system == "llamafactory":
        return llamafactory_arguments(config, folder, dtype)
    return {"dtype": dtype, **lora_arguments(config), **trl_arguments(config, dtype)}


def install_llamafactory() -> None:
    """Put LLaMA-Factory into an environment of its own, some 2 GB, once."""
    if LLAMAFACTORY.exists():
        return
    with written_whole(LLAMAFACTORY) as folder:  # moves: only its python is ever called
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "--quiet"]
        if subprocess.run([*pip, "install", *LLAMAFACTORY_PACKAGES]).returncode:
            raise StepError(
                f"pip could not install {LLAMAFACTORY_PACKAGES[0]}: see its words above"
            )
        subprocess.run([*pip, "uninstall", "--yes", *NOT_FOR_TEXT], check=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "torchaudio.py").touch()
