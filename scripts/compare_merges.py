"""Measure what each way of merging a QLoRA adapter does to the model that was trained.

    python scripts/train_adapter.py --recipe recipes/smollm2-135m/sft-lora-cpu.yaml \\
        --out build/merge-study/adapter \\
        --set adapter=qlora --set load_in_4bit=true --set max_steps=40
    python scripts/compare_merges.py --adapter build/merge-study/adapter

The reference is the model as trained: base in NF4 by transformers and bitsandbytes, adapter
beside it. Compared with it, on the answers of held-out rows, are the three merges
(medalign.trained_base) in bf16 and again as Q4_K_M in llama.cpp. transformers computes in fp32
on both sides, so that only the weights differ; what training's own bf16 does to the same
weights is measured as well. Writes docs/results/merge-methods.json and prints its table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_rel

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    read_jsonl,
    require_file,
    run_step,
    scratch,
    write_json,
)
from medalign.divergence import Logits, Row, compare, gguf_answers, log_softmax
from medalign.export_gguf import convert, quantize
from medalign.merge_adapter import merge
from medalign.recipe import family_of, model, read_yaml
from medalign.trained_base import DTYPES, WAYS, fetch, qlora_merge

ROWS = ROOT / "build/data/education/test.jsonl"
HEAD = "| model | KL mean | KL p99 | top-1 | loss of the held answers (change, 95 %) |"


def answer_rows(path: Path, base: Path, template: Path) -> list[Row]:
    """The chats of `path` as token ids under the template, each cut after the answer's end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template.read_text()

    def encode(chat: list[dict[str, str]], more: bool) -> list[int]:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=more)
        return tokenizer.encode(text, add_special_tokens=False)

    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        prompt, whole = encode(row["messages"][:-1], True), encode(row["messages"], False)
        if whole[: len(prompt)] != prompt or tokenizer.eos_token_id not in whole[len(prompt) :]:
            raise StepError(f"{path}:{number}: under {template.name} its answer is not one turn")
        end = whole.index(tokenizer.eos_token_id, len(prompt))
        rows.append((whole[: end + 1], len(prompt)))
    return rows


def answers(llm: Any, rows: list[Row]) -> Iterator[Logits]:
    """What a transformers model predicts for each row's answer: [answer tokens, vocab]."""
    for ids, prompt in rows:
        with torch.no_grad():
            logits = llm(torch.tensor([ids[:-1]])).logits
        yield logits[0, prompt - 1 :].float().numpy()


def plain(folder: Path) -> Any:
    """A model folder in fp32, its weights as they are stored."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def as_trained(base: Path, adapter: Path, stored: torch.dtype, computed: torch.dtype) -> Any:
    """The model that was trained: base in NF4, adapter beside it, not merged.

    stored: what the base was loaded in before NF4. computed: what the layers compute in.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )
    quantized = AutoModelForCausalLM.from_pretrained(
        base, dtype=stored, quantization_config=settings
    )
    both = PeftModel.from_pretrained(quantized, adapter)
    for parameter in both.parameters():
        if type(parameter) is torch.nn.Parameter:  # not in NF4
            parameter.data = parameter.data.to(computed)
    # In eval mode bitsandbytes repacks the weights on some CPUs and rounds their scales to
    # bf16, which training does not. The recipe has no dropout.
    return both.train()


def against(kept: list[Path], candidate: Iterator[Logits], rows: list[Row]) -> dict[str, Any]:
    """The candidate's divergence from the kept reference; each answer's loss in nats a token."""
    losses: list[float] = []

    def watched() -> Iterator[Logits]:
        for logits, (ids, prompt) in zip(candidate, rows, strict=True):
            right = log_softmax(logits)[np.arange(len(logits)), ids[prompt:]]
            losses.append(round(-float(right.mean()), 5))
            yield logits

    figures = compare(map(np.load, kept), watched())
    return {**figures, "held_loss": float(np.mean(losses)), "held_losses": losses}


