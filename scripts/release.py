"""The repositories of a release, staged: what each holds, under which name and message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medalign.artifacts import ROOT, StepError, manifest_path, read_json, require_file
from medalign.model_card import dataset_card, model_card
from medalign.recipe import Model
from medalign.release_files import Item, generated, published, rules, staged
from medalign.released_run import Run, Source, check_terms, load, same
from medalign.write_modelfile import PARAMETERS, Instruction, check, parse, render

KINDS = ("dataset", "merged", "adapter", "gguf")  # as they are published: what others name first
EDUCATION = ROOT / "data/education"
LICENSE = ROOT / "LICENSE"
TITLES = {"apache-2.0": "Apache License"}  # how the text of a licence begins


@dataclass(frozen=True)
class Repository:
    """A repository as it will be: hub id, model or dataset, licence, commit message, files."""

    kind: str
    id: str
    type: str
    license: str
    message: str
    items: list[Item]


def license_file(stage: Path, license: str) -> Item:
    """The text of the licence. StepError if the repository has no such text."""
    text = require_file(LICENSE, "a release needs the licence's text").read_text(encoding="utf-8")
    if license not in TITLES or TITLES[license] not in text[:200]:
        raise StepError(f"{LICENSE} is not the text of {license}")
    return generated(stage, "LICENSE", text)


def ollama_files(run: Run) -> dict[str, str]:
    """`template`, `system` and `params`, as Ollama reads them from a GGUF repository.

    They are the Modelfile's parts (https://huggingface.co/docs/hub/ollama). StepError if the run's
    own Modelfile says anything else.
    """
    gguf = next(iter(run.gguf))
    text = render(run.family, f"./{gguf.name}")
    said = said_in(parse(text))
    if (own := run.folder / "Modelfile").exists() and said_in(check(own)) != said:
        raise StepError(f"{own} is not what the recipe's family says; make gguf writes it anew")
    pairs = [line.partition(" ") for line in said.pop("params").splitlines()]
    params = {key: PARAMETERS[key](value) for key, _, value in pairs if key != "stop"}
    params["stop"] = [json.loads(value) for key, _, value in pairs if key == "stop"]
    return {**said, "params": json.dumps(params, indent=2, ensure_ascii=False) + "\n"}


def said_in(instructions: list[Instruction]) -> dict[str, str]:
    """What a Modelfile says to every message, by the name of the file on the hub."""
    parts = {i.keyword.lower(): i.argument for i in instructions}
    parameters = sorted(i.argument for i in instructions if i.keyword == "PARAMETER")
    return {**{k: parts[k] for k in ("template", "system")}, "params": "\n".join(parameters)}


def model_repository(
    kind: str, id: str, run: Run, base_id: str, restricted: list[Source], stage: Path
) -> Repository:
    """A model repository: merged, adapter or gguf. base_id: what it was made from, on the hub."""
    stage = stage / id
    params = ""
    if kind == "gguf":
        if not run.gguf:
            raise StepError(f"{run.folder} has no GGUF; make gguf makes it")
        parts = ollama_files(run)
        params = ", ".join(f"{k} {json.dumps(v)}" for k, v in json.loads(parts["params"]).items())
        items = [generated(stage, name, text) for name, text in parts.items()]
        for path in run.gguf:
            items.append(staged(path, stage, base_id))
            items.append(staged(manifest_path(path), stage, base_id))
    else:
        folder = run.folder / kind
        items = [
            staged(path, stage, base_id, path.relative_to(folder).as_posix())
            for path in published(folder, kind)
        ]
    text = model_card(kind, id, run, base_id, restricted, params)
    items += [generated(stage, "README.md", text), license_file(stage, run.family.license)]
    message = f"{run.family.name} of {run.folder.name}, weights {run.merged_sha256[:12]}"
    license = "other (research-only)" if restricted else run.family.license
    return Repository(kind, id, "model", license, message, sorted(items, key=lambda i: i.name))


def dataset_repository(id: str, stage: Path) -> Repository:
    """The repository of the education set. StepError if its files are not what make data read."""
    stage = stage / id
    beside = ROOT / "build/data/education/manifest.json"
    made = read_json(beside, "make data")
    for path in published(EDUCATION, "dataset"):
        same(path, made["inputs"][path.stem]["sha256"], beside, "make data")
    items = [staged(path, stage, id) for path in published(EDUCATION, "dataset")]
    items.append(staged(beside, stage, id))
    items.append(generated(stage, "README.md", dataset_card(id, EDUCATION, made)))
    items = sorted([*items, license_file(stage, made["license"])], key=lambda i: i.name)
    message = f"Education set, {made['rows']['train']} training rows of {made['examples']['train']}"
    return Repository("dataset", id, "dataset", made["license"], message, items)


def names(namespace: str, family: Model, run: str) -> dict[str, str]:
    """The hub id of each repository."""
    said = rules()["repos"]
    return {k: f"{namespace}/{v.format(name=family.name, run=run)}" for k, v in said.items()}


def repositories(
    folder: Path, namespace: str, kinds: tuple[str, ...], stage: Path, accept_research: bool
) -> list[Repository]:
    """The repositories of a release, staged below `stage`. StepError for what must not be.

    The adapter of a later stage brings a repository with the model that it was trained on.
    """
    found = []
    if "dataset" in kinds:
        found.append(dataset_repository(f"{namespace}/{rules()['repos']['dataset']}", stage))
    if not {"merged", "adapter", "gguf"} & set(kinds):
        return found
    run = load(folder)
    restricted = check_terms([s for st in run.stages for s in st.sources], accept_research)
    ids = names(namespace, run.family, run.folder.name)
    bases = {"merged": run.family.hub_id, "adapter": run.family.hub_id, "gguf": ids["merged"]}
    if "adapter" in kinds and len(run.stages) > 1:
        expected = run.last.adapter["inputs"]["base_model"]["sha256"]
        before = load(run.stages[-2].folder, expected)
        bases["adapter"] = names(namespace, run.family, before.folder.name)["base"]
        base = run.family.hub_id
        found.append(model_repository("merged", bases["adapter"], before, base, restricted, stage))
    for kind in KINDS[1:]:
        if kind in kinds:
            found.append(model_repository(kind, ids[kind], run, bases[kind], restricted, stage))
    return found
