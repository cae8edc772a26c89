"""What deploy/vertex.yaml declares, and what a run's manifests say of the model to deploy."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medalign.artifacts import ROOT, StepError, read_json
from medalign.recipe import family_of, model

SETTINGS = ROOT / "deploy/vertex.yaml"
PROJECT = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
REGION = re.compile(r"[a-z]+-[a-z]+[0-9]{1,2}")
STORAGE = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9._=+-]+)*/?")
LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


class Strict(BaseModel):
    """A table that takes the keys it knows only."""

    model_config = ConfigDict(extra="forbid")


class Container(Strict):
    """The container that serves. Times in seconds."""

    image: str
    args: list[str]
    env: dict[str, str]
    port: int = Field(ge=1, le=65535)
    predict_route: str = Field(pattern="^/")
    health_route: str = Field(pattern="^/")
    deployment_timeout: int = Field(gt=0, le=7200)
    shared_memory_size_mb: int | None

    @model_validator(mode="after")
    def plain_environment(self) -> Container:
        """Refuse secrets, which the registry shows to all readers, and Vertex AI's own names."""
        for name in self.env:
            if SECRET.search(name.upper()) or name.startswith("AIP_"):
                raise ValueError(f"env: {name} is a secret's name, or one that Vertex AI sets")
        return self


class Machine(Strict):
    """Where replicas run, as Endpoint.deploy takes it: the keys are its arguments."""

    machine_type: str
    accelerator_type: str | None = None
    accelerator_count: int | None = Field(None, ge=1)
    min_replica_count: int = Field(ge=1)
    max_replica_count: int = Field(ge=1)
    autoscaling_target_cpu_utilization: int | None = Field(None, ge=1, le=100)
    autoscaling_target_accelerator_duty_cycle: int | None = Field(None, ge=1, le=100)

    @model_validator(mode="after")
    def consistent(self) -> Machine:
        """Refuse what Vertex AI would refuse after minutes."""
        if self.max_replica_count < self.min_replica_count:
            raise ValueError("max_replica_count is below min_replica_count")
        if bool(self.accelerator_type) != bool(self.accelerator_count):
            raise ValueError("accelerator_type and accelerator_count belong together")
        if self.autoscaling_target_accelerator_duty_cycle and not self.accelerator_type:
            raise ValueError("a duty cycle is of an accelerator, and there is none")
        return self


class Served(Strict):
    """How one model is served. machine: the entry of machines taken when none is named."""

    artifact: Literal["merged", "gguf"]
    container: Container
    machine: str
    machines: dict[str, Machine]


class Prices(Strict):
    """Prices of one replica's hour by machine type, and where they are from."""

    noted: str
    how: str
    source: str
    region: str
    currency: str
    per_hour: dict[str, float]


class Settings(Strict):
    """deploy/vertex.yaml."""

    region: str
    api_transport: Literal["rest", "grpc"]
    api_endpoint: str | None
    attempts: int = Field(ge=1)
    first_wait_seconds: float = Field(ge=0)
    canary_percent: int = Field(ge=0, le=100)
    inference_timeout: int = Field(gt=0, le=3600)
    artifact_uri: str
    hash_characters: int = Field(ge=6, le=64)
    labels: dict[str, str]
    models: dict[str, Served]
    prices: Prices


def matched(pattern: re.Pattern[str], what: str, value: str, example: str) -> str:
    """`value`, or StepError if it is not of the form."""
    if not pattern.fullmatch(value):
        raise StepError(f"{what} {value!r} is not of the form {pattern.pattern}, as in {example}")
    return value


@dataclass(frozen=True)
class Place:
    """The project and region deployed to."""

    project: str
    region: str

    def __post_init__(self) -> None:
        matched(PROJECT, "project id", self.project, "my-project-123")
        matched(REGION, "region", self.region, "us-central1")


def facts(run: Path, place: Place, characters: int) -> dict[str, str]:
    """What the texts of the settings may name, from the manifests of a run's adapter and merge.

    Hashes are cut to `characters`; those of several data sets are joined by an underscore.
    StepError if the run lacks a manifest or one lacks an entry.
    """
    adapter = read_json(run / "adapter/manifest.json", "make sft or make dpo")
    merged = read_json(run / "merged/manifest.json", "make merge RECIPE=…")
    try:
        inputs = adapter["inputs"]
        recipe = Path(inputs["recipe"]["path"])
        family = family_of(ROOT / recipe)
        data = [inputs[k]["sha256"] for k in sorted(inputs) if k.startswith("datasets[")]
        return {
            "project": place.project,
            "region": place.region,
            "version": importlib.metadata.version("medalign"),
            "name": merged["name"],
            "family": family,
            "run": run.resolve().name,
            "num_ctx": str(model(family).num_ctx),
            "recipe": recipe.stem,
            "recipe_hash": inputs["recipe"]["sha256"][:characters],
            "data_hash": "_".join(digest[:characters] for digest in data),
            "adapter_hash": merged["inputs"]["adapter"]["sha256"][:characters],
        }
    except KeyError as error:
        raise StepError(f"{run}: its manifests have no {error}; train and merge again") from error


def filled(text: str, known: dict[str, str]) -> str:
    """`text` with the facts in place of the braces. StepError for a name nobody knows."""
    try:
        return text.format(**known)
    except (KeyError, ValueError, IndexError) as error:
        names = ", ".join(known)
        raise StepError(f"{SETTINGS}: {text!r}: {error}; in braces may stand {names}") from error


def labels(declared: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    """The labels of models and endpoints. StepError for a key or value Vertex AI would refuse."""
    found = {key: filled(value, known) for key, value in declared.items()}
    for key, value in found.items():
        matched(LABEL_KEY, "label", key, "recipe-hash")
        matched(LABEL_VALUE, f"label {key} =", value, "dpo-a100")
    return found
