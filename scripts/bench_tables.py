"""What a bench of trainings shows: medians, ratios, losses within noise, a table, a plot."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Facts = dict[str, Any]
SPEEDS = {"whole_tokens_per_second": "whole run", "steady_tokens_per_second": "steady"}
MEDIANS = (*SPEEDS, "whole_seconds", "utilisation", "padding", "peak_gib")
FLAGS = (
    *("amx_bf16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512f", "avx2"),
    *("bf16", "i8mm", "asimd"),  # of ARM
)


def cpu_flags() -> list[str]:
    """The instructions this CPU multiplies with, as /proc/cpuinfo names them; else none."""
    path = Path("/proc/cpuinfo")
    known = set(path.read_text().split()) if path.exists() else set()
    return [flag for flag in FLAGS if flag in known]


def ratio(first: list[Facts], other: list[Facts], key: str) -> float:
    """The median over rounds of the first system's figure over the other's of the same round."""
    of = {run["round"]: run[key] for run in other}
    return statistics.median(run[key] / of[run["round"]] for run in first)


def apart(first: list[float], other: list[float]) -> float | None:
    """How many standard deviations lie between two means of losses; None below three seeds.

    The deviation is between seeds, pooled over the two systems.
    """
    if min(len(first), len(other)) < 3:
        return None
    deviation = math.sqrt((statistics.variance(first) + statistics.variance(other)) / 2)
    difference = abs(statistics.fmean(first) - statistics.fmean(other))
    return difference / deviation if deviation else (math.inf if difference else 0.0)


def summary(runs: list[Facts]) -> dict[str, Facts]:
    """Of one stage: medians of each system, ratios of MedAlign (the first if it is left out).

    flag: true where held-out losses differ by more than two standard deviations.
    """
    by: dict[str, list[Facts]] = {}
    for run in runs:
        by.setdefault(run["system"], []).append(run)
    first = next(iter(by.values()))
    found: dict[str, Facts] = {}
    for name, mine in by.items():
        row: Facts = {key: statistics.median(run[key] for run in mine) for key in MEDIANS}
        row |= {f"ratio_{key}": ratio(first, mine, key) for key in SPEEDS}
        row["training_loss"] = statistics.fmean(run["training_loss"] for run in mine)
        losses = seeds_of(mine)
        row["held_out_loss"] = statistics.fmean(losses)
        row["deviation"] = statistics.stdev(losses) if len(losses) > 1 else None
        row["apart"] = apart(seeds_of(first), losses)
        row["flag"] = row["apart"] is not None and row["apart"] > 2
        found[name] = row
    return found


def seeds_of(runs: list[Facts]) -> list[float]:
    """A held-out loss for each seed: the same seed again says nothing of the noise."""
    return list({run["seed"]: run["held_out_loss"] for run in runs}.values())


def table(rows: dict[str, Facts]) -> str:
    """A stage's summary as Markdown."""
    name = next(iter(rows))
    lines = [
        f"| system | whole run s | real tokens/s | {name} is | steady tokens/s | {name} is "
        "| of GEMM peak | padding | peak GiB | training loss | held-out loss | apart |",
        "|---|" + "---|" * 11,
    ]
    for system, r in rows.items():
        deviation = "" if r["deviation"] is None else f" ± {r['deviation']:.4f}"
        apart_by = "one to two seeds" if r["apart"] is None else f"{r['apart']:.1f} sd"
        lines.append(
            f"| {system} | {r['whole_seconds']:.0f} | {r['whole_tokens_per_second']:.0f} "
            f"| {r['ratio_whole_tokens_per_second']:.2f} × as fast "
            f"| {r['steady_tokens_per_second']:.0f} "
            f"| {r['ratio_steady_tokens_per_second']:.2f} × as fast "
            f"| {r['utilisation']:.0%} | {r['padding']:.0%} | {r['peak_gib']:.1f} "
            f"| {r['training_loss']:.4f} | {r['held_out_loss']:.4f}{deviation} "
            f"| {apart_by}{', BEYOND NOISE' if r['flag'] else ''} |"
        )
    return "\n".join(lines)


def gguf_table(rounds: list[dict[str, dict[str, float]]]) -> str:
    """Medians of prompt and generation tokens/s by way to run the file, as Markdown."""
    lines = ["| GGUF by | prompt tokens/s | generation tokens/s | ours is |", "|---|---|---|---|"]
    for way in rounds[0]:
        middle = [statistics.median(r[way][key] for r in rounds) for key in ("prompt", "generated")]
        ratios = [
            statistics.median(r["medalign"][key] / r[way][key] for r in rounds)
            for key in ("prompt", "generated")
        ]
        compared = f"{ratios[0]:.2f} × and {ratios[1]:.2f} × as fast"
        lines.append(f"| {way} | {middle[0]:.0f} | {middle[1]:.1f} | {compared} |")
    return "\n".join(lines)


def plot(stages: dict[str, dict[str, Facts]], path: Path) -> None:
    """Bars of real tokens/s, whole run and steady, a panel a stage, as PNG."""
    figure = Figure(figsize=(7, 1 + 2.2 * len(stages)), layout="constrained")
    panels = figure.subplots(len(stages), squeeze=False)[:, 0]
    for axes, (stage, rows) in zip(panels, stages.items(), strict=True):
        for shift, (key, label) in zip((-0.2, 0.2), SPEEDS.items(), strict=True):
            places = [i + shift for i in range(len(rows))]
            bars = axes.barh(places, [row[key] for row in rows.values()], 0.36, label=label)
            axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set(title=stage, xlabel="real tokens/s, medians")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
