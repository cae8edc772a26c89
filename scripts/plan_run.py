"""Plan a training run: does the recipe fit the GPU, how long does it take, what does it cost?

    python scripts/plan_run.py --recipe recipes/mistral-7b/sft-lora-t4.yaml --gpu t4
    python scripts/plan_run.py              # every recipe on every GPU
    python scripts/plan_run.py --check      # planned against published peaks

Arithmetic only (medalign.training_memory): nothing is downloaded or trained. What is taken for
given stands in recipes/planning.yaml; prices there are illustrative.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from medalign.artifacts import ROOT, StepError, run_step, shown
from medalign.pages import markdown
from medalign.recipe import all_recipes, family_of, read_yaml
from medalign.settings import declared
from medalign.training_memory import Counts, Memory, counts, memory, operations
from medalign.training_plan import GIB, PLANNING, Planning, gpu_of, hours, obstacles, refusal, work

PUBLISHED = ROOT / "docs/results/plan-published.yaml"
CLOSE = 0.75  # of the card: above, the plan's own error may decide
PARTS = {
    "weights": "weights",
    "constants": "quantization constants",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "kept": "activations kept",
    "again": "one layer's work",
    "logits": "logits",
    "reference": "reference pass",
    "overhead": "overhead (assumed)",
}


class Case(BaseModel):
    """A published peak of docs/results/plan-published.yaml."""

    name: str
    shape: dict[str, Any]
    recipe: dict[str, Any]
    peak: float
    unit: float
    source: str
    note: str = ""


def show_memory(recipe: dict[str, Any], model: Counts, given: dict[str, float]) -> Memory:
    """Print the parts with and without checkpointing. Returns those of the recipe as it is."""
    planned = memory(recipe, model, given)
    other = {**recipe, "gradient_checkpointing": not recipe.get("gradient_checkpointing")}
    against = memory(other, model, given)
    on = "without" if recipe.get("gradient_checkpointing") else "with"
    table = Table("GiB at the peak", "recipe", f"{on} checkpointing", box=None)
    for key, label in PARTS.items():
        table.add_row(label, *(f"{getattr(m, key) / GIB:.2f}" for m in (planned, against)))
    table.add_row("peak (of one layer's work", "", "")
    table.add_row("and logits, the larger)", *(f"{m.peak / GIB:.2f}" for m in (planned, against)))
    Console().print(table)
    return planned


def show_plan(path: Path, name: str, planning: Planning) -> None:
    """Print the plan of one recipe on one GPU. StepError, after the parts, if it does not run."""
    gpu, family = gpu_of(name, planning), planning.families[family_of(path)]
    recipe, given = read_yaml(path), planning.assumptions
    model = counts(family.shape, recipe)
    trained = sum(model.adapter) or model.total
    print(f"{shown(path)} on a {name}, {gpu.memory_gib} GiB; {trained:,} parameters trained")
    planned = show_memory(recipe, model, given)
    if reason := refusal(recipe, family.shape, name, gpu, given):
        raise StepError(f"{shown(path)} on a {name}: {reason}")
    if planned.peak > CLOSE * gpu.memory_gib * GIB:
        print("close: published peaks were up to 1.8 times what is planned (make plan CHECK=1)")
    if todo := work(recipe, family, given):
        need = hours(recipe, model, todo, gpu)
        flops = operations(recipe, model, todo.tokens, todo.length)
        print(f"{todo.steps} steps, {todo.tokens:.3g} tokens paid for, {flops:.3g} operations")
        print(f"{need:.2f} h at {gpu.utilisation:.0%} of {gpu.tflops:g} TFLOP/s")
        print(f"{need * gpu.usd_per_hour:.2f} USD at {gpu.usd_per_hour} an hour, ILLUSTRATIVE:")
        print(f"  {gpu.priced}")
    else:
        print("steps, hours and cost need the data: make data, make mix, make pairs")
    named = ", ".join(f"{key} {value:g}" for key, value in given.items())
    print(f"assumed ({shown(PLANNING)}): {named},")
    print(f"  {family.characters_per_token} characters a token, every row at sequence_len")


def cell(path: Path, name: str, planning: Planning) -> str:
    """One field of the table: GiB, hours, USD; or why not."""
    gpu, family = planning.gpus[name], planning.families[family_of(path)]
    recipe, given = read_yaml(path), planning.assumptions
    if found := obstacles(recipe, name, gpu):
        return "no: " + ", ".join(dict.fromkeys(fault.partition(":")[0] for fault in found))
    model = counts(family.shape, recipe)
    peak = memory(recipe, model, given).peak / GIB
    if peak > gpu.memory_gib:
        return f"no: {peak:.1f} GiB"
    if not (todo := work(recipe, family, given)):
        return f"{peak:.1f} GiB"
    need = hours(recipe, model, todo, gpu)
    lasts = f"{need:.1f} h" if need >= 1 else f"{60 * need:.1f} min"
    return f"{peak:.1f} GiB, {lasts}, ${need * gpu.usd_per_hour:.2f}"


def table(recipes: list[Path], planning: Planning) -> str:
    """These recipes on all GPUs of `planning`, as Markdown."""
    rows = [
        [f"{p.parent.name}/{p.stem}", *(cell(p, name, planning) for name in planning.gpus)]
        for p in recipes
    ]
    return markdown(["recipe", *planning.gpus], rows)


def check(planning: Planning, path: Path = PUBLISHED) -> str:
    """Planned against published peaks, in the unit that was published, as Markdown."""
    rows = []
    for entry in read_yaml(path)["cases"]:
        case = Case(**entry)
        found = memory(case.recipe, counts(case.shape, case.recipe), planning.assumptions)
        peak = found.peak / case.unit
        error = f"{peak / case.peak - 1:+.0%}"
        rows.append([case.name, f"{case.peak:.1f}", f"{peak:.1f}", error, case.note])
    return markdown(["case", "published", "planned", "error", "why"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, help="default: all")
    parser.add_argument("--gpu", default="all", help="of recipes/planning.yaml; default: all")
    parser.add_argument("--check", action="store_true", help="planned against published peaks")
    args = parser.parse_args()
    planning = declared(PLANNING, Planning)
    if args.gpu != "all":
        only = {args.gpu: gpu_of(args.gpu, planning)}
        planning = planning.model_copy(update={"gpus": only})
    if args.check:
        print(check(planning))
    elif args.recipe and args.gpu != "all":
        show_plan(args.recipe, args.gpu, planning)
    else:
        print(table([args.recipe] if args.recipe else all_recipes(), planning))


if __name__ == "__main__":
    run_step(main)
