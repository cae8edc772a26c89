"""The page of a training mix: funnel, lengths, shares, and the pairs next to each threshold.

python scripts/mix_report.py --mix build/data --out build/data/mix.html    (make mix-report)
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from medalign.artifacts import require_file, run_step, written_whole
from medalign.build_mix import WORK
from medalign.charts import MUTED, TUNED, svg
from medalign.mix_stages import SHOWN, Job, settings, turns
from medalign.pages import fill

TEMPLATE = Path(__file__).with_name("mix_report.html.jinja")
Facts = dict[str, Any]


def sideways(name: str, label: str, values: dict[str, int]) -> Markup:
    """Bars to the right, one a name, with their numbers."""

    def draw(axes: Axes) -> None:
        for i, value in enumerate(values.values()):
            axes.barh(i, value, 0.62, fc=(TUNED, 0.45), ec=TUNED)
            axes.text(value, i, f" {value:,}", va="center")
        axes.set_yticks(range(len(values)), list(values))
        axes.set_xlim(0, 1.22 * max([*values.values(), 1]))
        axes.xaxis.set_visible(False)
        axes.grid(visible=False)
        axes.invert_yaxis()

    said = ", ".join(f"{k} {v:,}" for k, v in values.items())
    return svg(name, f"{label}: {said}", 0.6 + 0.26 * len(values), draw)


def histogram(name: str, values: list[float], limit: float | None = None) -> Markup:
    """How often which value occurs; a line where rows are dropped below."""
    top = float(np.quantile(values, 0.99)) if values else 1.0

    def draw(axes: Axes) -> None:
        axes.hist(np.clip(values, 0, top), bins=30, fc=(TUNED, 0.45), ec=TUNED)
        if limit is not None:
            axes.axvline(limit, color=MUTED, ls="--")
            axes.text(limit, axes.get_ylim()[1], " dropped below", va="top", ha="left")
        axes.set_ylabel("rows")

    median = float(np.median(values)) if values else 0.0
    return svg(name, f"{name}: median {median:.3g}, 99 % at most {top:.3g}", 2.4, draw)


def closest(job: Job, stage: str) -> Facts:
    """The pairs next to a stage's threshold, with what the rows say."""
    found = json.loads((job.folder / f"closest-{stage}.json").read_text())
    index = job.index()
    sides: dict[str, list[Facts]] = {"dropped": [], "kept": []}
    for a, b, value in found["pairs"]:
        left, right = job.read(index, np.array([a, b]))
        pair = {
            side: {"id": row["id"], "text": "\n\n".join(turns(row))[:900]}
            for side, row in (("left", left), ("right", right))
        }
        sides["dropped" if value >= found["threshold"] else "kept"].append({**pair, "value": value})
    return {"threshold": found["threshold"], **sides}


def contaminated(job: Job) -> dict[str, list[Facts]]:
    """Rows that hold an evaluation row and those that nearly do, nearest to the threshold first."""
    hits = [
        hit
        for p in range(job.settings.pieces)
        for hit in json.loads((job.folder / f"{job.piece(p)}.hits.json").read_text())
    ]
    hits.sort(key=lambda hit: (hit["value"], hit["row"]))
    return {
        "dropped": [hit for hit in hits if hit["over"]],
        "kept": [hit for hit in reversed(hits) if not hit["over"]],
    }


def page(mix: Path) -> str:
    """The report of the mix in a folder, as HTML."""
    hint = "make mix builds it"
    manifest = json.loads(require_file(mix / "manifest.json", hint).read_text(encoding="utf-8"))
    job = Job(require_file(WORK / manifest["work"], hint), settings(), [], [])
    funnel = manifest["funnel"]
    steps: Counter[str] = Counter()
    for row in funnel.values():
        steps.update(row["dropped"])
    total = {
        key: sum(row[key] for row in funnel.values()) for key in ("read", "train", "validation")
    }
    left = {"read": total["read"]}
    left |= {f"– {reason}": n for reason, n in steps.most_common()}
    left |= {"train": total["train"], "validation": total["validation"]}
    values: dict[str, list[float]] = {
        key: [] for key in ("question", "answer", "relevance", "quality")
    }
    with (mix / "train.jsonl").open(encoding="utf-8") as rows:
        for line in rows:
            row = json.loads(line)
            said = turns(row)
            values["question"].append(len(said[0].split()))
            values["answer"].append(len(said[-1].split()))
            values["relevance"].append(row["scores"]["relevance"])
            values["quality"].append(row["scores"]["quality"])
    least = {str(name): value for name, value in job.settings.scores.items()}
    charts = {key: histogram(key, found, least.get(key)) for key, found in values.items()}
    charts["funnel"] = sideways("funnel", "Rows", left)
    by_source = {name: row["train"] for name, row in funnel.items()}
    charts["sources"] = sideways("sources", "Training rows", by_source)
    return fill(
        TEMPLATE,
        manifest=manifest,
        manifest_text=json.dumps(manifest, indent=2, ensure_ascii=False),
        total={**total, "dropped": sum(steps.values())},
        terms={n: manifest["sources"].get(n, {"terms": "own"})["terms"] for n in funnel},
        charts=charts,
        near=closest(job, "duplicates"),
        meanings=closest(job, "meanings"),
        hits=contaminated(job),
        shown=SHOWN,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mix", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with written_whole(args.out) as temporary:
        temporary.write_text(page(args.mix), encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    run_step(main)
