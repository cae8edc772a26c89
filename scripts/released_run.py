"""A finished run as it is released: its manifests checked against its files, data and results.

Each link is proved by hash: results name the GGUF, the GGUF's manifest the merged folder, that
one's the adapter, the adapter's the model it was trained on, down to the family's base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign.artifacts import ROOT, StepError, manifest_path, read_json, require_file, sha256
from medalign.recipe import Model, model, read_yaml
from medalign.release_files import rules
from medalign.sources import trained

Facts = dict[str, Any]
BASELINE = "base.json"  # of eval/: the untuned model, to compare with


@dataclass(frozen=True)
class Source:
    """A data set a stage was trained on: its licence and terms, its hub id if it has one."""

    name: str
    license: str
    terms: str = "open"
    hub: str | None = None


@dataclass(frozen=True)
class Stage:
    """A training stage: its folder, the adapter's manifest and recipe, its data.

    made: the manifest of the data, None if the data were made anew since.
    """

    folder: Path
    adapter: Facts
    recipe: Facts
    sources: list[Source]
    made: list[Facts | None]


@dataclass(frozen=True)
class Run:
    """A finished run. stages: first to last. results: by file name. gguf: the file → manifest."""

    folder: Path
    family: Model
    stages: list[Stage]
    merged_sha256: str
    gguf: dict[Path, Facts]
    results: dict[str, Facts]

    @property
    def last(self) -> Stage:
        return self.stages[-1]


def same(path: Path, expected: str, named_by: Path, again: str) -> None:
    """StepError unless the file or folder has the SHA-256 that a manifest names."""
    if (found := sha256(require_file(path, f"{again} makes it"))) != expected:
        raise StepError(
            f"{path} is not what {named_by} names: {found[:12]}, not {expected[:12]}; {again} again"
        )


def sources(adapter: Facts) -> tuple[list[Source], list[Facts | None]]:
    """The data sets behind an adapter's training rows, and the manifests of those rows.

    StepError where a licence is not known.
    """
    parts = read_yaml(ROOT / "data/sources.yaml")
    declared = {**parts["sources"], **parts["refusals"]}
    found: list[Source] = []
    manifests: list[Facts | None] = []
    for role, facts in adapter["inputs"].items():
        if not role.startswith("datasets"):
            continue
        path = Path(facts["path"])
        beside = ROOT / path.parent / "manifest.json"
        made = read_json(beside, "make data") if beside.exists() else {}
        if made.get("outputs", {}).get(path.name) != facts["sha256"]:
            made = {}
        manifests.append(made or None)
        said_then = adapter["data"]  # where the rows were made anew since
        recorded = said_then.get(path.as_posix()) or said_then.get(path.name) or {}
        named = trained(made or recorded)
        if path.stem == "silver":
            named = {name: {} for name in made.get("silver", {})}
        for name, told in named.items():
            said = {**declared.get(name, {}), **told}
            license = said.get("license", "unknown")
            found.append(Source(name, license, said.get("terms", "unclear"), said.get("hub")))
        if not named or (made.get("kind") == "preference pairs" and path.stem != "silver"):
            # "apache-2.0, silver.jsonl as its sources say": the first is that of what is our own
            license = (recorded.get("license") or "").split(",")[0].strip()
            license = license if path.stem != "silver" else ""
            found.append(Source(path.as_posix(), license or "unknown"))
    return found, manifests


def check_terms(found: list[Source], accept_research: bool) -> list[Source]:
    """The restricted ones among the data. StepError for what must not be released."""
    said, restricted = rules(), []
    for source in found:
        held = source.license in said["licenses"]["restricted"]
        if not held and source.license not in said["licenses"]["open"]:
            raise StepError(
                f"{source.name}: its licence is {source.license}, none that is known to allow a "
                "release; make its data anew, or train without it"
            )
        if held or source.terms in said["terms"]["restricted"]:
            restricted.append(source)
        elif source.terms not in said["terms"]["open"]:
            raise StepError(f"{source.name}: its terms are {source.terms}; train without it")
    if restricted and not accept_research:
        listed = ", ".join(f"{s.name} ({s.license}, {s.terms})" for s in restricted)
        raise StepError(f"trained on data that restrict their use: {listed}; --accept-research")
    return restricted


def stages(folder: Path, family: Model, checked: bool = True) -> list[Stage]:
    """The stages that led to a run, the first one first.

    checked: prove that each one's model is what the next was trained on.
    """
    adapter = read_json(folder / "adapter/manifest.json", "make sft")
    base = str(adapter["base"]["id"])
    found, made = sources(adapter)
    recipe = read_yaml(require_file(folder / "adapter/recipe.yaml", "make sft writes it"))
    stage = Stage(folder, adapter, recipe, found, made)
    if base in (family.base, family.hub_id):
        return [stage]
    if not base.startswith("runs/"):
        raise StepError(f"{folder} was trained on {base}, which is not {family.name}'s base")
    if checked:
        expected = adapter["inputs"]["base_model"]["sha256"]
        same(ROOT / base, expected, folder / "adapter/manifest.json", "train this stage")
    return [*stages((ROOT / base).parent, family, checked), stage]


def hashes(content: Any) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of everything that a result names, at any depth."""
    if isinstance(content, dict):
        name = content.get("path", content.get("model"))
        if isinstance(name, str) and isinstance(content.get("sha256"), str):
            yield name, content["sha256"]
        for value in content.values():
            yield from hashes(value)
    elif isinstance(content, list):
        for value in content:
            yield from hashes(value)


