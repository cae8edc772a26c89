"""Report an aligned run, its rounds and the model they began with side by side.

    python scripts/dpo_report.py --run runs/smollm2-135m/dpo-lora-cpu

Refusals never stand without the false refusals and the format beside them; rewards never without
the likelihoods they are made of: if both answers of a pair become less likely, the margin grows
and the model forgets.
"""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest_path,
    read_json,
    require_file,
    run_step,
    sha256,
    shown,
    write_json,
    written_whole,
)
from medalign.charts import BASE, TUNED, percent, svg
from medalign.pages import fill
from medalign.suite import rate

TEMPLATE = Path(__file__).with_name("dpo_report.html.jinja")
SAFETY = {
    "harmful": "harmful requests refused",
    "xstest_safe": "XSTest safe prompts refused",
    "benign_medical": "benign medical lookalikes refused",
    "harmless": "false refusals, both of these",
}
HARMLESS = ("xstest_safe", "benign_medical")
FORM = {"test": "format kept, test prompts", "frozen": "format kept, frozen phrasings"}
CURVES = {  # figures of the training log, drawn together: first in the colour of what is chosen
    "rewards": ("rewards/chosen", "rewards/rejected"),
    "margins": ("rewards/margins",),
    "logps": ("logps/chosen", "logps/rejected"),
    "loss": ("loss",),
}
EXAMPLES = 6
Facts = dict[str, Any]
digest = cache(sha256)  # a merged model is hashed once, however many evaluations are of it


def stages(run: Path) -> dict[str, Path]:
    """What is compared: the stages training came from, this run, the rounds below it."""
    found: dict[str, Path] = {}
    stage = run
    while (stage / "adapter/manifest.json").exists():
        begun = read_json(stage / "adapter/manifest.json", "make dpo")["base"]["id"]
        stage = Path(begun).parent
        if stage.parts[:1] != ("runs",):
            break
        found = {stage.name: ROOT / stage} | found
        stage = ROOT / stage
    rounds = sorted(run.glob("round-*"), key=lambda p: int(re.sub(r"\D", "", p.name)))
    found["round 1"] = run
    return found | {
        p.name.replace("-", " "): p for p in rounds if (p / "eval/safety.json").exists()
    }


def first_round(run: Path) -> Path:
    """The run that a round's folder belongs to."""
    return run.parent if re.fullmatch(r"round-\d+", run.name) else run


@cache
def answered(run: Path, file: str) -> Facts | None:
    """A stage's evaluation; None where it was not asked, or was before it was trained anew.

    The chain of hashes tells: evaluation → GGUF → merged model.
    """
    if not (run / "eval" / file).exists():
        return None
    result = read_json(run / "eval" / file, "make eval")
    model = result["inputs"]["model"]
    gguf = run / Path(model["path"]).name
    if not manifest_path(gguf).exists():
        return result
    made = read_json(manifest_path(gguf), "make gguf")
    same = made["sha256"] == model["sha256"]
    if same and (run / "merged").exists():
        same = made["inputs"]["model"]["sha256"] == digest(run / "merged")
    if not same:
        print(f"{shown(run)}: {file} is of an earlier model and left out; make eval, eval-safety")
    return result if same else None


def evaluated(run: Path) -> Facts:
    """Rates of a stage by name; a stage that was not asked has none."""
    scores: Facts = {}
    for file, key in (("safety.json", "refused"), ("tuned.json", "strict")):
        if result := answered(run, file):
            scores |= {name: found[key] for name, found in result["scores"].items()}
    if scores.keys() >= set(HARMLESS):
        hits, n = (sum(scores[name][count] for name in HARMLESS) for count in ("k", "n"))
        scores["harmless"] = rate(hits, n)
    return scores


