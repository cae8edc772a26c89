"""What every MedAlign recipe needs of Axolotl and Axolotl does not do by itself.

    plugins:
      - medalign.axolotl_plugin.MedAlignPlugin

- Unknown keys are an error (Axolotl ignores them, so a typo trains with the default).
- Prepared data is kept by content: Axolotl names its cache after the data's path, so that new
  rows or another template under the same name would train on the old ones.
- At the end `training.json` is written beside the adapter: the log of every step, and proof
  that the last one was reached.
- `seed` holds for the adapter's first weights too, which Axolotl draws before it sets the seed.
- `qlora_merge` is a key of its own (medalign.trained_base), so are `compile_layers` and
  `logits_at_labels` (medalign.training_speed).
- A loss that is NaN, infinite or `diverged_at` times what it began with ends the run, and a
  resumed run goes on with the very rows that were next (medalign.long_runs).
- `bf16: auto` without a GPU means bf16 on a CPU that computes in it, fp32 on any other
  (Axolotl takes it for fp16); `use_cpu` is set, without which bf16 is refused there.
- Several processes train together on CPUs too, not each for itself (medalign.distributed).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
import resource
import statistics
import time
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from axolotl.cli import args as cli_args
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import BaseModel, Field
from transformers import TrainerCallback, set_seed

from medalign import training_speed
from medalign.distributed import join_cpus, on_cpus
from medalign.long_runs import DataOrder, StopWhenLost
from medalign.recipe import cpu_has_bf16
from medalign.trained_base import QloraMerge

# Not in the schema, but put beside the recipe's keys while a command line is read.
SET_BY_AXOLOTL = {"axolotl_config_path", "strict"} | {
    field.name
    for _, cls in inspect.getmembers(cli_args, dataclasses.is_dataclass)
    for field in dataclasses.fields(cls)
}


def known_keys() -> set[str]:
    """The top-level keys that Axolotl and the registered plugins understand."""
    keys = set(AxolotlInputConfig.model_fields) | SET_BY_AXOLOTL
    for plugin in PluginManager.get_instance().plugins.values():
        arguments = plugin.get_input_args()
        if arguments:
            keys |= set(getattr(locate(arguments), "model_fields", ()))
    return keys


def unknown_keys(cfg: dict[str, Any]) -> list[str]:
    """A message for each key of the recipe that nothing reads, with the nearest known one."""
    known = known_keys()
    messages = []
    for key in cfg:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            messages.append(f"unknown key {key!r}" + (f", is it {near[0]!r}?" if near else ""))
    return messages


def content_key(cfg: dict[str, Any]) -> str:
    """A key of 16 hex digits for the local files that the prepared data is made from."""
    names = [dataset["path"] for dataset in cfg.get("datasets") or []]
    names += [cfg.get("chat_template_jinja") or "", f"{cfg.get('base_model')}/tokenizer.json"]
    digest = hashlib.sha256()
    for name in map(str, names):
        digest.update(name.encode())
        if name and len(name) < 4096 and Path(name).is_file():
            digest.update(hashlib.sha256(Path(name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def peak_gib() -> float:
    """The most memory this process has had: on the GPU what torch allocated, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)  # KiB on Linux


