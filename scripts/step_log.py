"""Watch a training from outside: real tokens, positions and seconds of each of its steps.

    STEP_LOG=log.json python scripts/step_log.py llamafactory.cli train recipe.yaml

Whatever is built on transformers.Trainer is watched alike, so that no figure rests on what a
framework counts as a token: some count padding, some do not. Runs the module with the arguments
behind it; needs nothing of MedAlign, because it also runs where MedAlign is not installed.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback


def counts(inputs: dict[str, Any]) -> dict[str, int]:
    """Of a batch: real tokens, positions paid for, and tokens that are trained.

    A row of preferences counts twice, as its chosen and its rejected answer do.
    """
    if "labels" in inputs:
        trained = inputs["labels"][:, 1:] != -100
    else:
        trained = inputs["completion_mask"][:, 1:] != 0
    return {
        "tokens": int(inputs["attention_mask"].sum()),
        "positions": inputs["input_ids"].numel(),
        "trained": int(trained.sum()),
    }


class StepEnds(TrainerCallback):
    """Notes when each optimizer step has ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.at.append(time.monotonic())


def watch(path: Path) -> None:
    """From now on, any trainer of this process writes its log to `path` when it has trained.

    Seconds are those of the system's monotonic clock, the same in all its processes.
    """
    batches: list[dict[str, int]] = []
    step, train = Trainer.training_step, Trainer.train

    def counted_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(counts(inputs))
        return step(self, model, inputs, *args, **kwargs)

    def logged_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        ends, began = StepEnds(), time.monotonic()
        self.add_callback(ends)
        result = train(self, *args, **kwargs)
        log = {
            "began": began,
            "step_ends": ends.at,
            "accumulated": self.args.gradient_accumulation_steps,
            "batches": batches,
            "losses": [entry["loss"] for entry in self.state.log_history if "loss" in entry],
            "trainable": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "bf16": bool(self.args.bf16),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        path.write_text(json.dumps(log))
        return result

    Trainer.training_step = counted_step  # type: ignore[method-assign]
    Trainer.train = logged_train  # type: ignore[method-assign]


def main() -> None:
    watch(Path(os.environ["STEP_LOG"]))
    module, sys.argv = sys.argv[1], sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
