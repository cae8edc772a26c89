"""The loss of trained adapters on held-out rows: one measure for all systems of a bench.

    python scripts/held_out_loss.py recipe.json rows.jsonl adapter [adapter …]   # a JSON list

A training's own last losses are of the batches it had last; these are of the same rows, in fp32,
one at a time. For a recipe of preferences it is the recipe's DPO loss, the mean over pairs
(sigmoid) and over tokens of the chosen answers (sft), the base being the reference.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from medalign.artifacts import ROOT, read_jsonl

MOST_ROWS = 50
Chat = list[dict[str, str]]


def likelihood(model: Any, tokenizer: Any, prompt: Chat, answer: Chat) -> tuple[float, int]:
    """Log-probability of an answer in nats, and its tokens, the end of turn among them."""
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False).rstrip("\n")
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logits = model(ids, logits_to_keep=ids.shape[1] - start + 1).logits[0, :-1]
    loss = functional.cross_entropy(logits.float(), ids[0, start:], reduction="sum")
    return -loss.item(), ids.shape[1] - start


def supervised(of: list[tuple[float, int]]) -> float:
    """Cross-entropy a token, in nats."""
    return -sum(nats for nats, _ in of) / sum(tokens for _, tokens in of)


def preference(
    config: dict[str, Any],
    chosen: list[tuple[float, int]],
    rejected: list[tuple[float, int]],
    reference: list[tuple[float, float]],
) -> float:
    """The recipe's weighted DPO loss (Rafailov et al. 2023). ValueError for a loss not known here.

    reference: log-probabilities of chosen and rejected under the base.
    """
    margins = [
        config["rl_beta"] * ((c[0] - r[0]) - (base[0] - base[1]))
        for c, r, base in zip(chosen, rejected, reference, strict=True)
    ]
    terms = {
        "sigmoid": sum(math.log1p(math.exp(-m)) for m in margins) / len(margins),
        "sft": supervised(chosen),
    }
    if unknown := set(config["dpo_loss_type"]) - set(terms):
        raise ValueError(f"dpo_loss_type {sorted(unknown)}: only {sorted(terms)} here")
    weighted = zip(config["dpo_loss_type"], config["dpo_loss_weights"], strict=True)
    return sum(terms[name] * weight for name, weight in weighted)


def losses(config: dict[str, Any], rows: list[dict[str, Any]], adapters: list[Path]) -> list[float]:
    """The loss of each adapter on `rows`."""
    base = str(ROOT / config["base_model"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (ROOT / config["chat_template_jinja"]).read_text(encoding="utf-8")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, adapters[0], adapter_name="0").eval()

    def of(answer: str) -> list[tuple[float, int]]:
        return [likelihood(model, tokenizer, row["prompt"], row[answer]) for row in rows]

    if config.get("rl") == "dpo":
        with model.disable_adapter():
            reference = [(c[0], r[0]) for c, r in zip(of("chosen"), of("rejected"), strict=True)]
    else:
        rows = [{"prompt": r["messages"][:-1], "chosen": r["messages"][-1:]} for r in rows]
    found = []
    for number, adapter in enumerate(adapters):
        if number:
            model.load_adapter(str(adapter), adapter_name=str(number))
        model.set_adapter(str(number))
        if config.get("rl") == "dpo":
            found.append(preference(config, of("chosen"), of("rejected"), reference))
        else:
            found.append(supervised(of("chosen")))
    return found


if __name__ == "__main__":
    recipe, held_out, *folders = map(Path, sys.argv[1:])
    read = json.loads(recipe.read_text(encoding="utf-8"))
    print(json.dumps(losses(read, read_jsonl(held_out)[:MOST_ROWS], folders)))