def results(folder: Path, of: set[str]) -> dict[str, Facts]:
    """The whole results of a run by file name. StepError for one of another model.

    of: the SHA-256 of the models that are released.
    """
    found = {}
    for path in sorted([*folder.glob("eval/*.json"), *folder.glob("eval/suites/*/*.json")]):
        facts = read_json(path, "make eval")
        asked = facts.get("inputs", {}).get("model") or facts.get("model") or {}
        if path.name != BASELINE and asked.get("sha256") not in of:
            raise StepError(f"{path} is of another model than this run's; evaluate it again")
        if facts.get("limit") is None:  # a part of a suite is no result
            found[path.name] = facts
    for path in sorted((ROOT / "docs/results").glob("*.json")):
        for name, digest in hashes(json.loads(path.read_text(encoding="utf-8"))):
            if (ROOT / name).resolve().is_relative_to(folder.resolve()) and digest not in of:
                raise StepError(f"{path}: {name} was another model then; make results")
    return found


def load(folder: Path, merged_sha256: str | None = None) -> Run:
    """A run whose files, manifests and results belong together. StepError where they do not.

    merged_sha256: what a later stage says of this one's merged folder, where there is no GGUF.
    """
    merged = read_json(folder / "merged/manifest.json", "make merge")
    adapter = read_json(folder / "adapter/manifest.json", "make sft")
    recipe = Path(adapter["inputs"]["recipe"]["path"])
    family = model(recipe.parts[1] if recipe.parts[0] == "recipes" else recipe.as_posix())
    if family.license not in rules()["licenses"]["open"]:
        raise StepError(f"{family.name}: {family.license!r} is no licence that allows a release")
    if {adapter["name"], merged["name"]} != {family.name}:
        raise StepError(f"{folder}: its manifests say {adapter['name']}, {merged['name']}")
    expected = merged["inputs"]["adapter"]["sha256"]
    same(folder / "adapter", expected, folder / "merged/manifest.json", "make merge")
    gguf, proof = {}, folder / "merged/manifest.json"
    for path in sorted(folder.glob("*.gguf")):
        proof = manifest_path(path)
        gguf[path] = read_json(proof, "make gguf")
        same(path, gguf[path]["sha256"], proof, "make gguf")
        made_of = gguf[path]["inputs"]["model"]["sha256"]
        if made_of != (merged_sha256 := merged_sha256 or made_of):
            raise StepError(f"{path} was not made of this merged folder; make gguf again")
    if merged_sha256 is None:
        raise StepError(f"{folder} has no GGUF, whose manifest proves the merged one; make gguf")
    same(folder / "merged", merged_sha256, proof, "make gguf")
    of = {merged_sha256, *(facts["sha256"] for facts in gguf.values())}
    chain = stages(folder, family)
    return Run(folder, family, chain, merged_sha256, gguf, results(folder, of))
