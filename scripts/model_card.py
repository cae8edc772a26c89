"""Cards of a release, written from manifests and results: metadata and page. No figure is typed."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from huggingface_hub.repocard_data import CardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medalign.artifacts import ROOT, StepError, read_jsonl, require_file, sha256
from medalign.recipe import system_prompt
from medalign.release_files import published, rules
from medalign.released_run import BASELINE, Facts, Run, Source, Stage
from medalign.sources import HELD

SMALL = 1_000_000_000  # parameters, below which a model learns the form only
RELATION = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}
LIBRARY = {"merged": "transformers", "adapter": "peft", "gguf": "llama.cpp"}
ABOUT = {
    "merged": "A medical teacher that answers in a predictable form: the whole model, safetensors.",
    "adapter": "The LoRA adapter of a medical teacher that answers in a predictable form.",
    "gguf": "A medical teacher that answers in a predictable form, for llama.cpp and Ollama.",
}


def at(content: Any, keys: list[str]) -> Any:
    """What lies under the keys, or None."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def cell(figure: Facts | None) -> str:
    """A figure as it stands in a table: a rate with its hits, another with its n."""
    value = (figure or {}).get("rate", (figure or {}).get("value"))
    if figure is None or value is None:
        return "not measured"
    if "rate" in figure:
        of, limits = f"{figure['k']}/{figure['n']}", f"{figure['low']:.1%}–{figure['high']:.1%}"
        return f"{value:.1%} ({of}; {limits})"
    return f"{value:.3f} (n {figure['n']}; {figure['low']:.3f}–{figure['high']:.3f})"


def figures(run: Run) -> list[Facts]:
    """The figures of release.yaml with what the run's results say: label, cell, figure."""
    rows = []
    for said in rules()["figures"]:
        figure = at(run.results.get(said["file"]), ["scores", *said["at"]])
        baseline = None
        if said["file"] == "tuned.json":
            baseline = at(run.results.get(BASELINE), ["scores", *said["at"]])
        told = {"cell": cell(figure), "baseline": cell(baseline), "asked": "–"}
        if figure is not None:
            told["asked"] = asked(run.results[said["file"]])
        rows.append({**said, **told, "figure": figure})
    return rows


def asked(result: Facts) -> str:
    """How a result was got: by generation or likelihood, with or without the system prompt."""
    if protocol := result.get("protocol"):
        prompt = "system prompt" if protocol.get("system_prompt") else "no system prompt"
        return f"{protocol['asked']}, {prompt}"
    settings = result["settings"]
    way = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']}"
    prompt = "system prompt" if settings["system_prompt"] else "no system prompt"
    return f"generated, {way}, up to {settings['max_tokens']} tokens, {prompt}"


def evaluations(run: Run, namespace: str, measured_on: str) -> list[EvalResult]:
    """The figures as metadata (model-index)."""
    found = []
    for row in figures(run):
        if row["cell"] == "not measured":
            continue
        own = row["type"] == rules()["repos"]["dataset"]
        key = "rate" if "rate" in row["figure"] else "value"
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=f"{namespace}/{row['type']}" if own else row["type"],
                dataset_name=row["label"],
                dataset_split=row["split"],
                metric_type=row["metric"],
                metric_name=f"{row['label']} ({measured_on})",
                metric_value=row["figure"][key],
                metric_args={k: row["figure"][k] for k in ("n", "low", "high")},
            )
        )
    return found


def contamination(run: Run) -> list[str]:
    """What the manifests of the training data say of rows that evaluations ask, by stage."""
    notes = []
    for stage in run.stages:
        for made in stage.made:
            said = "not recorded for the data as this stage was trained on them."
            kind = (made or {}).get("kind")
            if made and kind == "training mix":
                read = sum(f["read"] for f in made["funnel"].values())
                held = sum(f["dropped"].get(HELD, 0) for f in made["funnel"].values())
                said = f"{held} of {read} rows read were dropped: they hold an evaluation's row."
            elif made and kind == "preference pairs" and "asked_by_evaluations" in made:
                dropped = len(made["asked_by_evaluations"])
                said = f"{dropped} pairs were dropped: an evaluation asks the same"
                missed = made.get("not_compared_with") or []
                said += f"; not compared with {', '.join(missed)}." if missed else "."
            elif made and kind == "education data":
                said = "rows were checked for leakage between training, test and phrasings."
            notes.append(f"{stage.folder.name}: {said}")
    seen, unseen = (
        at(run.results.get("tuned.json"), ["scores", "frozen", "by_term_in_training", k])
        for k in ("seen", "unseen")
    )
    if seen and unseen:
        notes.append(
            f"Frozen phrasings of terms in training: {cell(seen)}; others: {cell(unseen)}."
        )
    return notes


def training(stage: Stage) -> Facts:
    """A stage's row of the training table."""
    facts, recipe = stage.adapter, stage.recipe
    machine = facts["hardware"]
    cards = [f"{n} × {name}" for name, n in Counter(map(str, machine["gpus"])).items()]
    return {
        "stage": stage.folder.name,
        "recipe": Path(facts["inputs"]["recipe"]["path"]).name,
        "steps": facts["steps"],
        "epochs": facts["epochs"],
        "tokens": int(facts["tokens"]),
        "minutes": round(facts["train_seconds"] / 60, 1),
        "loss": f"{facts['final_loss']:.3f}",
        "adapter": f"{recipe['adapter']}, rank {recipe['lora_r']}, alpha {recipe['lora_alpha']}",
        "dtype": facts["dtype"],
        "seed": facts["seed"],
        "hardware": ", ".join(cards) or f"{machine['cores']} cores of {machine['cpu']}",
    }


