"""What quantization changed: next-token divergence from f16 on held answers, and its limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medalign import divergence, gguf_model
from medalign.artifacts import StepError, read_jsonl
from medalign.check_education import EDUCATION
from medalign.recipe import system_prompt

HELD = EDUCATION / "test.jsonl"
HELD_ROWS = 10  # 2,000 to 2,400 answer tokens; more change the mean little and cost time on 7B
# Limits on what quantization may change: KL(f16 || quantized) in nats a token, and the share
# of tokens whose likeliest successor stays. Measured in docs/evidence.md, "Quantization".
MAX_KL, MIN_TOP1 = 0.25, 0.75


def held_answers(gguf: Path) -> list[divergence.Row]:
    """Held chats as token ids, each with the length of its prompt."""
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
    compared = (divergence.gguf_answers(gguf, rows) for gguf in (f16, quantized))
    return divergence.compare(*compared)


def fits_in_memory(gguf: Path) -> bool:
    """True if this machine can hold the file and a little more."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return gguf.stat().st_size < 0.9 * memory


def check_loss(loss: dict[str, Any], quant: str) -> None:
    """StepError if quantization changed more than the limits allow."""
    if loss["kl_mean"] > MAX_KL or loss["top1"] < MIN_TOP1:
        raise StepError(
            f"{quant} is too far from f16: KL {loss['kl_mean']:.3f} nats a token (limit {MAX_KL}), "
            f"same first choice {loss['top1']:.1%} (limit {MIN_TOP1:.0%}) on {loss['tokens']} "
            "tokens; choose a larger quantization with QUANT="
        )
