"""What a run of hours needs: the same rows again after a resume, and an end when it is lost.

Callbacks that medalign.axolotl_plugin adds to every training.
"""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from medalign.artifacts import StepError

WINDOW = 5  # logged steps that a mean is taken over
# Nats a token. Batches of one length are of one kind of rows: refusals that a teacher has never
# given cost it 3.5 where the longest rows, which come first, cost 1.1. A model that is lost knows
# at best how frequent each token is, which costs about 7.
GARBLED = 6.0


def lost(steps: list[dict[str, Any]], times: float | None, fp16: bool) -> str | None:
    """Why a training cannot go on, or None.

    steps: the log's entries that have a loss; times: how many times the mean loss of the first
    steps the mean of the last ones may be, None: any; below GARBLED it may always be. Under fp16
    a gradient that is not finite is the scaler's business: it leaves the step out.
    """
    for key in ("loss",) if fp16 else ("loss", "grad_norm"):
        value = steps[-1].get(key)
        if value is not None and not math.isfinite(value):
            return f"{key} is {float(value)}"
    if times is None or len(steps) < 2 * WINDOW:
        return None
    losses = [entry["loss"] for entry in steps]
    first, last = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
    if first > 0 and last > max(times * first, GARBLED):
        began = f"the first {WINDOW} logged were {first:.3g}"
        return f"loss is {last:.3g}, {began} (diverged_at {times:g})"
    return None


def last_checkpoint(folder: Path) -> str:
    """The name of the newest checkpoint in `folder`, in words if there is none."""
    steps = [int(p.name.rpartition("-")[2]) for p in folder.glob("checkpoint-*")]
    return f"{folder}/checkpoint-{max(steps)}" if steps else "none yet"


class StopWhenLost(TrainerCallback):
    """Ends a run whose loss is NaN, infinite or has diverged, before that step is saved.

    times: see `lost`. StepError on every process alike, for all log the same mean loss.
    """

    def __init__(self, times: float | None) -> None:
        self.times = times

    def on_log(self, args, state, control, **kwargs):
        steps = [entry for entry in state.log_history if "loss" in entry]
        if not steps or steps[-1] is not state.log_history[-1]:
            return
        if why := lost(steps, self.times, args.fp16):
            raise StepError(
                f"step {state.global_step}: {why}; stopped before saving it, last good checkpoint:"
                f" {last_checkpoint(Path(args.output_dir))}; lower learning_rate or max_grad_norm"
            )


class DataOrder(TrainerCallback):
    """Batches of one length in an order that seed and epoch alone decide.

    transformers draws it from the global random state, which a run resumed in a later epoch
    does not have, and groups what one process takes, so that two would train in another order.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started != args.world_size:
            raise StepError(f"{started} processes were started, {args.world_size} train together")

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = train_dataloader.batch_sampler
        while hasattr(batches, "batch_sampler"):  # one process's share of it
            batches = batches.batch_sampler
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, LengthGroupedSampler):
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler.generator = torch.Generator().manual_seed(seed + int(state.epoch or 0))
            batch = args.train_batch_size * args.gradient_accumulation_steps
            sampler.batch_size = batch * args.world_size
