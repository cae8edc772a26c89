"""Convert a model folder to GGUF and quantize it: merged → f16 → Q4_K_M.

    python scripts/export_gguf.py --model runs/smollm2-135m/sft-lora-cpu/merged \\
        --family smollm2-135m --out runs/smollm2-135m/sft-lora-cpu/medalign-135m-Q4_K_M.gguf

The converter is llama.cpp's own, of the version that runs the model. The f16 file is an
intermediate and removed; `--quant F16` keeps it as the result. What quantization changed is
measured on held answers and recorded; too much of it is an error.
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

from medalign import divergence, gguf_model
from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_jsonl,
    require_file,
    require_space,
    run_step,
    scratch,
    sha256,
    write_json,
    written_whole,
)
from medalign.check_education import EDUCATION
from medalign.recipe import Model, model, system_prompt

CONVERTER = ROOT / "build/llama.cpp"
HELD = EDUCATION / "test.jsonl"
HELD_ROWS = 10  # about 2,500 answer tokens; more change the mean little and cost time on 7B
# Limits on what quantization may change: KL(f16 || quantized) in nats a token, and the share
# of tokens whose likeliest successor stays. Measured in docs/evidence.md, "Quantization".
MAX_KL, MIN_TOP1 = 0.1, 0.85


def manifest_path(gguf: Path) -> Path:
    """The manifest beside a GGUF file."""
    return gguf.with_name(gguf.name + ".manifest.json")


@contextmanager
def convertible(folder: Path, beside: Path) -> Iterator[Path]:
    """The model folder as the converter is to see it, as links in a scratch folder.

    A SentencePiece tokenizer gets `add_prefix_space: false`: without it llama.cpp puts a space
    token after every control token, which training did not. StepError for a model that brings
    code of its own (`auto_map`), which the converter would run.
    """
    config = json.loads(require_file(folder / "config.json", "make merge writes it").read_text())
    if "auto_map" in config:
        raise StepError(f"{folder}/config.json has auto_map: code from elsewhere is not run")
    with scratch(beside) as view:
        view.mkdir()
        for path in folder.iterdir():
            (view / path.name).symlink_to(path.resolve())
        if (folder / "tokenizer.model").exists():
            settings = view / "tokenizer_config.json"
            text = json.loads(settings.read_text()) | {"add_prefix_space": False}
            settings.unlink()
            settings.write_text(json.dumps(text, ensure_ascii=False))
        yield view


def convert(folder: Path, out: Path, name: str, family: Model) -> None:
    """Run convert_hf_to_gguf.py: model folder → f16 GGUF. StepError with its last line."""
    script = require_file(CONVERTER / "convert_hf_to_gguf.py", "make setup unpacks it")
    installed = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    if (CONVERTER / "VERSION").read_text().strip() != installed:
        raise StepError(f"{CONVERTER} is not of {installed}; remove it and run make setup")
    organization, base = family.hub_id.split("/")
    origin = {"name": base, "organization": organization}
    origin["repo_url"] = f"https://huggingface.co/{family.hub_id}"
    told = {"general.name": name, "general.license": family.license}
    environment = {**os.environ, "PYTHONPATH": str(CONVERTER / "gguf-py")}
    with (
        convertible(folder, out.with_suffix(".view")) as view,
        scratch(out.with_suffix(".json")) as metadata,
    ):
        metadata.write_text(json.dumps({**told, "general.base_models": [origin]}))
        command = [sys.executable, str(script), str(view), "--outfile", str(out)]
        command += ["--outtype", "f16", "--metadata", str(metadata)]
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


def held_answers(gguf: Path) -> list[tuple[list[int], int]]:
    """Held chats as token ids, each with the position of the first answer token."""
    llm = gguf_model.load(gguf, vocab_only=True)
    rows = []
    for row in read_jsonl(HELD)[:HELD_ROWS]:
        asked = [{"role": "system", "content": system_prompt()}]
        asked.append({"role": "user", "content": row["prompt"]})
        whole = [*asked, {"role": "assistant", "content": row["answer"]}]
        begins = len(gguf_model.tokenize(llm, gguf_model.render(llm, asked)))
        rows.append((gguf_model.tokenize(llm, gguf_model.render(llm, whole, ask=False)), begins))
    return rows


def quantization_loss(f16: Path, quantized: Path) -> dict[str, Any]:
    """How far the quantized model's next tokens are from those of f16, on held answers.

    Returns the figures of `divergence.compare` (KL in nats a token).
    """
    rows = held_answers(f16)
    ids = [row for row, _ in rows]

    def answers(gguf: Path) -> Iterator[divergence.Logits]:
        for logits, (_, begins) in zip(divergence.gguf_logits(gguf, ids), rows, strict=True):
            yield logits[begins - 1 : -1]

    return divergence.compare(answers(f16), answers(quantized))


def check_loss(loss: dict[str, Any], quant: str) -> None:
    """StepError if quantization changed more than the limits allow."""
    if loss["kl_mean"] > MAX_KL or loss["top1"] < MIN_TOP1:
        raise StepError(
            f"{quant} is too far from f16: KL {loss['kl_mean']:.3f} nats a token (limit {MAX_KL}), "
            f"same first choice {loss['top1']:.1%} (limit {MIN_TOP1:.0%}) on {loss['tokens']} "
            "tokens; choose a larger quantization with QUANT="
        )


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
            loss = quantization_loss(f16, final)
            if gate:
                check_loss(loss, quant)
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
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", required=True, help="the model's entry in models.yaml")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--no-gate", action="store_true", help="record the loss, allow any")
    args = parser.parse_args()
    facts = export(args.model, args.out, args.quant, model(args.family), not args.no_gate)
    print(f"{args.out}: {facts['bytes'][args.quant] / 1e6:.1f} MB, {facts['tensor_types']}")
    if loss := facts["quantization_loss"]:
        print(
            f"against f16 on {loss['tokens']} answer tokens: KL {loss['kl_mean']:.4f} nats "
            f"a token, same first choice {loss['top1']:.1%}"
        )


if __name__ == "__main__":
    run_step(main)
