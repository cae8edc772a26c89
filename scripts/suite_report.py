"""The page of the suites: stages side by side, what changed, the worst answers to read.

    python scripts/suite_report.py --out build/suites/report.html \\
        --stage base=build/suites/smollm2-135m-instruct --stage SFT=runs/…/eval/suites/merged …

A stage is a folder of suite results (make eval MODEL=…). Each is compared with the one before it,
item by item; a drop that is not accepted by name is red. One file, no network, no JavaScript.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from medalign.artifacts import ROOT, StepError, read_jsonl, run_step, written_whole
from medalign.charts import FG, GRID, MUTED, TUNED, svg
from medalign.compare_results import compare, good, load
from medalign.evaluate import SUITES
from medalign.measures import headline
from medalign.pages import fill
from medalign.sources import HELD

Facts = dict[str, Any]
TEMPLATE = Path(__file__).with_name("suite_report.html.jinja")
REJECTED = ROOT / "build/data/rejected.jsonl"
WORST = 3  # answers shown of a suite
# What a suite is summed up by, how it is called, and where chance lies.
HEADLINES: dict[str, tuple[str, str, float | None]] = {
    "medqa": ("accuracy", "accuracy", 0.25),
    "pubmedqa": ("accuracy", "accuracy (always yes: 0.552)", None),
    "medmcqa": ("accuracy", "accuracy", 0.25),
    "mmlu_medical": ("accuracy", "accuracy, 5 shots", 0.25),
    "medication_safety": ("balanced_accuracy", "balanced accuracy", 0.5),
    "refusal": ("balanced_accuracy", "balanced accuracy", 0.5),
    "education_format": ("test_strict", "four sections kept, test prompts", None),
    "multi_turn": ("held", "turns held", None),
    "empathy": ("empathy_proxy", "empathy, proxy by rules (1 to 5)", None),
}
# Whose rows the training mix is kept apart from, by the name of data/sources.yaml or the file.
KEPT_APART = {
    "medqa": ("medqa-test",),
    "pubmedqa": ("pubmedqa-test",),
    "medmcqa": ("medmcqa-validation",),
    "mmlu_medical": ("mmlu-medical",),
    "medication_safety": ("evals/medication_safety/plans",),
    "refusal": ("medsafetybench-test", "xstest", "evals/refusal/benign_medical"),
    "education_format": ("data/education/test", "evals/education_format/phrasing_frozen"),
    "multi_turn": ("evals/multi_turn/turns",),
    "empathy": ("evals/empathy/prompts",),
}


def stage(text: str) -> tuple[str, Path]:
    """LABEL=FOLDER. StepError if it is not that."""
    label, sign, folder = text.partition("=")
    if not sign or not label or not Path(folder).is_dir():
        raise StepError(f"--stage {text}: LABEL=FOLDER with suite results is expected")
    return label, Path(folder)


def result(folder: Path, suite: str) -> Facts | None:
    """A suite's result, if the stage has it."""
    return load(folder, suite) if (folder / f"{suite}.json").exists() else None


def bars(suite: str, found: dict[str, Facts]) -> Markup:
    """The headline of a suite by stage, 95 % intervals as whiskers, chance as a line."""
    key, label, chance = HEADLINES[suite]
    top = 5.0 if suite == "empathy" else 1.0
    figures = {name: r["scores"][key] for name, r in found.items()}

    def draw(axes: Axes) -> None:
        for i, figure in enumerate(figures.values()):
            value = headline(figure) or 0.0
            reach = [[max(0.0, value - figure["low"])], [max(0.0, figure["high"] - value)]]
            axes.barh(i, value, 0.6, fc=(TUNED, 0.4), ec=TUNED)
            axes.errorbar(value, i, xerr=reach, color=FG, lw=1.1, capsize=2.5)
            axes.text(figure["high"] + 0.02 * top, i, f"{value:.3f}", va="center", color=FG)
        if chance is not None:
            axes.axvline(chance, color=MUTED, lw=1, ls="--")
        axes.set_yticks(range(len(figures)), list(figures))
        axes.set(xlim=(0, top * 1.15), xlabel=label)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()

    said = ", ".join(f"{name} {headline(f)}" for name, f in figures.items())
    return svg(f"bars-{suite}", f"{suite}, {label}: {said}", 0.75 + 0.34 * len(figures), draw)