def base_weights(run: Run) -> str | None:
    """How the base's folder differs from the hub's, where its manifest says so."""
    base = run.stages[0].adapter["base"]["id"]
    beside = ROOT / base / "manifest.json"
    expected = at(run.stages[0].adapter, ["inputs", "base_model", "sha256"])
    if expected is None or not beside.exists() or sha256(beside.parent) != expected:
        return None
    return json.loads(beside.read_text()).get("weights")


def datasets(run: Run, namespace: str) -> list[str]:
    """Hub ids of the training data: ours where it was used, the sources that have one."""
    found = {source.hub for stage in run.stages for source in stage.sources if source.hub}
    if any("data/education" in s.name for stage in run.stages for s in stage.sources):
        found.add(f"{namespace}/{rules()['repos']['dataset']}")
    return sorted(found)


@cache
def templates() -> Environment:
    """The templates beside this file; a fact that one lacks is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )


def card(metadata: CardData, template: str, **facts: Any) -> str:
    """A card's text: metadata, then the page."""
    body = templates().get_template(template).render(**facts)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def model_card(
    kind: str, repo: str, run: Run, base_id: str, restricted: list[Source], params: str = ""
) -> str:
    """The card of a model repository. base_id: what it was made from, on the hub."""
    namespace = repo.partition("/")[0]
    files = ", ".join(path.name for path in run.gguf) or "the model"
    measured_on = files if kind == "gguf" or not run.gguf else f"{files}, made from these weights"
    rows = figures(run)
    data = ModelCardData(
        license="other" if restricted else run.family.license,
        license_name="research-only" if restricted else None,
        license_link="LICENSE" if restricted else None,
        language="en",
        library_name=LIBRARY[kind],
        pipeline_tag="text-generation",
        base_model=base_id,
        base_model_relation=RELATION[kind],
        datasets=datasets(run, namespace) or None,
        tags=["medical", "education", "medalign", *(["gguf", "ollama"] if kind == "gguf" else [])],
        model_name=repo.partition("/")[2],
        eval_results=evaluations(run, namespace, measured_on) or None,
    )
    losses = {path.name: facts for path, facts in run.gguf.items()} if kind == "gguf" else {}
    return card(
        data,
        "model_card.md.jinja",
        kind=kind,
        repo=repo,
        gguf_repo=f"{namespace}/{rules()['repos']['gguf'].format(name=run.family.name)}",
        about=ABOUT[kind],
        base_id=base_id,
        restricted=restricted,
        params=params,
        system_prompt=system_prompt(),
        measured_on=measured_on,
        has_baseline=BASELINE in run.results,
        form=[row for row in rows if not row.get("safety") and row["cell"] != "not measured"],
        safety=[row for row in rows if row.get("safety")],
        quantization=[
            {"name": name, "bytes": facts["bytes"][facts["quantization"]], **loss(facts)}
            for name, facts in losses.items()
        ],
        family=run.family,
        base_weights=base_weights(run),
        small=run.family.parameters < SMALL,
        training=[training(stage) for stage in run.stages],
        data=[{**vars(s), "stage": st.folder.name} for st in run.stages for s in st.sources],
        contamination=contamination(run),
        provenance=[
            {"name": "merged folder", "sha256": run.merged_sha256},
            *({"name": p.name, "sha256": facts["sha256"]} for p, facts in run.gguf.items()),
        ],
    )


def loss(facts: Facts) -> Facts:
    """What a GGUF's manifest says of its loss."""
    if not (said := facts.get("quantization_loss")):
        return {"tokens": "–", "kl": "not measured", "top1": "not measured"}
    return {"tokens": said["tokens"], "kl": f"{said['kl_mean']:.3f}", "top1": f"{said['top1']:.1%}"}


def dataset_card(repo: str, folder: Path, facts: Facts) -> str:
    """The card of the education set. facts: the manifest of the rows made from it.

    StepError if data/README.md has no section on it.
    """
    readme = require_file(folder.parent / "README.md", "git checkout brings it back").read_text()
    section = re.search(r"^## Education set.*?(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    caution = re.search(r"\*\*No clinician has reviewed.*?(?=\n\n)", readme, re.DOTALL)
    if section is None or caution is None:
        raise StepError(f"{folder.parent}/README.md: no section “Education set” or no caution")
    if facts["license"] not in rules()["licenses"]["open"]:
        raise StepError(f"{folder}: {facts['license']!r} is no licence that allows a release")
    paths = published(folder, "dataset")
    rows = {path.name: read_jsonl(path) for path in paths}
    by = {name: Counter(r["category"] for r in rows[f"{name}.jsonl"]) for name in ("train", "test")}
    other = [{"split": "train", "path": "wordings.jsonl"}]
    splits = [{"split": name, "path": f"{name}.jsonl"} for name in by]
    n = len(rows["train.jsonl"]) + len(rows["test.jsonl"])
    data = DatasetCardData(
        language="en",
        license=facts["license"],
        pretty_name="MedAlign education set",
        size_categories="n<1K" if n < 1000 else "1K<n<10K",
        task_categories=["text-generation", "question-answering"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality="monolingual",
        source_datasets=["original"],
        tags=["medical", "education", "medalign"],
        configs=[
            {"config_name": "default", "default": True, "data_files": splits},
            {"config_name": "wordings", "data_files": other},
        ],
    )
    return card(
        data,
        "dataset_card.md.jinja",
        repo=repo,
        files=[{"name": p.name, "rows": len(rows[p.name]), "sha256": sha256(p)} for p in paths],
        categories=[
            {"name": category, **{name: counts[category] for name, counts in by.items()}}
            for category in sorted(by["train"] | by["test"])
        ],
        caution=" ".join(caution[0].split()),
        section=section[0].rstrip(),
    )
