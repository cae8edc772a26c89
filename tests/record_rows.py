"""An Axolotl plugin of the tests: writes down what each process trains on, and does harm when told.

ROWS     folder of rank-<n>.jsonl, a line a micro batch: its step, its rows' ids, and the number
         of checkpoints that lie on the disk
FAULT    step:rank:what, what being kill (the process), nan or huge (its loss, from then on)
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

from axolotl.integrations.base import BasePlugin


def digests(inputs) -> list[str]:
    """An id for each row of a batch, of its tokens without padding."""
    rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    kept = [[i for i, seen in zip(ids, mask, strict=True) if seen] for ids, mask in rows]
    return [hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12] for ids in kept]


class RecordRows(BasePlugin):
    def post_trainer_create(self, cfg, trainer):
        rank = int(os.environ.get("RANK", 0))
        path = Path(os.environ["ROWS"]) / f"rank-{rank}.jsonl"
        step, process, what = (os.environ.get("FAULT") or "-1:0:none").split(":")
        inner = trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            if not model.training:
                return inner(model, inputs, *args, **kwargs)
            now = trainer.state.global_step + 1
            kept = len(list(Path(trainer.args.output_dir).glob("checkpoint-*")))
            line = {"step": now, "rows": digests(inputs), "checkpoints": kept}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            hurt = now >= int(step) >= 0 and rank == int(process)
            if hurt and what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            loss = inner(model, inputs, *args, **kwargs)
            return loss * {"nan": float("nan"), "huge": 100.0}[what] if hurt else loss

        trainer.compute_loss = compute_loss
