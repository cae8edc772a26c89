"""Refusals, false refusals and form of one adapter merged at several scales: the frontier.

    python scripts/measure_frontier.py --adapter runs/smollm2-135m/dpo-lora-cpu/adapter \\
        --family smollm2-135m --scales 0 0.5 1.5 --out runs/smollm2-135m/dpo-lora-cpu/frontier

What DPO learnt is a step B A from the SFT model. Half of it or half as much again are models too,
and cost no training: scale 0 is SFT alone, 1 the model as trained (after Ilharco et al. 2023,
"Editing models with task arithmetic"). Each is merged, quantized and asked the tuning sets, never
the frozen ones: a scale chosen here has not seen what it is judged by.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from medalign import evaluate_format, evaluate_safety, suite
from medalign.artifacts import StepError, manifest, run_step, write_json
from medalign.export_gguf import export
from medalign.merge_adapter import merge
from medalign.pages import markdown
from medalign.recipe import Model, model, system_prompt


def point(adapter: Path, scale: float, family: Model, quant: str, out: Path) -> dict[str, Any]:
    """The rates of the adapter at one scale. What was made for it is removed but the answers."""
    work = out / f"scale-{scale:g}"
    gguf = work / f"{family.name}-{quant}.gguf"
    if not gguf.exists():
        merge(adapter, work / "merged", scale=scale)
        export(work / "merged", gguf, quant, family)
        shutil.rmtree(work / "merged")
    safety = evaluate_safety.evaluate(gguf, work / "safety.json", "tune")["scores"]
    form = evaluate_format.evaluate(gguf, work / "form.json", ["tune"], system_prompt(), None)
    return {
        "scale": scale,
        **{name: scores["refused"] for name, scores in safety.items()},
        "form_tune": form["scores"]["tune"]["strict"],
    }


def table(points: list[dict[str, Any]]) -> str:
    """A row a scale, in Markdown."""
    names = [name for name in points[0] if name != "scale"]
    rows = [[f"{p['scale']:g}", *(suite.told(p[name]) for name in names)] for p in points]
    return markdown(["scale", *names], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True, help="of make dpo or make sft")
    parser.add_argument("--family", required=True, help="the model's entry in models.yaml")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 0.5, 1, 1.5])
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    if not all(0 <= scale <= 4 for scale in args.scales):
        raise StepError("--scales are between 0, the base, and 4")
    began, family = time.monotonic(), model(args.family)
    points: list[dict[str, Any]] = []
    for scale in args.scales:
        points.append(point(args.adapter, scale, family, args.quant, args.out))
        points.sort(key=lambda p: p["scale"])
        facts = manifest("frontier", {"adapter": args.adapter}, began, points=points)
        write_json(args.out / "frontier.json", facts)
    print(table(points))


if __name__ == "__main__":
    run_step(main)
