"""Put the results of finished runs into docs/results and the tables of README.

    python scripts/publish_results.py runs/smollm2-135m/sft-lora-cpu runs/…-seed1 runs/…-seed2

Runs of one recipe under several seeds are pooled: hits and prompts are added up. Numbers in
README are written by this script from docs/results, never typed; `--check` compares them.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from medalign.artifacts import ROOT, StepError, require_file, run_step, write_json, written_whole
from medalign.dpo_report import FORM, SAFETY
from medalign.evaluate import BENCHMARKS
from medalign.evaluate_format import rate
from medalign.measures import headline
from medalign.suite_report import HEADLINES, result, stage

RESULTS = ROOT / "docs/results"
README = ROOT / "README.md"
ALIGNED = RESULTS / "smollm2-135m-alignment.json"
MARKS = ("<!-- results:begin (make results writes this) -->", "<!-- results:end -->")
ALIGNED_MARKS = ("<!-- alignment:begin (make results writes this) -->", "<!-- alignment:end -->")
SUITES = RESULTS / "smollm2-135m-suites.json"
SUITE_MARKS = ("<!-- suites:begin (make results writes this) -->", "<!-- suites:end -->")
BESIDE = {  # what stands beside a suite's headline
    **{suite: ("balanced_accuracy",) for suite in BENCHMARKS},  # one letter always is at chance
    "refusal": ("harmful_refused", "xstest_safe_refused", "benign_medical_refused"),
    "medication_safety": ("f1", "share_unsafe"),
    "education_format": ("frozen_strict", "fact_recall"),
}
ROWS = {  # how a row of the table is found in a run's results
    "50 test prompts, new terms": ("test", "strict", None),
    "70 frozen phrasings, all": ("frozen", "strict", None),
    "… terms not in training": ("frozen", "by_term_in_training", "unseen"),
    "… terms in training": ("frozen", "by_term_in_training", "seen"),
}


def one(run: dict[str, Any], model: str, key: tuple[str, str, str | None]) -> dict[str, Any]:
    """One rate of a run's manifest."""
    scores = run["results"][model][key[0]][key[1]]
    return scores if key[2] is None else scores[key[2]]


