"""The charts of a report: inline SVG that turns dark with the page and says what it shows."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Colours no chart would choose: the page puts its CSS variables in their place, so that the
# charts turn dark with it.
FG, MUTED, GRID, BASE, TUNED = "#010200", "#010201", "#010202", "#010203", "#010204"
VARIABLES = {FG: "--fg", MUTED: "--muted", GRID: "--line", BASE: "--base", TUNED: "--tuned"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medalign",
    "savefig.transparent": True,
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
Facts = dict[str, Any]


def svg(name: str, label: str, height: float, draw: Callable[[Axes], None]) -> Markup:
    """A chart as inline SVG: `draw` fills the axes, `label` says in words what they show.

    name: unique in the page, it prefixes the ids. height: inches, at a width of 4.6.
    """
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue().partition("<svg ")[2]
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup('<svg role="img" aria-label="{}" ').format(label) + Markup(text)


def curve(training: Facts, key: str, height: float) -> Markup:
    """A figure of the training log over its steps (its epochs, if no step is logged)."""
    points = [entry for entry in training["steps"] if entry.get(key) is not None]
    x = "step" if all("step" in entry for entry in points) else "epoch"
    values = [entry[key] for entry in points]

    def draw(axes: Axes) -> None:
        axes.plot([entry[x] for entry in points], values, ".-", color=TUNED, lw=1.2, ms=3)
        axes.set(xlabel=x)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step"))

    ends = f", from {values[0]:.3g} to {values[-1]:.3g}" if values else ""
    return svg(key, f"{key.replace('_', ' ')} by {x}{ends}", height, draw)


def bars(name: str, base: Facts, tuned: Facts) -> Markup:
    """Strict adherence by group, base above tuned, the 95 % intervals as whiskers."""
    models = (("base", BASE, -0.2, base), ("tuned", TUNED, 0.2, tuned))

    def draw(axes: Axes) -> None:
        for label, colour, shift, groups in models:
            for i, r in enumerate(groups.values()):
                reach = [[max(0, r["rate"] - r["low"])], [max(0, r["high"] - r["rate"])]]
                y, fill = i + shift, (colour, 0.45)
                axes.barh(y, r["rate"], 0.36, fc=fill, ec=colour, label=None if i else label)
                axes.errorbar(r["rate"], y, xerr=reach, color=FG, lw=1.1, capsize=2.5)
                axes.text(r["high"] + 0.02, y, f"{r['k']}/{r['n']}", va="center")
        axes.set_yticks(range(len(base)), [group.replace("_", "\n") for group in base])
        axes.set(xlim=(0, 1.18), xticks=[0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False)

    said = (f"{g.replace('_', ' ')} {percent(base[g])} to {percent(tuned[g])}" for g in base)
    return svg(f"by-{name}", "Strict adherence, base to tuned: " + ", ".join(said), 3.5, draw)


def percent(rate: Facts, key: str = "rate") -> str:
    """A rate, or a bound of its interval, in per cent; a dash where nothing was asked."""
    return "–" if rate[key] is None else f"{rate[key]:.1%}"