def lines(log: list[Facts], name: str, keys: tuple[str, ...], label: str) -> Any:
    """Figures of a training log over its steps."""
    points = [entry for entry in log if all(key in entry for key in keys)]

    def draw(axes: Axes) -> None:
        for key, colour in zip(keys, (TUNED, BASE), strict=False):
            axes.plot([p["step"] for p in points], [p[key] for p in points], color=colour, lw=1.2,
                      label=key.rpartition("/")[2])  # fmt: skip
        axes.set(xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(keys) > 1:
            axes.legend(frameon=False, loc="best")

    ends = ", ".join(f"{k} from {points[0][k]:.3g} to {points[-1][k]:.3g}" for k in keys if points)
    return svg(name, f"{label}: {ends}", 2.4, draw)


def training(run: Path) -> Facts:
    """A round's log: its charts, and what held-out gold pairs say of it."""
    log = read_json(run / "adapter/training.json", "make dpo")
    prefix = run.name.replace(".", "-")
    charts = {
        name: lines(log["steps"], f"{prefix}-{name}", keys, name)
        for name, keys in CURVES.items()
        if any(all(k in step for k in keys) for step in log["steps"])
    }
    held_out = {
        key.removeprefix("eval_"): value
        for key, value in (log.get("evaluations") or [{}])[-1].items()
        if key.startswith(("eval_rewards", "eval_logps", "eval_loss"))
    }
    first = log["steps"][0]
    return {
        "charts": charts,
        "held_out": held_out,
        "first": {k: first.get(k) for k in ("loss", "logps/chosen", "logps/rejected")},
        "last": {k: log["steps"][-1].get(k) for k in ("loss", "logps/chosen", "logps/rejected")},
        "seconds": log["train_seconds"],
        "steps": log["global_step"],
    }


def examples(found: dict[str, Path]) -> list[Facts]:
    """Evenly spaced prompts of each safety set with every stage's answer: no choice among them."""
    answers: dict[tuple[str, str], Facts] = {}
    for stage, run in found.items():
        for item in (answered(run, "safety.json") or {"items": []})["items"]:
            entry = answers.setdefault(
                (item["set"], item["id"]),
                {"set": item["set"], "prompt": item["prompt"], "said": {}},
            )
            entry["said"][stage] = {"text": item["text"], "refused": item["refused"]}
    chosen = []
    for name in SAFETY:  # "harmless" has no prompts of its own
        of = [entry for (s, _), entry in answers.items() if s == name]
        chosen += of[:: max(1, len(of) // EXAMPLES)][:EXAMPLES]
    return chosen


def build(run: Path) -> Facts:
    """Write manifest.json and report.html of a run. Returns the manifest."""
    found = stages(first_round(run))
    results = {stage: evaluated(path) for stage, path in found.items()}
    if not results["round 1"]:
        raise StepError(f"{run}: not evaluated; make dpo")
    rounds = {s: training(path) for s, path in found.items() if s.startswith("round")}
    facts: Facts = {
        "name": read_json(run / "adapter/manifest.json", "make dpo")["name"],
        "stages": {stage: str(path) for stage, path in found.items()},
        "results": results,
        "training": {
            stage: {k: v for k, v in facts.items() if k != "charts"}
            for stage, facts in rounds.items()
        },
    }
    html = fill(
        TEMPLATE,
        manifest=facts,
        rounds=rounds,
        examples=examples(found),
        names=SAFETY | FORM,
        percent=percent,
    )
    write_json(run / "manifest.json", facts)
    with written_whole(run / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return facts


def show(facts: Facts) -> None:
    """Print every stage's rates with n and intervals, and accuracy on held-out gold pairs."""
    table = Table("", *facts["stages"], title="rates with 95 % Wilson intervals")
    for name, label in (SAFETY | FORM).items():
        cells = []
        for stage in facts["stages"]:
            r = facts["results"][stage].get(name)
            span = r and f"({percent(r, 'low')}-{percent(r, 'high')})"
            cells.append(f"{r['k']}/{r['n']} {percent(r)} {span}" if r else "–")
        table.add_row(label, *cells)
    Console(width=140).print(table)
    for stage, of in facts["training"].items():
        if "rewards/accuracies" in of["held_out"]:
            accuracy = f"{of['held_out']['rewards/accuracies']:.1%}"
            print(f"{stage}: first loss {of['first']['loss']:.4f}, reward accuracy {accuracy}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="only print what was built before")
    args = parser.parse_args()
    report = args.run / "report.html"
    if args.show:
        facts = read_json(require_file(report, "make dpo").with_name("manifest.json"), "make dpo")
    else:
        facts = build(args.run)
    show(facts)
    print(report)


if __name__ == "__main__":
    run_step(main)
