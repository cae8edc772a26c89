"""Whole trainings side by side: make sft and make dpo beside TRL and LLaMA-Factory, in turns.

    python scripts/bench_training.py --out build/bench [--steps 60] [--rounds 3] [--seeds 42,1,2] \\
        [--stages sft,dpo] [--systems medalign,trl-bf16] [--gguf build/models/….gguf]

Every system is a process of its own on all cores, one at a time: A B C D, A B C D. `Whole run`
is from its start to its end: imports, tokenization, compiling with empty caches, checkpoints,
saving. `Steady` leaves out the first steps, where torch.compile works. Real tokens are those that
are not padding, counted alike in all (step_log.py); ratios are medians over the rounds of the ratio
within a round. Utilisation is of the steady steps, against the matrix product measured at the
begin of each round. Round n trains under the n-th of the seeds, around and around, with --steps on
the same drawn rows in all systems; two systems' held-out losses are told apart from three seeds on.
Figures of a machine, not a promise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_jsonl,
    remove,
    require_file,
    run_step,
    write_json,
)
from medalign.bench_gguf import compare_gguf
from medalign.bench_systems import (
    STAGES,
    SYSTEMS,
    bench_config,
    command,
    dtype_of,
    install_llamafactory,
    shown_arguments,
)
from medalign.bench_tables import cpu_flags, gguf_table, plot, summary, table
from medalign.utilisation import training_flops

HELD_OUT = {"sft": "build/data/education/test.jsonl", "dpo": "build/pairs/held_out.jsonl"}
SKIPPED = 5  # optimizer steps before the steady ones


def environment(folder: Path) -> dict[str, str]:
    """No tracking, no network, and caches that begin empty."""
    return {
        **os.environ,
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of torch builds with a local version
        "STEP_LOG": str(folder / "steps.json"),
    }


def asked(script: str, *arguments: str | Path) -> Any:
    """What one of our scripts prints, from JSON. StepError with the end of its errors."""
    parts = [sys.executable, "-P", str(ROOT / "scripts" / script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            parts, capture_output=True, text=True, env=environment(Path(folder)), cwd=ROOT
        )
    if done.returncode:
        raise StepError(f"{script} ended with {done.returncode}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def speeds(log: dict[str, Any], wall: float) -> dict[str, float]:
    """Real tokens/s, whole and steady, of a step log; what the steady steps had to compute.

    wall: seconds of the whole process.
    """
    ends, each = log["step_ends"], log["accumulated"]
    skipped = min(SKIPPED, len(ends) // 2)
    late = log["batches"][skipped * each :]
    steady = ends[-1] - ends[skipped - 1]
    tokens = sum(batch["tokens"] for batch in log["batches"])
    last = log["losses"][-max(1, len(log["losses"]) // 10) :]
    return {
        "whole_seconds": wall,
        "tokens": tokens,
        "padding": 1 - tokens / sum(batch["positions"] for batch in log["batches"]),
        "whole_tokens_per_second": tokens / wall,
        "steady_seconds": steady,
        "steady_tokens": sum(batch["tokens"] for batch in late),
        "steady_trained": sum(batch["trained"] for batch in late),
        "steady_tokens_per_second": sum(batch["tokens"] for batch in late) / steady,
        "training_loss": sum(last) / len(last),
        "peak_gib": log["peak_gib"],
        "trainable": log["trainable"],
    }


def check_log(log: dict[str, Any], config: dict[str, Any], system: str) -> None:
    """StepError if a system has not trained what the recipe asks for."""
    wanted = (config["max_steps"], config["gradient_accumulation_steps"], dtype_of(system))
    found = (len(log["step_ends"]), log["accumulated"], "bf16" if log["bf16"] else "fp32")
    if found != wanted:
        raise StepError(f"{system}: (steps, accumulated, dtype) are {found}, not {wanted}")
    rows = config["max_steps"] * config["gradient_accumulation_steps"]
    if len(log["batches"]) != rows or len(log["losses"]) != config["max_steps"]:
        raise StepError(f"{system}: its log has {len(log['batches'])} batches, not {rows}")


def one_run(stage: str, system: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train with one system into `folder`. StepError if it fails or trains something else."""
    remove(folder)
    folder.mkdir(parents=True)
    parts = command(system, stage, config, folder)
    load, began = os.getloadavg()[0], time.monotonic()
    with (folder / "log.txt").open("wb") as file:
        done = subprocess.run(parts, stdout=file, stderr=file, env=environment(folder), cwd=ROOT)
    wall = time.monotonic() - began
    if done.returncode:
        tail = (folder / "log.txt").read_text(errors="replace")[-1500:]
        raise StepError(f"{stage}, {system} ended with {done.returncode}: {tail}")
    require_file(folder / "adapter/adapter_config.json", f"{system} saved none")
    log = json.loads(require_file(folder / "steps.json", f"{system} wrote none").read_text())
    check_log(log, config, system)
    for cache in ("datasets", "inductor", "prepared"):
        remove(folder / cache)
    facts = {"stage": stage, "system": system, "seed": config["seed"], "dtype": dtype_of(system)}
    return {**facts, "load_before": load, **speeds(log, wall)}


