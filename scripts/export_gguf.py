"""Convert a model folder to GGUF and quantize it: merged → f16 → Q4_K_M.

    python scripts/export_gguf.py --model runs/smollm2-135m/sft-lora-cpu/merged \\
        --out runs/smollm2-135m/sft-lora-cpu/medalign-135m-Q4_K_M.gguf

The converter is llama.cpp's own, of the version that runs the model. The f16 file is an
intermediate and removed; `--quant F16` keeps it as the result.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    require_file,
    require_space,
    run_step,
    scratch,
    sha256,
    write_json,
    written_whole,
)

CONVERTER = ROOT / "build/llama.cpp"


def manifest_path(gguf: Path) -> Path:
    """The manifest beside a GGUF file."""
    return gguf.with_name(gguf.name + ".manifest.json")


def convert(model: Path, out: Path, name: str) -> None:
    """Run convert_hf_to_gguf.py: model folder → f16 GGUF. StepError with its last line."""
    script = require_file(CONVERTER / "convert_hf_to_gguf.py", "make setup unpacks it")
    installed = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    if (CONVERTER / "VERSION").read_text().strip() != installed:
        raise StepError(f"{CONVERTER} is not of {installed}; remove it and run make setup")
    command = [sys.executable, str(script), str(model), "--outfile", str(out)]
    command += ["--outtype", "f16", "--model-name", name]
    environment = {**os.environ, "PYTHONPATH": str(CONVERTER / "gguf-py")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise StepError(f"{model}: the GGUF converter failed: {lines[-1]}")


def quantize(source: Path, out: Path, quant: str) -> None:
    """Quantize a GGUF with the llama.cpp inside llama-cpp-python."""
    import llama_cpp

    kind = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant}", None)
    if kind is None:
        raise StepError(f"{quant!r} is no quantization of llama.cpp; Q4_K_M, Q5_K_M, Q8_0 are")
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind
    params.nthread = len(os.sched_getaffinity(0))
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
        raise StepError(f"{source}: llama.cpp could not quantize it to {quant}")


def tensor_types(gguf: Path) -> dict[str, int]:
    """How many tensors of each type a GGUF holds."""
    from gguf import GGUFReader

    return dict(Counter(tensor.tensor_type.name for tensor in GGUFReader(gguf).tensors))


def export(model: Path, out: Path, quant: str) -> dict[str, Any]:
    """Write the quantized GGUF and its manifest. Returns the manifest."""
    began = time.monotonic()
    require_file(model / "config.json", "make merge writes the merged model")
    weights = sum(p.stat().st_size for p in model.glob("*.safetensors")) / 2**30
    require_space(out, 0.2 + 2 * weights)
    with scratch(out.with_suffix(".f16")) as f16, written_whole(out) as final:
        convert(model, f16, out.stem.removesuffix(f"-{quant}"))
        if quant == "F16":
            os.link(f16, final)
        else:
            quantize(f16, final, quant)
        facts = manifest(
            "gguf",
            {"model": model},
            began,
            quantization=quant,
            tensor_types=tensor_types(final),
            bytes={"f16": f16.stat().st_size, quant: final.stat().st_size},
            sha256=sha256(final),
        )
        write_json(manifest_path(out), facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quant", default="Q4_K_M")
    args = parser.parse_args()
    facts = export(args.model, args.out, args.quant)
    print(f"{args.out}: {facts['bytes'][args.quant] / 1e6:.1f} MB, {facts['tensor_types']}")


if __name__ == "__main__":
    run_step(main)
