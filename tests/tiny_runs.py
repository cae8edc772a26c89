"""Real trainings of a recipe of this repository in half a minute: a random model of two layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

from medalign.artifacts import read_jsonl, write_jsonl
from medalign.build_pairs import row
from medalign.check_preferences import GOLD

FAMILY = ROOT / "recipes/smollm2-135m"
SFT, DPO = FAMILY / "sft-lora-cpu.yaml", FAMILY / "dpo-lora-cpu.yaml"
TOLERANCE = 1e-4  # of losses near 10; fp32 sums in another order
SMALL: dict[str, Any] = {
    "bf16": False,
    "compile_layers": False,
    "use_tensorboard": False,
    "plugins": ["medalign.axolotl_plugin.MedAlignPlugin", "record_rows.RecordRows"],
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.003,
    "num_epochs": 2,
    "save_steps": 2,
    "test_datasets": None,
    "evals_per_epoch": None,
}


@dataclass
class Run:
    code: int
    errors: str
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """The loss of each step, of the training log that only a finished run has."""
        log = json.loads((self.folder / "adapter/training.json").read_text())
        return [entry["loss"] for entry in log["steps"]]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "adapter.partial").glob("checkpoint-*"))

    def by_step(self) -> dict[int, list[str]]:
        """The rows that each step trained on, of all processes; of a step done twice the last."""
        found: dict[int, dict[int, list[list[str]]]] = {}
        for line in self.rows:
            found.setdefault(line["step"], {}).setdefault(line["session"], []).append(line["rows"])
        return {s: sorted(chain(*of[max(of)])) for s, of in sorted(found.items())}


class TinyRuns:
    """Trains in a folder of its own, on the first teaching rows and the first gold pairs."""

    def __init__(self, folder: Path, base: Path, rows: int = 12) -> None:
        self.folder = folder
        self.session = 0
        self.model(base)
        chats = read_jsonl(ROOT / "build/data/education/train.jsonl")[:rows]
        gold = read_jsonl(GOLD)[:rows]
        write_jsonl(folder / "sft.jsonl", chats)
        keys = ("id", "category", "prompt", "chosen", "rejected")
        write_jsonl(folder / "dpo.jsonl", [row(*(pair[k] for k in keys)) for pair in gold])

    def model(self, base: Path) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(base)
        special = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id")}
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            **special,
        )
        LlamaForCausalLM(config).save_pretrained(self.folder / "model")
        tokenizer.save_pretrained(self.folder / "model")

    def overlay(self, recipe: Path, keys: dict[str, Any]) -> Path:
        dataset = yaml.safe_load(recipe.read_text())["datasets"][0]
        dataset["path"] = str(self.folder / f"{'dpo' if recipe == DPO else 'sft'}.jsonl")
        prepared = {} if recipe == DPO else {"dataset_prepared_path": str(self.folder / "prepared")}
        laid = {**SMALL, **prepared, "datasets": [dataset], **keys}
        path = self.folder / "overlay.yaml"
        path.write_text(yaml.safe_dump({**laid, "base_model": str(self.folder / "model")}))
        return path

    def train(
        self,
        name: str,
        recipe: Path = SFT,
        fault: str = "",
        more: tuple[str, ...] = (),
        **keys: Any,
    ) -> Run:
        """Train as a user would. The same name again resumes; fault: see record_rows."""
        out = self.folder / name
        written = out / "rows"
        written.mkdir(parents=True, exist_ok=True)
        seen = {path: len(path.read_text().splitlines()) for path in written.glob("*.jsonl")}
        paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "ROWS": str(written),
            "FAULT": fault,
        }
        command = [sys.executable, str(ROOT / "scripts/train_adapter.py"), "--recipe", str(recipe)]
        command += ["--out", str(out / "adapter"), "--overlay", str(self.overlay(recipe, keys))]
        done = subprocess.run(
            [*command, *more],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        run = Run(done.returncode, done.stderr, out)
        for path in sorted(written.glob("*.jsonl")):
            for at, line in enumerate(path.read_text().splitlines()):
                entry = json.loads(line)
                run.rows.append({**entry, "process": path.stem, "session": at >= seen.get(path, 0)})
        return run
