"""Convert a model folder to GGUF and quantize it: merged → f16 → Q4_K_M.

    python scripts/export_gguf.py --model runs/smollm2-135m/sft-lora-cpu/merged \\
        --family smollm2-135m --out runs/smollm2-135m/sft-lora-cpu/medalign-135m-Q4_K_M.gguf

The converter is llama.cpp's own, of the version that runs the model. The f16 file is an
intermediate and removed; `--quant F16` keeps it as the result. What quantization changed is
measured on held answers and recorded; too much of it is an error. `--model` may be a hub id, to
have the untuned model to compare with.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    manifest_path,
    require_file,
    require_space,
    run_step,
    scratch,
    sha256,
    write_json,
    written_whole,
)
from medalign.quantization_loss import check_loss, fits_in_memory, quantization_loss
from medalign.recipe import Model, model
from medalign.trained_base import fetch, refuse_own_code

CONVERTER = ROOT / "build/llama.cpp"
SPACE_PREFIX: bool | None = False  # None leaves it to llama.cpp, which then adds one


@contextmanager
def convertible(folder: Path, beside: Path, family: Model) -> Iterator[Path]:
    """The model folder as the converter is to see it, as links in a scratch folder.

    It gets the project's chat template, whatever its own is, and a model card from which the
    converter takes licence and base model. A SentencePiece tokenizer gets
    `add_prefix_space: false`: without it llama.cpp puts a space token after every control
    token, which training did not. StepError for a model that brings code of its own
    (`auto_map`), which the converter would run.
    """
    refuse_own_code(folder)
    with scratch(beside) as view:
        view.mkdir()
        for path in folder.iterdir():
            (view / path.name).symlink_to(path.resolve())
        settings = json.loads(
            require_file(folder / "tokenizer_config.json", "make merge writes it").read_text()
        )
        settings.pop("chat_template", None)
        if (folder / "tokenizer.model").exists():
            settings["add_prefix_space"] = SPACE_PREFIX
        changed = {
            "tokenizer_config.json": json.dumps(settings, ensure_ascii=False),
            "chat_template.jinja": (ROOT / family.template).read_text(encoding="utf-8"),
            "README.md": f"---\nlicense: {family.license}\nbase_model: {family.hub_id}\n---\n",
        }
        for name, text in changed.items():
            (view / name).unlink(missing_ok=True)
            (view / name).write_text(text, encoding="utf-8")
        yield view


def convert(folder: Path, out: Path, name: str, family: Model) -> None:
    """Run convert_hf_to_gguf.py: model folder → f16 GGUF. StepError with its last line."""
    script = require_file(CONVERTER / "convert_hf_to_gguf.py", "make setup unpacks it")
    installed = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    if (CONVERTER / "VERSION").read_text().strip() != installed:
        raise StepError(f"{CONVERTER} is not of {installed}; remove it and run make setup")
    environment = {**os.environ, "PYTHONPATH": str(CONVERTER / "gguf-py")}
    with convertible(folder, out.with_suffix(".view"), family) as view:
        command = [sys.executable, str(script), str(view), "--outfile", str(out)]
        command += ["--outtype", "f16", "--model-name", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise StepError(f"{folder}: the GGUF converter failed: {lines[-1]}")


@cache
def _silence():
    """A log callback that says nothing; kept, because llama.cpp calls it until the end."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


def quantize(source: Path, out: Path, quant: str) -> None:
    """Quantize a GGUF with the llama.cpp inside llama-cpp-python."""
    import llama_cpp

    kind = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant}", None)
    if kind is None:
        raise StepError(f"{quant!r} is no quantization of llama.cpp; Q4_K_M, Q5_K_M, Q8_0 are")
    llama_cpp.llama_log_set(_silence(), ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind
    params.nthread = len(os.sched_getaffinity(0))
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
        raise StepError(f"{source}: llama.cpp could not quantize it to {quant}")


def tensor_types(gguf: Path) -> dict[str, int]:
    """How many tensors of each type a GGUF holds."""
    from gguf import GGUFReader

    return dict(Counter(tensor.tensor_type.name for tensor in GGUFReader(gguf).tensors))


def export(folder: Path, out: Path, quant: str, family: Model, gate: bool = True) -> dict[str, Any]:
    """Write the quantized GGUF of a model folder and its manifest. Returns the manifest.

    gate: fail where quantization loses too much (not for random weights, where the figures
    mean nothing; they are recorded all the same).
    """
    began = time.monotonic()
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 2**30
    require_space(out, 0.2 + 2 * weights)
    with scratch(out.with_suffix(".f16")) as f16, written_whole(out) as final:
        convert(folder, f16, out.stem.removesuffix(f"-{quant}"), family)
        loss = None
        if quant == "F16":
            os.link(f16, final)
        else:
            quantize(f16, final, quant)
            if fits_in_memory(f16):
                loss = quantization_loss(f16, final)
                if gate:
                    check_loss(loss, quant)
            else:
                print(
                    f"f16 does not fit into this machine's memory: the loss of {quant} is unknown"
                )
        facts = manifest(
            "gguf",
            {"model": folder},
            began,
            quantization=quant,
            quantization_loss=loss,
            tensor_types=tensor_types(final),
            bytes={"f16": f16.stat().st_size, quant: final.stat().st_size},
            sha256=sha256(final),
        )
        write_json(manifest_path(out), facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", required=True, help="the model's entry in models.yaml")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--no-gate", action="store_true", help="record the loss, allow any")
    args = parser.parse_args()
    family = model(args.family)
    folder = fetch({"base_model": args.model, "revision_of_model": family.revision})
    facts = export(folder, args.out, args.quant, family, not args.no_gate)
    print(f"{args.out}: {facts['bytes'][args.quant] / 1e6:.1f} MB, {facts['tensor_types']}")
    if loss := facts["quantization_loss"]:
        print(
            f"against f16 on {loss['tokens']} answer tokens: KL {loss['kl_mean']:.4f} nats "
            f"a token, same first choice {loss['top1']:.1%}"
        )


if __name__ == "__main__":
    run_step(main)