def change(figures: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """How much higher the held loss is than before, and its 95 % interval (t, paired by row)."""
    test = ttest_rel(figures["held_losses"], before["held_losses"])
    low, high = test.confidence_interval()
    mean = figures["held_loss"] - before["held_loss"]
    return {"mean": mean, "low": float(low), "high": float(high)}


def study(adapter: Path, data: Path, work: Path) -> dict[str, Any]:
    """Measure every way. Returns name → divergence from the model as trained."""
    config = read_yaml(require_file(adapter / "recipe.yaml", "train it as said above"))
    if qlora_merge(config) is None:
        raise StepError(f"{adapter} was not trained with adapter: qlora; nothing to compare")
    trained = json.loads((adapter / "manifest.json").read_text())
    family = model(family_of(ROOT / trained["inputs"]["recipe"]["path"]))
    base, dtype = fetch(config), trained["dtype"]
    stored = DTYPES[dtype]
    rows = answer_rows(data, base, ROOT / config["chat_template_jinja"])
    kept: list[Path] = []
    for logits in answers(as_trained(base, adapter, stored, torch.float32), rows):
        kept.append(work / f"{len(kept)}.npy")  # gigabytes in all
        np.save(kept[-1], logits)
    found: dict[str, Any] = {}

    def measure(name: str, candidate: Iterator[Logits]) -> None:
        figures = against(kept, candidate, rows)
        # A model does not differ from itself, and of no difference there is no interval.
        known = {"held_loss_change": change(figures, found["itself"])} if found else {}
        found[name] = figures | known
        print(line(name, found[name]), flush=True)

    measure("itself", map(np.load, kept))
    measure(f"itself, in {dtype}", answers(as_trained(base, adapter, stored, stored), rows))
    measure("untuned base", answers(plain(base), rows))
    for way in WAYS:
        merge(adapter, work / way, way)
        measure(f"{way}, {dtype}", answers(plain(work / way), rows))
        with scratch(work / f"{way}.f16.gguf") as f16:
            convert(work / way, f16, way, family)
            quantize(f16, work / f"{way}.gguf", "Q4_K_M")
        measure(f"{way}, Q4_K_M", gguf_answers(work / f"{way}.gguf", rows))
    return found


def line(name: str, figures: dict[str, Any]) -> str:
    """A line of the table."""
    kl = f"{figures['kl_mean']:.5f} | {figures['kl_p99']:.4f}"
    more = figures.get("held_loss_change")
    interval = " ({mean:+.4f}; {low:+.4f} to {high:+.4f})".format(**more) if more else ""
    return f"| {name} | {kl} | {figures['top1']:.1%} | {figures['held_loss']:.4f}{interval} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ROOT / "build/merge-study/adapter")
    parser.add_argument("--data", type=Path, default=ROWS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/merge-methods.json")
    args = parser.parse_args()
    began = time.monotonic()
    require_file(args.adapter / "manifest.json", "train it as said above")
    with scratch(args.adapter.with_name("merges")) as work:
        work.mkdir()
        found = study(args.adapter.resolve(), args.data, work)
    quantized = [found[f"{way}, Q4_K_M"] for way in ("unquantized", "as_trained")]
    shipped = {"held_loss, unquantized - as_trained, Q4_K_M": change(*quantized)}
    trained = json.loads((args.adapter / "manifest.json").read_text())
    kept = ("base", "seed", "overrides", "steps", "final_loss", "train_loss", "dtype")
    facts = manifest(
        "merge-methods",
        {"adapter": args.adapter, "rows": args.data},
        began,
        trained={key: trained[key] for key in kept},
        rows=len(read_jsonl(args.data)),
        found=found,
        shipped=shipped,
    )
    write_json(args.out, facts)
    print(f"\n{HEAD}\n|---|---|---|---|---|")
    print("\n".join(line(name, figures) for name, figures in found.items()))
    print(
        f"\n{found['itself']['tokens']} answer tokens of {facts['rows']} rows; KL in nats a token"
    )


if __name__ == "__main__":
    run_step(main)
