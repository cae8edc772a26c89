"""What a user of TRL writes: SFT or DPO with LoRA, in the bench beside MedAlign.

    python scripts/bench_trl.py recipe.json adapter fp32

recipe.json holds the keys of a MedAlign recipe (bench_training.py writes it); the last argument
is what weights and arithmetic are in, fp32 or bf16; the adapter stays in fp32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from medalign.artifacts import ROOT
from medalign.bench_systems import lora_arguments, trl_arguments


def rows_of(config: dict[str, Any]) -> Dataset:
    """Preference pairs as they are, chats as prompt and completion: the prompt is not trained."""
    dataset = load_dataset("json", data_files=str(ROOT / config["datasets"][0]["path"]))["train"]
    if config.get("rl") == "dpo":
        return dataset.select_columns(["prompt", "chosen", "rejected"])
    return dataset.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=dataset.column_names,
    )


def train(config: dict[str, Any], out: Path, dtype: str) -> None:
    """Train and save the adapter into `out`."""
    base = str(ROOT / config["base_model"])
    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (ROOT / config["chat_template_jinja"]).read_text(encoding="utf-8")
    arguments = {"output_dir": str(out), **trl_arguments(config, dtype)}
    parts: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(base, dtype=weights),
        "train_dataset": rows_of(config),
        "processing_class": tokenizer,
        "peft_config": LoraConfig(**lora_arguments(config)),
    }
    if config.get("rl") == "dpo":
        trainer: Any = DPOTrainer(args=DPOConfig(**arguments), **parts)
    else:
        trainer = SFTTrainer(args=SFTConfig(**arguments), **parts)
    trainer.train()
    trainer.save_model(str(out))


if __name__ == "__main__":
    recipe, folder, precision = sys.argv[1:]
    train(json.loads(Path(recipe).read_text(encoding="utf-8")), Path(folder), precision)
