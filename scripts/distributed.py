"""Training on many GPUs: the batch shared out, and what a way of sharing allows.

Overlays of recipes/distributed/ say how weights and optimizer states are shared out; its README
says which recipe takes which.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medalign.artifacts import ROOT, StepError

ACCELERATE = "recipes/distributed/accelerate.yaml"


def shared_out(config: dict[str, Any], processes: int) -> dict[str, Any]:
    """The recipe as each of so many processes runs it, the global batch as before.

    Accumulation is shared first, then the rows of a micro batch. StepError if they do not divide.
    """
    accumulated = config.get("gradient_accumulation_steps") or 1
    rows = config.get("micro_batch_size") or 1
    share = math.gcd(accumulated, processes)
    if processes < 1 or rows % (processes // share):
        raise StepError(
            f"processes: {processes} cannot share a batch of {rows} x {accumulated} rows;"
            f" take a number that divides {rows * accumulated}, or another micro_batch_size"
        )
    if processes == 1:
        return config
    return {
        **config,
        "gradient_accumulation_steps": accumulated // share,
        "micro_batch_size": rows // (processes // share),
    }


def launcher_arguments(launcher: str, processes: int) -> list[str]:
    """What follows `axolotl train … --launcher` for so many processes on this machine."""
    if processes == 1:
        return [launcher]
    if launcher == "accelerate":
        return [launcher, "--", "--config_file", ACCELERATE, f"--num_processes={processes}"]
    return ["torchrun", "--", "--standalone", f"--nproc_per_node={processes}"]


def on_cpus() -> bool:
    """True in one of several processes that train on CPUs."""
    import torch

    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()


def join_cpus() -> None:
    """Make the processes one training over gloo.

    Axolotl joins GPUs only: without this each process trains on all rows for itself, and all
    of them write the adapter.
    """
    from accelerate import PartialState
    from axolotl.utils import distributed

    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else cpu:0, where torch.load puts nothing
    distributed.distributed_state = PartialState(cpu=True)


def zero_stage(config: dict[str, Any]) -> int:
    """DeepSpeed's ZeRO stage, 0 without. StepError if its file is missing or no such file."""
    if not config.get("deepspeed"):
        return 0
    path = ROOT / Path(config["deepspeed"])
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(f"deepspeed: {path} is no DeepSpeed configuration: {error!r}") from error


def sharding_faults(config: dict[str, Any], gpu: bool) -> Iterator[str]:
    """What Axolotl accepts of a sharded training and does not work: "key: what and what to do"."""
    stage, fsdp = zero_stage(config), bool(config.get("fsdp_config"))
    referred = config.get("rl") in ("dpo", "ipo", "kto")
    if not gpu and (stage or fsdp):
        key = "deepspeed" if stage else "fsdp_config"
        yield f"{key}: shards what a CPU has room for; leave it out, processes alone are enough"
    if config.get("load_in_4bit") and (stage == 3 or fsdp):
        # Sharded tensors are of one type, and Axolotl packs NF4 into bf16 unless told otherwise.
        stored = (config.get("bnb_config_kwargs") or {}).get("bnb_4bit_quant_storage", "bfloat16")
        computed = "float16" if config.get("fp16") else "bfloat16"
        if stored != computed:
            yield (
                f"load_in_4bit: packed into {stored} and computed in {computed} it cannot be"
                " sharded; take ddp, zero1 or zero2"
            )
    reentrant = (config.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant")
    if stage == 3 and config.get("gradient_checkpointing") and not reentrant:
        yield "gradient_checkpointing_kwargs: ZeRO-3 with adapters needs use_reentrant: true"
    if stage == 3 and referred and not config.get("precompute_ref_log_probs"):
        yield (
            "precompute_ref_log_probs: else the base is gathered twice a step, once with the"
            " adapter off; write true"
        )
    if fsdp and referred and config.get("precompute_ref_log_probs"):
        yield (
            "precompute_ref_log_probs: TRL computes them before FSDP has put the model on a GPU;"
            " take ddp or ZeRO"
        )