def calibration(suite: str, found: dict[str, Facts]) -> Markup | None:
    """Share of right answers by how sure the model was, of the last stage that has it."""
    known = [
        (n, r["scores"]["calibration"]) for n, r in found.items() if "calibration" in r["scores"]
    ]
    if not known:
        return None
    name, facts = known[-1]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, lw=1)
        sure, right = ([b[k] for b in facts["bins"]] for k in ("sure", "right"))
        axes.plot(sure, right, "o-", color=TUNED, lw=1.2, ms=4)
        for b in facts["bins"]:
            axes.annotate(
                f"{b['n']}", (b["sure"], b["right"]), (3, 6), textcoords="offset points", fontsize=7
            )
        axes.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="probability of the chosen option", ylabel="right"
        )

    error = facts["expected_calibration_error"]["value"]
    said = f"{suite}, {name}: expected calibration error {error}"
    return svg(f"calibration-{suite}", said, 2.6, draw)


def worst(suite: str, last: Facts) -> list[Facts]:
    """The answers furthest from right: the surest wrong option, the lowest score."""
    scored = [item for item in last["items"] if good(suite, item) is not None]
    wrong = [item for item in scored if good(suite, item) == 0 or suite == "empathy"]
    if suite == "empathy":
        wrong.sort(key=lambda item: item["empathy"])
    elif wrong and "probabilities" in wrong[0]:
        wrong.sort(key=lambda item: -max(item["probabilities"]))
    return wrong[:WORST]


def dropped() -> Counter[str] | None:
    """Training rows dropped for an evaluation's sake, by the mix's own list; None without a mix."""
    if not REJECTED.exists():
        return None
    return Counter(
        row["evidence"]["place"].split(": ")[0]
        for row in read_jsonl(REJECTED)
        if row["reason"] == HELD
    )


def contamination(suite: str, hits: Counter[str] | None) -> str:
    """What of `hits` is this suite's, in words."""
    if hits is None:
        return "not known here: the training mix was not built (make mix)"
    told = [f"{hits[name]} for {name}" for name in KEPT_APART[suite]]
    return "rows dropped from the training mix because they hold one of these: " + ", ".join(told)


def build(stages: dict[str, Path], out: Path, accepted: set[str]) -> list[str]:
    """Write the page; returns the suites whose drop is not accepted."""
    suites: dict[str, Facts] = {}
    red: list[str] = []
    hits = dropped()
    for suite in SUITES:
        found = {n: r for n, folder in stages.items() if (r := result(folder, suite)) is not None}
        if not found:
            continue
        names = list(found)
        changes = {}
        for before, after in itertools.pairwise(names):
            try:
                changes[f"{before} → {after}"] = compare(suite, stages[before], stages[after])
            except StepError as error:
                changes[f"{before} → {after}"] = {"verdict": "not comparable", "why": str(error)}
        if any(c["verdict"] == "worse" for c in changes.values()) and suite not in accepted:
            red.append(suite)
        last = found[names[-1]]
        suites[suite] = {
            "chart": bars(suite, found),
            "calibration": calibration(suite, found),
            "found": found,
            "changes": changes,
            "worst": worst(suite, last),
            "last": names[-1],
            "contamination": contamination(suite, hits),
            "links": {n: os.path.relpath(stages[n] / f"{suite}.json", out.parent) for n in found},
        }
    if not suites:
        raise StepError("no stage has a suite result; make eval MODEL=… writes them")
    html = fill(TEMPLATE, stages=stages, suites=suites, red=red, accepted=sorted(accepted))
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return red


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", action="append", required=True, help="LABEL=FOLDER, in order")
    parser.add_argument("--out", type=Path, required=True, help="HTML file")
    parser.add_argument("--accept", default="", help="suites whose drop is accepted, by name")
    args = parser.parse_args()
    accepted = {name for name in args.accept.split(",") if name}
    red = build(dict(map(stage, args.stage)), args.out, accepted)
    print(
        f"{args.out}: "
        + (
            f"worse on {', '.join(red)}"
            if red
            else "no drop beyond its interval" + (", but those accepted" if args.accept else "")
        )
    )


if __name__ == "__main__":
    run_step(main)