def utilisation(run: dict[str, Any], shape: dict[str, Any], peaks: dict[str, float]) -> float:
    """The share of the measured peak, in the run's own dtype, that its steady steps needed."""
    rows = run["steady_tokens"] / max(1, run["steady_rows"])
    needed = training_flops(
        shape,
        run["trainable"],
        run["steady_tokens"],
        run["steady_trained"],
        rows,
        reference=run["stage"] == "dpo",
    )
    return needed / run["steady_seconds"] / peaks[run["dtype"]]


def bench(stage: str, arguments: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of a stage; adds to `runs`. Returns the competitors' arguments."""
    systems = [s for s in SYSTEMS[stage] if s in arguments.systems]
    shown: dict[str, Any] = {}
    mine: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        seed = arguments.seeds[number % len(arguments.seeds)]
        config = bench_config(stage, arguments.steps, seed, arguments.out)
        shape = json.loads((ROOT / config["base_model"] / "config.json").read_text())
        peaks = asked("utilisation.py", *sorted({dtype_of(s) for s in systems}))
        for system in systems:
            folder = arguments.out / "runs" / f"{stage}-{system}-{number}"
            if system not in shown and system != "medalign":
                shown[system] = shown_arguments(system, config, folder)
                print(f"{stage}, {system}: {json.dumps(shown[system])}", flush=True)
            run = one_run(stage, system, config, folder)
            answers = 2 if stage == "dpo" else 1
            steps = config["max_steps"] - min(SKIPPED, config["max_steps"] // 2)
            batch = config["micro_batch_size"] * config["gradient_accumulation_steps"]
            run |= {"round": number, "steady_rows": steps * batch * answers, "peaks": peaks}
            run |= {"utilisation": utilisation(run, shape, peaks), "folder": str(folder)}
            mine.append(run)
            print(f"{stage}, {system}, round {number}: {json.dumps(run)}", flush=True)
            write_json(arguments.out / "unfinished.json", [*runs, *mine])
    if len({run["trainable"] for run in mine}) > 1:
        raise StepError(
            f"{stage}: not the same LoRA: {[(r['system'], r['trainable']) for r in mine]}"
        )
    adapters = [Path(run["folder"], "adapter") for run in mine]
    recipe = arguments.out / f"{stage}.json"
    write_json(recipe, config)
    held_out = asked("held_out_loss.py", recipe, ROOT / HELD_OUT[stage], *adapters)
    for run, loss in zip(mine, held_out, strict=True):
        run["held_out_loss"] = loss
        run["folder"] = Path(run["folder"]).name
    runs += mine
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results and runs")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: the recipe's epochs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", default="42,1,2", help="of round 0, 1, 2 …")
    parser.add_argument("--stages", default="sft,dpo", help="of " + ", ".join(STAGES))
    parser.add_argument("--systems", default=",".join(SYSTEMS["sft"]))
    parser.add_argument("--gguf", type=Path, help="file to compare with llama-bench")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    arguments.out = arguments.out.resolve()
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.systems = arguments.systems.split(",")
    if unknown := set(arguments.systems) - set(SYSTEMS["sft"]):
        raise StepError(f"--systems {sorted(unknown)}: there are {', '.join(SYSTEMS['sft'])}")
    if arguments.steps is not None and arguments.steps < 2:
        raise StepError("--steps: two at least, the first of which is not steady")
    began, stages = time.monotonic(), arguments.stages.split(",")
    runs: list[dict[str, Any]] = []
    shown: dict[str, Any] = {}
    if "sft" in stages and "llamafactory" in arguments.systems:
        install_llamafactory()
    for stage in stages:
        read_jsonl(ROOT / HELD_OUT[stage])  # missing? say so now
    for stage in stages:
        shown[stage] = bench(stage, arguments, runs)
    gguf = (
        compare_gguf(arguments.gguf, arguments.rounds, arguments.threads)
        if arguments.gguf
        else None
    )
    found = {stage: summary([r for r in runs if r["stage"] == stage]) for stage in stages}
    text = "\n\n".join(f"{stage}\n\n{table(found[stage])}" for stage in stages)
    text += f"\n\n{gguf_table(gguf)}" if gguf else ""
    print(text)
    (arguments.out / "results.md").write_text(text + "\n")
    plot(found, arguments.out / "results.png")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    settings["out"] = arguments.out.name
    facts = {"settings": settings, "competitors": shown, "summary": found, "runs": runs}
    recipes = {stage: ROOT / STAGES[stage] for stage in stages}
    machine = {"cpu_flags": cpu_flags(), "load_after": os.getloadavg()}
    results = manifest("training bench", recipes, began, **facts, gguf=gguf, machine=machine)
    write_json(arguments.out / "results.json", results)
    remove(arguments.out / "unfinished.json")
    flagged = [f"{s}, {n}" for s in stages for n, row in found[s].items() if row["flag"]]
    for name in flagged:
        print(f"held-out loss beyond the noise: {name}", file=sys.stderr)
    return 1 if flagged else 0


if __name__ == "__main__":
    run_step(main)
