"""The base model as QLoRA training saw it: its linear layers through NF4 and back.

An adapter trained with `adapter: qlora` has learnt beside a base whose linear layers lay in
NF4, while embeddings, lm_head and norms did not (transformers' bitsandbytes quantizer). Three
bases can take it, by the recipe's `qlora_merge`:

- as_trained: the linear layers go through NF4 and back, as in training; nothing else does.
- unquantized: the base as published; the adapter meets weights it was not trained beside.
- every_matrix: Axolotl's own default, which takes lm_head and embeddings through NF4 as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from medalign.artifacts import ROOT, StepError, require_file

QloraMerge = Literal["as_trained", "unquantized", "every_matrix"]
WAYS: tuple[QloraMerge, ...] = get_args(QloraMerge)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Nothing else of a base is needed; a hub's folder often holds the weights twice.
FILES = ["model*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".gguf"}


def qlora_merge(config: dict[str, Any]) -> QloraMerge | None:
    """Which base the recipe merges into; None if it is no QLoRA. StepError on another word."""
    if config.get("adapter") != "qlora":
        return None
    wanted = config.get("qlora_merge") or "as_trained"
    for way in WAYS:
        if way == wanted:
            return way
    raise StepError(f"qlora_merge: {wanted!r} is none of {', '.join(WAYS)}")


def shards(base: Path) -> list[Path]:
    """The safetensors files of a model folder. StepError if there are none or one is missing."""
    found = sorted(base.glob("model*.safetensors"))
    if not found:
        raise StepError(f"{base} has no model*.safetensors; only such weights are merged")
    index = base / "model.safetensors.index.json"
    named = json.loads(index.read_text())["weight_map"].values() if index.exists() else []
    if missing := sorted(set(named) - {path.name for path in found}):
        raise StepError(f"{base} lacks {', '.join(missing)}; fetch the model again")
    return found


def refuse_own_code(folder: Path) -> None:
    """StepError for a model that brings code of its own, which tools might run."""
    settings = require_file(folder / "config.json", "make merge writes it")
    if "auto_map" in json.loads(settings.read_text()):
        raise StepError(
            f"{folder} runs code of its own (config.json has auto_map: "
            "code from elsewhere is not run)"
        )


def fetch(config: dict[str, Any]) -> Path:
    """The folder of the recipe's base model, from the hub where it is a hub id.

    StepError if it is not there, not complete or brings code of its own.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = str(config["base_model"])
    base = ROOT / name
    if not base.is_dir():
        revision = config.get("revision_of_model")
        try:
            base = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
            why = str(error).strip().splitlines()[0]
            raise StepError(f"{name} is no folder and the hub did not give it: {why}") from error
    if not (base / "config.json").exists():
        raise StepError(f"{base} has no config.json; is base_model {name} right?")
    refuse_own_code(base)
    shards(base)
    return base


def linear_weights(base: Path) -> set[str]:
    """The names of the weights that bitsandbytes quantizes: all linear layers but the head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    head = model.get_output_embeddings()
    layers = model.named_modules()
    return {f"{n}.weight" for n, m in layers if type(m) is torch.nn.Linear and m is not head}


def nf4_and_back(
    weight: torch.Tensor, dtype: torch.dtype, double_quant: bool = True
) -> torch.Tensor:
    """`weight` as a QLoRA layer computes with it, in its own dtype and on the CPU.

    weight: any shape. dtype: the one training loaded the base in; it decides how the weights
    are rounded before and after. Blocks of 64, as bitsandbytes' Linear4bit.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed, state = quantize_4bit(
        weight.to(device, dtype).contiguous(),
        compress_statistics=double_quant,
        quant_type="nf4",
    )
    return dequantize_4bit(packed, state).to("cpu", weight.dtype)


def write_as_trained(base: Path, out: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the model folder `base` to `out` as training saw it, one shard in memory at a time.

    config: the recipe. dtype: the one it was trained in. Other files than weights are links.
    StepError for a base or settings of bitsandbytes that cannot be reproduced here.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    settings = dict(config.get("bnb_config_kwargs") or {})
    double_quant = settings.pop("bnb_4bit_use_double_quant", True)  # Axolotl's default
    if settings:
        raise StepError(f"qlora_merge: as_trained does not know bnb_config_kwargs {settings}")
    if "quantization_config" in json.loads((base / "config.json").read_text()):
        raise StepError(f"{base} is quantized already; qlora_merge: as_trained needs full weights")
    through = linear_weights(base)
    out.mkdir(parents=True)
    for path in base.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS:
            (out / path.name).symlink_to(path.resolve())
    met = set()
    for shard in shards(base):
        with safe_open(shard, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for name in through & set(tensors):
            tensors[name] = nf4_and_back(tensors[name], dtype, double_quant)
            met.add(name)
        save_file(tensors, out / shard.name, metadata=metadata or {"format": "pt"})
        del tensors
    if not through or met != through:
        names = ", ".join(sorted(through - met)[:3]) or "no linear layer"
        raise StepError(f"{base}: its weights have other names than transformers' ({names})")
