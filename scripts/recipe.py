"""Recipes: read a YAML recipe, know its model family, and where its results lie.

`recipes/<family>/<name>.yaml` puts its results into `runs/<family>/<name>/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medalign.artifacts import ROOT, StepError

RECIPES = ROOT / "recipes"
MODELS = RECIPES / "models.yaml"
MADE_BY = {  # what a recipe needs, by how its path begins
    "build/data/education": "make data makes it",
    "build/pairs": "make pairs makes it",
    "runs/": "it is an earlier stage's model: make merge RECIPE=… of that stage makes it",
    "build/data": "it is the curated mix: make mix makes it; to train on the education set alone "
    "take the entry out and write warmup_ratio: 0.1",
}
SYSTEM_PROMPT = ROOT / "data/system_prompt.txt"


def system_prompt() -> str:
    """The one system prompt, under which all is trained, evaluated and served."""
    return SYSTEM_PROMPT.read_text(encoding="utf-8").strip()


def cpu_has_bf16() -> bool:
    """True if this CPU multiplies in bf16 (AVX512-BF16 or AMX) rather than emulating it."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def all_recipes() -> list[Path]:
    """Every training recipe, found by walking the folders of the model families."""
    return sorted(p for family in read_yaml(MODELS) for p in (RECIPES / family).rglob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. StepError names the file (and line) of what is wrong."""
    if not path.is_file():
        recipes = (p.relative_to(ROOT).as_posix() for p in sorted(RECIPES.glob("*/**/*.yaml")))
        raise StepError(f"{path}: no such recipe; there are: {', '.join(recipes)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise StepError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise StepError(f"{path}: a recipe is a mapping of keys, not {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Model:
    """A model family of recipes/models.yaml."""

    family: str
    name: str
    base: str
    hub_id: str
    revision: str | None
    license: str
    parameters: int
    ollama_template: str
    stop: list[str]
    num_ctx: int
    rehearsal_base: str

    @property
    def template(self) -> str:
        """The Jinja twin of the Ollama template."""
        return str(Path(self.ollama_template).with_suffix(".jinja"))


def model(family: str) -> Model:
    """The family's entry in recipes/models.yaml. StepError if there is none."""
    models = read_yaml(MODELS)
    if family not in models:
        raise StepError(f"{family!r} is no model family; {MODELS.name} has {', '.join(models)}")
    return Model(family=family, **models[family])


def family_of(recipe: Path) -> str:
    """The model family a recipe belongs to: the folder below recipes/ it lies in."""
    path = recipe.resolve()
    if not path.is_relative_to(RECIPES) or len(path.relative_to(RECIPES).parts) < 2:
        raise StepError(f"{recipe}: a recipe lies in recipes/<family>/")
    return path.relative_to(RECIPES).parts[0]


def local_files(config: dict[str, Any]) -> dict[str, str]:
    """The files and folders of this repository that a recipe needs: role → path.

    A base model with one slash and no such folder is taken for a hub id.
    """
    files = {}
    for i, dataset in enumerate(config.get("datasets") or []):
        files[f"datasets[{i}].path"] = dataset["path"]
    for key in ("chat_template_jinja", "deepspeed"):
        if config.get(key):
            files[key] = config[key]
    base = str(config.get("base_model", ""))
    if base.startswith(("build/", "runs/", "/", ".")):
        files["base_model"] = base
    return files


def check(path: Path, config: dict[str, Any]) -> None:
    """Raise StepError where a recipe names a file that is not there or lacks a needed key."""
    for key in ("base_model", "datasets", "output_dir", "chat_template_jinja"):
        if not config.get(key):
            raise StepError(f"{path}: no {key}")
    for i, dataset in enumerate(config["datasets"]):
        if not isinstance(dataset, dict) or not dataset.get("path"):
            raise StepError(f"{path}: datasets[{i}] has no path")
    for key, name in local_files(config).items():
        if not (ROOT / name).exists():
            made_by = next((by for start, by in MADE_BY.items() if name.startswith(start)), None)
            hint = made_by or "make base or an earlier stage makes it"
            raise StepError(f"{path}: {key} names {name}, which does not exist; {hint}")