def pool(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the hits of several runs, which must differ in nothing but the seed."""
    recipes = {run["steps"]["adapter"]["inputs"]["recipe"]["sha256"] for run in runs}
    data = {run["steps"]["adapter"]["inputs"]["datasets[0].path"]["sha256"] for run in runs}

    def found(fact: str, step: str) -> list[Any]:
        return [run["steps"][step][fact] for run in runs]

    seeds = found("seed", "adapter")
    overrides = [{k: v for k, v in a.items() if k != "seed"} for a in found("overrides", "adapter")]
    quants = found("quantization", "gguf")
    alike = all(x == of[0] for of in (overrides, quants) for x in of)
    if len(recipes) > 1 or len(data) > 1 or len(set(seeds)) < len(seeds) or not alike:
        raise StepError(f"seeds {seeds}: runs to pool have one recipe, one data set, other seeds")
    table = {}
    for label, key in ROWS.items():
        tuned = [one(run, "tuned", key) for run in runs]
        table[label] = {
            "base": one(runs[0], "base", key),
            "first seed": tuned[0],
            "pooled": rate(sum(t["k"] for t in tuned), sum(t["n"] for t in tuned)),
        }
    first = runs[0]["steps"]
    return {
        "recipe": first["adapter"]["inputs"]["recipe"]["path"],
        "seeds": seeds,
        "final_loss": [run["steps"]["adapter"]["final_loss"] for run in runs],
        "train_minutes": [round(r["steps"]["adapter"]["train_seconds"] / 60, 1) for r in runs],
        "hardware": first["adapter"]["hardware"],
        "dtype": first["adapter"]["dtype"],
        "made": [run["steps"]["tuned evaluation"]["made"] for run in runs],
        "table": table,
    }


def cell(r: dict[str, Any]) -> str:
    """A rate as it stands in the table."""
    return f"{r['rate']:.1%} ({r['k']}/{r['n']}; {r['low']:.1%}–{r['high']:.1%})"


def markdown(result: dict[str, Any]) -> str:
    """The table of README."""
    seeds = ", ".join(map(str, result["seeds"]))
    columns = {"base": "base", "first seed": f"tuned, seed {result['seeds'][0]}"}
    if len(result["seeds"]) > 1:
        columns["pooled"] = f"tuned, seeds {seeds}"
    lines = [
        f"| strict adherence | {' | '.join(columns.values())} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label, row in result["table"].items():
        lines.append(f"| {label} | {' | '.join(cell(row[k]) for k in columns)} |")
    hardware = result["hardware"]
    lines += [
        "",
        f"`{result['recipe']}`, {result['dtype']}, {hardware['cores']} cores of {hardware['cpu']}, "
        f"training {result['train_minutes'][0]} min, measured {result['made'][0][:10]}. "
        "In brackets hits, prompts and the 95 % Wilson interval"
        + ("." if len(columns) < 3 else "; pooled, the prompts count once a seed: too narrow."),
    ]
    return "\n".join(lines)


def aligned(run: Path) -> dict[str, Any]:
    """What is published of an aligned run: its stages' rates, rewards, losses."""
    manifest = json.loads(require_file(run / "manifest.json", "make dpo writes it").read_text())
    kept = {k: manifest[k] for k in ("name", "results", "training")}
    adapter = json.loads((run / "adapter/manifest.json").read_text())
    return {
        **kept,
        "hardware": adapter["hardware"],
        "dtype": adapter["dtype"],
        "made": adapter["made"],
    }


def aligned_markdown(result: dict[str, Any]) -> str:
    """The table of README on refusals, a column a stage."""
    stages = {stage: rates for stage, rates in result["results"].items() if rates}
    lines = [f"| | {' | '.join(stages)} |", "|---" * (len(stages) + 1) + "|"]
    for name, label in (SAFETY | FORM).items():
        if any(name in rates for rates in stages.values()):
            cells = (cell(rates[name]) if name in rates else "–" for rates in stages.values())
            lines.append(f"| {label} | {' | '.join(cells)} |")
    measured = f"{result['name']}, Q4_K_M, greedy, measured {result['made'][:10]}."
    lines += ["", f"{measured} In brackets hits, prompts and the 95 % Wilson interval."]
    return "\n".join(lines)


def suites(stages: dict[str, Path]) -> dict[str, Any]:
    """The figures published of suite results: suite → figure → stage. Whole suites only."""
    table: dict[str, dict[str, Any]] = {}
    models = {}
    for label, folder in stages.items():
        for suite, (key, _, _) in HEADLINES.items():
            if (found := result(folder, suite)) is None:
                continue
            if found["limit"] is not None:
                raise StepError(
                    f"{folder}/{suite}.json: only the first {found['limit']} were asked"
                )
            models[label] = {**found["model"], "made": found["made"]}
            for name in (key, *BESIDE.get(suite, ())):
                if name in found["scores"]:
                    row = table.setdefault(suite, {}).setdefault(name, {"protocol": {}, "of": {}})
                    row["of"][label] = found["scores"][name]
                    row["protocol"][label] = found["protocol"]["asked"]
    return {"stages": models, "table": table}


def figure_cell(figure: dict[str, Any]) -> str:
    """A figure as it stands in the table: rates in per cent, the others as they are."""
    if headline(figure) is None:
        return "–"
    if "rate" in figure:
        return cell(figure)
    return f"{figure['value']:.3f} (n {figure['n']}; {figure['low']:.3f}–{figure['high']:.3f})"


def suites_markdown(published: dict[str, Any]) -> str:
    """The table of README on the suites, a column a stage."""
    stages = list(published["stages"])
    lines = [f"| suite | figure | {' | '.join(stages)} |", "|---" * (len(stages) + 2) + "|"]
    for suite, rows in published["table"].items():
        for name, row in rows.items():
            cells = (figure_cell(row["of"][s]) if s in row["of"] else "–" for s in stages)
            told = name.replace("_", " ")
            lines.append(f"| [{suite}](evals/{suite}) | {told} | {' | '.join(cells)} |")
    of = "; ".join(f"{s}: `{m['model']}`" for s, m in published["stages"].items())
    lines += ["", f"{of}. In brackets hits and n, or n, and the 95 % interval."]
    return "\n".join(lines)


def with_table(readme: str, table: str, marks: tuple[str, str] = MARKS) -> str:
    """README's text with the part between the marks replaced."""
    begin, end = marks
    if begin not in readme or end not in readme:
        raise StepError(f"{README}: the marks {begin} and {end} are not there")
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n{table}\n{end}",
        readme,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--aligned", type=Path, help="the run of make dpo")
    parser.add_argument(
        "--stage", action="append", default=[], help="LABEL=FOLDER of suite results"
    )
    parser.add_argument("--check", action="store_true", help="is README as docs/results says?")
    args = parser.parse_args()
    out = RESULTS / "smollm2-135m-sft-lora-cpu.json"
    if args.runs:
        hint = "make report writes it"
        found = [json.loads(require_file(r / "manifest.json", hint).read_text()) for r in args.runs]
        pooled = pool(found)
        if Path(pooled["recipe"]) != Path("recipes/smollm2-135m/sft-lora-cpu.yaml"):
            raise StepError(f"README's table is of the demo's recipe, not of {pooled['recipe']}")
        write_json(out, pooled)
    if args.aligned:
        write_json(ALIGNED, aligned(args.aligned))
    if args.stage:
        write_json(SUITES, suites(dict(map(stage, args.stage))))
    text = README.read_text(encoding="utf-8")
    wanted = with_table(text, markdown(json.loads(out.read_text())))
    wanted = with_table(wanted, aligned_markdown(json.loads(ALIGNED.read_text())), ALIGNED_MARKS)
    if SUITES.exists():
        wanted = with_table(wanted, suites_markdown(json.loads(SUITES.read_text())), SUITE_MARKS)
    if args.check and text != wanted:
        raise StepError(f"{README}: its table is not what {out} says; run make results")
    if not args.check:
        with written_whole(README) as temporary:
            temporary.write_text(wanted, encoding="utf-8")
    print(markdown(json.loads(out.read_text())))
    print(aligned_markdown(json.loads(ALIGNED.read_text())))


if __name__ == "__main__":
    run_step(main)
