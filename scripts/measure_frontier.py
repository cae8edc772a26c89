"""Refusals, false refusals and form over what can be turned: the frontier of an alignment.

    python scripts/measure_frontier.py --adapter runs/smollm2-135m/dpo-lora-cpu/adapter \\
        --family smollm2-135m --scales 0 0.5 1.5 --out runs/smollm2-135m/dpo-lora-cpu/frontier

What DPO learnt is a step B A from the SFT model. Half of it or half as much again are models too,
and cost no training: scale 0 is SFT alone, 1 the model as trained (after Ilharco et al. 2023,
"Editing models with task arithmetic"). `--others` are adapters trained with other settings, other
betas say, named by what their manifests say was set. Each is merged, quantized and asked the
tuning sets, never the frozen ones: what is chosen here has not seen what it is judged by.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

from medalign import evaluate_format, evaluate_safety, suite
from medalign.artifacts import (
    StepError,
    manifest,
    read_json,
    remove,
    run_step,
    sha256,
    write_json,
)
from medalign.export_gguf import export
from medalign.merge_adapter import merge
from medalign.pages import markdown
from medalign.recipe import Model, model, system_prompt

Rate = dict[str, Any]  # medalign.suite.rate


def point(
    adapter: Path, beside: Path, scale: float, family: Model, quant: str, work: Path
) -> dict[str, Any]:
    """The rates of the adapter at one scale. What was made for it is removed but the answers."""
    gguf, mark, digest = work / f"{family.name}-{quant}.gguf", work / "adapter", sha256(adapter)
    if not mark.exists() or mark.read_text() != digest:  # of an adapter that was trained anew
        remove(work)
    if not gguf.exists():
        merge(adapter, work / "merged", scale=scale)
        export(work / "merged", gguf, quant, family)
        shutil.rmtree(work / "merged")
        mark.write_text(digest)
    safety = evaluate_safety.evaluate(gguf, work / "safety.json", "tune")["scores"]
    form = evaluate_format.evaluate(gguf, work / "form.json", ["tune"], system_prompt(), None)
    rates = {name: scores["refused"] for name, scores in safety.items()}
    return {
        "settings": settings(adapter, beside),
        "scale": scale,
        **rates,
        "form_tune": form["scores"]["tune"]["strict"],
        "d_prime": d_prime(rates.get("harmful_tune"), rates.get("benign_tune")),
    }


def settings(adapter: Path, beside: Path) -> str:
    """What was set when the adapter was trained, and was not for the one it is compared with."""
    one, other = (
        read_json(folder / "manifest.json", "make sft or make dpo writes it").get("overrides") or {}
        for folder in (adapter, beside)
    )
    changed = {k: v for k, v in one.items() if v is not None and other.get(k) != v}
    return ", ".join(f"{key} {value}" for key, value in sorted(changed.items())) or "the recipe's"


def d_prime(harmful: Rate | None, harmless: Rate | None) -> float | None:
    """How far apart refusals of the two are, in standard deviations: z(hits) - z(false alarms).

    Half an answer is added to each count, so that none and all are finite (Hautus 1995). None where
    a set is not there.
    """
    if harmful is None or harmless is None:
        return None
    z = [NormalDist().inv_cdf((r["k"] + 0.5) / (r["n"] + 1)) for r in (harmful, harmless)]
    return round(z[0] - z[1], 2)


def table(points: list[dict[str, Any]]) -> str:
    """A row a point, in Markdown."""
    cells = [
        [
            suite.told(v) if isinstance(v, dict) else f"{v:g}" if name == "scale" else str(v)
            for name, v in p.items()
        ]
        for p in points
    ]
    return markdown([*points[0]], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True, help="of make dpo or make sft")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="at scale 1 only")
    parser.add_argument("--family", required=True, help="the model's entry in models.yaml")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 0.5, 1, 1.5])
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    if not all(0 <= scale <= 4 for scale in args.scales):
        raise StepError("--scales are between 0, the base, and 4")
    if len({other.parent.name for other in args.others}) < len(args.others):
        raise StepError(
            "--others lie in folders of different names, by which their points are kept"
        )
    began, family = time.monotonic(), model(args.family)
    asked = [(args.adapter, scale, f"scale-{scale:g}") for scale in sorted(args.scales)]
    asked += [(other, 1.0, other.parent.name) for other in args.others]
    adapters = {f"adapter {n}": a for n, a in enumerate([args.adapter, *args.others])}
    points: list[dict[str, Any]] = []
    for adapter, scale, name in asked:
        points.append(point(adapter, args.adapter, scale, family, args.quant, args.out / name))
        write_json(args.out / "frontier.json", manifest("frontier", adapters, began, points=points))
    print(table(points))


if __name__ == "__main__":
    run_step(main)
