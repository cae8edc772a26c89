"""Does a recipe fit a GPU, what would make it fit, how long does it take: the parts of a plan.

What is taken for given stands in recipes/planning.yaml.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from medalign.artifacts import ROOT, StepError, read_jsonl
from medalign.recipe import RECIPES, read_yaml
from medalign.training_memory import Counts, counts, memory, operations

PLANNING = RECIPES / "planning.yaml"
GIB = 2**30
NOTHING_FITS = (
    "no micro batch, checkpointing, 4-bit base or length down to an eighth makes it fit; "
    "take a larger GPU"
)


class Gpu(BaseModel):
    """A card of recipes/planning.yaml."""

    like: str
    compute_capability: str
    memory_gib: float
    tflops: float
    utilisation: float
    usd_per_hour: float
    priced: str


class Family(BaseModel):
    """A model family's shape, as in its config.json."""

    characters_per_token: float
    shape: dict[str, Any]


class Planning(BaseModel):
    """recipes/planning.yaml."""

    gpus: dict[str, Gpu]
    assumptions: dict[str, float]
    families: dict[str, Family]


@dataclass(frozen=True)
class Work:
    """What there is to train: optimizer steps, tokens paid for, mean tokens of a sequence."""

    steps: int
    tokens: float
    length: float


def gpu_of(name: str, planning: Planning) -> Gpu:
    """The card of this name. StepError if there is none."""
    if name not in planning.gpus:
        raise StepError(f"GPU={name}: no such GPU; there are {', '.join(planning.gpus)}, all")
    return planning.gpus[name]


def row_texts(row: dict[str, Any]) -> list[str]:
    """The texts of a row that are passed through the model: one, or two answers to a prompt."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else "".join(m["content"] for m in value)

    if "messages" in row:
        return [text(row["messages"])]
    return [text(row["prompt"]) + text(row[k]) for k in ("chosen", "rejected") if k in row]


def work(recipe: dict[str, Any], family: Family, given: dict[str, float]) -> Work | None:
    """Steps and tokens of the recipe's data, by its characters; None if it is not built.

    Unpacked batches are paid for up to their longest row; pairs count both answers.
    """
    files = [ROOT / dataset["path"] for dataset in recipe["datasets"]]
    if not all(file.exists() for file in files):
        return None
    rows = [row_texts(row) for file in files for row in read_jsonl(file)]
    most = recipe["sequence_len"]

    def tokens(text: str) -> float:
        return min(most, len(text) / family.characters_per_token + given["template_tokens"])

    lengths = [max(map(tokens, texts)) for texts in rows]
    answers, micro = len(rows[0]), recipe["micro_batch_size"]
    accumulated, epochs = recipe["gradient_accumulation_steps"], recipe.get("num_epochs", 1)
    if recipe.get("sample_packing"):
        batches = math.ceil(sum(lengths) / given["packing"] / (micro * most))
        paid, length = batches * micro * most, sum(lengths) / len(lengths)
    else:
        if recipe.get("group_by_length"):
            lengths.sort()
        else:
            random.Random(0).shuffle(lengths)
        groups = [lengths[i : i + micro] for i in range(0, len(lengths), micro)]
        batches = len(groups)
        paid = sum(max(group) * len(group) for group in groups) * answers
        length = paid / len(lengths) / answers
    steps = math.ceil(batches / accumulated) * epochs
    return Work(int(steps), paid * epochs, length)


def obstacles(recipe: dict[str, Any], name: str, gpu: Gpu) -> list[str]:
    """What check_recipe says of this recipe on such a card, and what is not planned here."""
    if recipe.get("rl") not in (None, "dpo"):
        return [f"rl: {recipe['rl']} is not planned here, only supervised training and dpo are"]
    from medalign.check_recipe import HARDWARE, Card, hardware_faults  # Axolotl: seconds to import

    known = read_yaml(HARDWARE)[gpu.like]
    known |= {"compute_capability": gpu.compute_capability, "memory_gib": gpu.memory_gib}
    return list(hardware_faults(recipe, Card(name=name, **known)))


def changes(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Sets of keys that save memory, the fewest changes first.

    The batch stays what it was: what the micro batch loses is accumulated.
    """
    micro, most = recipe["micro_batch_size"], recipe["sequence_len"]
    halved = [micro >> i for i in range(1, micro.bit_length()) if micro % 2**i == 0]
    accumulated = recipe["gradient_accumulation_steps"]
    choices: list[list[dict[str, Any]]] = [
        [
            {"micro_batch_size": m, "gradient_accumulation_steps": accumulated * micro // m}
            for m in halved
        ],
        [] if recipe.get("gradient_checkpointing") else [{"gradient_checkpointing": True}],
        [{"adapter": "qlora", "load_in_4bit": True}] if recipe.get("adapter") == "lora" else [],
        [{"sequence_len": most >> i} for i in (1, 2, 3)],
    ]
    sets = itertools.product(*([{}, *options] for options in choices))
    return [dict(i for part in one for i in part.items()) for one in sorted(sets, key=effort)]


def effort(one: tuple[dict[str, Any], ...]) -> tuple[int, int]:
    """How many things are changed, and whether rows are cut, which loses data."""
    return sum(map(bool, one)), bool(one[-1])


def smallest_change(
    recipe: dict[str, Any], shape: dict[str, Any], gpu: Gpu, given: dict[str, float]
) -> str:
    """The first set of changes under which the recipe fits, as "key: value, …"."""
    for change in changes(recipe)[1:]:
        changed = {**recipe, **change}
        if memory(changed, counts(shape, changed), given).peak <= gpu.memory_gib * GIB:
            return "it would with " + ", ".join(f"{k}: {v}".lower() for k, v in change.items())
    return NOTHING_FITS


def refusal(
    recipe: dict[str, Any], shape: dict[str, Any], name: str, gpu: Gpu, given: dict[str, float]
) -> str | None:
    """Why the recipe does not run on the card, with what to do; None if it does."""
    if found := obstacles(recipe, name, gpu):
        return "; ".join(found)
    peak = memory(recipe, counts(shape, recipe), given).peak / GIB
    if peak <= gpu.memory_gib:
        return None
    change = smallest_change(recipe, shape, gpu, given)
    return f"needs {peak:.1f} GiB, a {name} has {gpu.memory_gib}; {change}"


def hours(recipe: dict[str, Any], model: Counts, todo: Work, gpu: Gpu) -> float:
    """Hours at the card's declared utilisation; evaluation, loading and saving not counted."""
    flops = operations(recipe, model, todo.tokens, todo.length)
    return flops / (gpu.tflops * 1e12 * gpu.utilisation) / 3600
