"""Report a run: training log, manifests and evaluations → manifest.json and report.html.

    python scripts/build_report.py --run runs/smollm2-135m/sft-lora-cpu

The page is one file that opens from disk, without network or JavaScript. Every figure on it
is read from the run's own JSON files; the same files give the same page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from rich.console import Console
from rich.table import Table

from medalign.artifacts import (
    StepError,
    manifest_path,
    read_json,
    require_file,
    run_step,
    sha256,
    write_json,
    written_whole,
)
from medalign.charts import bars, curve, percent
from medalign.pages import fill
from medalign.sections import FAULTS, SECTIONS

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SETS = {"test": "test prompts", "frozen": "frozen phrasings"}
RESULTS = ["strict", "sections", "by_category", "by_term_in_training"]
RESULTS += ["finish_reasons", "tokens_per_second"]
Facts = dict[str, Any]


def load(run: Path) -> dict[str, Facts]:
    """All that the run says of itself, by role. StepError if files are missing or at odds."""
    trained = run if (run / "adapter").exists() else run.parent  # another QUANT lies below its run
    training = read_json(trained / "adapter/training.json", "make sft")
    adapter = read_json(trained / "adapter/manifest.json", "make sft")
    merged = read_json(trained / "merged/manifest.json", "make merge")
    ggufs = sorted(run.glob("*.gguf"))
    if len(ggufs) > 1:
        names = ", ".join(path.name for path in ggufs)
        raise StepError(f"{run}: more than one GGUF ({names}); keep the one that was evaluated")
    gguf = ggufs[0] if ggufs else require_file(run / "*.gguf", "make gguf writes it")
    require_file(run / "Modelfile", "make gguf writes it")
    quantized = read_json(manifest_path(gguf), "make gguf")
    base = read_json(run / "eval/base.json", "make eval")
    tuned = read_json(run / "eval/tuned.json", "make eval")
    check_comparable(run, base, tuned)
    if tuned["inputs"]["model"]["sha256"] != sha256(gguf):
        file = run / "eval/tuned.json"
        raise StepError(f"{file} measured another model than {gguf.name}; remove it, make eval")
    return dict(
        training=training, adapter=adapter, merged=merged, gguf=quantized, base=base, tuned=tuned
    )


def check_comparable(run: Path, base: Facts, tuned: Facts) -> None:
    """StepError unless both models were asked the same prompts under the same settings."""
    asked: dict[str, Callable[[Facts], Any]] = {
        "settings": lambda e: e["settings"],
        "template_sha256": lambda e: e["template_sha256"],
        "inputs": lambda e: {r: i["sha256"] for r, i in e["inputs"].items() if r != "model"},
        "prompts": lambda e: [(i["set"], i["id"], i["prompt"]) for i in e["items"]],
    }
    again = f"remove {run}/eval and build/eval, then make eval"
    for what, of in asked.items():
        if of(base) != of(tuned):
            raise StepError(f"{run}/eval: base.json and tuned.json differ in {what}; {again}")
    if missing := SETS.keys() - tuned["scores"].keys():
        raise StepError(f"{run}/eval: not asked: {', '.join(sorted(missing))}; {again}")


def run_manifest(found: dict[str, Facts]) -> Facts:
    """The run's own manifest: its steps and the compact results of base and tuned."""
    adapter = found["adapter"]
    steps = {role: found[role] for role in ("adapter", "merged", "gguf")}
    results: Facts = {}
    for role in ("base", "tuned"):
        facts = {k: v for k, v in found[role].items() if k not in ("items", "scores")}
        steps[f"{role} evaluation"] = facts
        scores = found[role]["scores"]
        results[role] = {s: {k: of[k] for k in RESULTS if k in of} for s, of in scores.items()}
    recipe = adapter["inputs"]["recipe"]
    return {"name": adapter["name"], "recipe": recipe, "steps": steps, "results": results}


def with_headings(answer: str) -> Markup:
    """An answer, escaped, with the headings of the format in bold."""
    heading = rf"\*\*({'|'.join(SECTIONS)})\*\*:"
    return Markup(re.sub(heading, r"<strong>\1</strong>:", str(escape(answer))))


def page(found: dict[str, Facts], manifest: Facts, modelfile: str) -> str:
    """The report as HTML."""
    training, base, tuned = (found[role] for role in ("training", "base", "tuned"))
    heights = {"loss": 3.6, "grad_norm": 1.7, "learning_rate": 1.7}
    charts = {key: curve(training, key, height) for key, height in heights.items()}
    for name in SETS:
        charts[name] = bars(name, *(e["scores"][name]["by_category"] for e in (base, tuned)))
    first: dict[str, tuple[Facts, Facts]] = {}  # of each category: no choice, no cherry-picking
    for pair in zip(base["items"], tuned["items"], strict=True):
        if pair[0]["set"] == "test":
            first.setdefault(pair[0]["category"], pair)
    facts: Facts = {
        "manifest": manifest,
        "modelfile": modelfile,
        "charts": charts,
        "examples": first,
    }
    # A model below a billion parameters (or of unknown size) has learnt form at most.
    facts["small"] = found["adapter"].get("parameters", 0) < 1e9
    facts["manifest_text"] = json.dumps(manifest, indent=2, ensure_ascii=False)
    words = {"sets": SETS, "sections": SECTIONS, "faults": FAULTS}
    helpers = {"percent": percent, "with_headings": with_headings}
    return fill(TEMPLATE, **found, **facts, **words, **helpers)


def build(run: Path) -> Facts:
    """Write `run`/manifest.json and `run`/report.html. Returns the manifest."""
    found = load(run)
    facts = run_manifest(found)
    html = page(found, facts, (run / "Modelfile").read_text(encoding="utf-8"))
    write_json(run / "manifest.json", facts)
    with written_whole(run / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return facts


def show(results: Facts) -> None:
    """Print strict adherence, base beside tuned, with n and 95 % Wilson intervals."""
    table = Table("", "base", "tuned", title="answers that keep the format (95 % Wilson interval)")

    def add(label: str, *rates: Facts) -> None:
        spans = [f"({percent(r, 'low')}-{percent(r, 'high')})" for r in rates]
        cells = [f"{r['k']}/{r['n']}  {percent(r)}" for r in rates]
        table.add_row(label, *map(" ".join, zip(cells, spans, strict=True)))

    for name, label in SETS.items():
        base, tuned = results["base"][name], results["tuned"][name]
        add(label, base["strict"], tuned["strict"])
        for term, rate in base.get("by_term_in_training", {}).items():
            add(f"  {term} terms", rate, tuned["by_term_in_training"][term])
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="only print what was built before")
    args = parser.parse_args()
    report = args.run / "report.html"
    if args.show:
        facts = read_json(
            require_file(report, "make report").with_name("manifest.json"), "make report"
        )
    else:
        facts = build(args.run)
    show(facts["results"])
    print(report)


if __name__ == "__main__":
    run_step(main)