class TrainingLog(TrainerCallback):
    """Writes the whole training log when the last step is done, over all sessions of a run."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            for stale in ("training.json", "manifest.json"):  # of an earlier run in this folder
                Path(args.output_dir, stale).unlink(missing_ok=True)
            self.begun_at, self.began = state.global_step, time.monotonic()

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.sessions(args, state)  # this one may not see the end

    def sessions(self, args, state) -> list[dict[str, float]]:
        """Each session's first and last step and its seconds, this one's brought up to date."""
        path = Path(args.output_dir, "sessions.json")
        known = json.loads(path.read_text()) if path.exists() else []
        known = [s for s in known if s["from_step"] < self.begun_at]
        seconds = round(time.monotonic() - self.began, 1)
        this = {"from_step": self.begun_at, "to_step": state.global_step, "seconds": seconds}
        path.write_text(json.dumps([*known, this]))
        return [*known, this]

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero or state.global_step < state.max_steps:
            return
        steps = [entry for entry in state.log_history if "loss" in entry]
        sessions = self.sessions(args, state)
        log = {
            "global_step": state.global_step,
            "epoch": state.epoch,
            "final_loss": steps[-1]["loss"] if steps else None,
            "train_loss": statistics.fmean(e["loss"] for e in steps) if steps else None,
            "train_seconds": round(sum(s["seconds"] for s in sessions), 1),
            "sessions": sessions,
            "tokens": positions(steps),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "dtype": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "peak_gib": peak_gib(),
            "steps": steps,
            "evaluations": [entry for entry in state.log_history if "eval_loss" in entry],
        }
        Path(args.output_dir, "training.json").write_text(json.dumps(log, indent=1))


def positions(steps: list[dict[str, Any]]) -> int | None:
    """Positions a training paid for, padding among them, of its log; None if it counts none.

    Axolotl and TRL count them from nothing again when a run goes on.
    """
    seen = (e.get("tokens/total", e.get("num_tokens")) for e in steps)
    counted = [int(n) for n in seen if n is not None]
    restarts = [n for n, after in itertools.pairwise(counted) if after < n]
    return sum(restarts) + counted[-1] if counted else None


class MedAlignArgs(BaseModel):
    """The recipe's keys that are MedAlign's own."""

    qlora_merge: QloraMerge | None = Field(
        default=None, description="what make merge merges a QLoRA adapter into"
    )
    compile_layers: bool = Field(
        default=False, description="compile the decoder layer, once for all layers"
    )
    logits_at_labels: bool = Field(
        default=False, description="compute logits only where tokens are trained"
    )
    diverged_at: float = Field(
        default=3.0, gt=1, description="end the run above 6 nats and this many times its first loss"
    )


class MedAlignPlugin(BasePlugin):
    """Checks the keys and makes a CPU a device like another."""

    def get_input_args(self) -> str:
        return "medalign.axolotl_plugin.MedAlignArgs"

    def register(self, cfg: dict[str, Any]) -> None:
        """Called with the recipe before Axolotl validates it; ValueError on unknown keys."""
        if messages := unknown_keys(cfg):
            raise ValueError("; ".join(messages))
        if on_cpus():
            join_cpus()
        if prepared := cfg.get("dataset_prepared_path"):
            key = content_key(cfg)
            if Path(prepared).name != key:  # a recipe may be registered twice
                cfg["dataset_prepared_path"] = str(Path(prepared) / key)
        if cfg.get("bf16") == "auto":  # Axolotl: fp16 on a CPU, emulated bf16 on a T4
            cuda = torch.cuda.is_available()
            has = torch.cuda.get_device_capability() >= (8, 0) if cuda else cpu_has_bf16()
            cfg["bf16"], cfg["fp16"] = has, cuda and not has

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        # The filter writes the mean of the other losses over a NaN.
        always = {"logging_nan_inf_filter": False}
        return always if torch.cuda.is_available() else {**always, "use_cpu": True}

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Loads none: the last call before Axolotl reads where the model goes."""
        if on_cpus():
            cfg["device_map"] = {"": "cpu"}  # Axolotl: an accelerator of that rank

    def pre_model_load(self, cfg: Any) -> None:
        if cfg.get("seed") is not None:
            set_seed(cfg["seed"])

    def post_model_load(self, cfg: Any, model: Any) -> None:
        if cfg.get("logits_at_labels"):
            training_speed.logits_at_labels(model)
        if cfg.get("compile_layers"):
            training_speed.compile_layers(model)

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        rewarded = cfg.get("rl") == "grpo"  # its loss begins at zero
        return [TrainingLog(), DataOrder(), StopWhenLost(None if rewarded else cfg["diverged_at"])]
