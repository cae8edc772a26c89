"""Model-FLOPs utilisation: what a LoRA training needs, over what this machine can multiply.

    python scripts/utilisation.py fp32 bf16     # the peak, one JSON object

A peak is measured, not looked up: the fastest of repeated square matrix products in PyTorch, on
as many threads as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def matrix_parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """Weights of the decoder's matrices, and of the output head.

    shape: config.json of a Llama or Mistral. Embeddings are looked up, not multiplied.
    """
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    queries = hidden * head * shape["num_attention_heads"]
    keys = hidden * head * shape["num_key_value_heads"]
    gated = 3 * hidden * shape["intermediate_size"]
    return layers * (2 * queries + 2 * keys + gated), hidden * shape["vocab_size"]


def training_flops(
    shape: dict[str, Any], lora: int, tokens: int, trained: int, length: float, reference: bool
) -> float:
    """FLOPs that a LoRA training needs for so many tokens, whatever the system really computes.

    2 a weight and token forward, 2 backward to the activations, and 2 more where weights get
    gradients, which only the adapter's do: 4 N + 6 N_lora (Kaplan et al. 2020, §2.1; frozen
    weights: Hu et al. 2021). Attention over a causal context of mean `length`: 6 a layer, head
    dimension and position (Chowdhery et al. 2022, appendix B, halved for the causal mask; it has
    no frozen part). The head only for `trained` tokens: their logits are all the loss needs, so a
    system that computes others earns nothing by it. reference: DPO's frozen forward pass as well.
    tokens, trained: real ones, of both answers of a pair. lora: trainable parameters.
    """
    decoder, head = matrix_parameters(shape)
    width = shape["num_attention_heads"] * (
        shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    )
    attention = 2 * shape["num_hidden_layers"] * width * length  # forward, causal
    needed = tokens * (4 * decoder + 6 * lora + 3 * attention) + trained * 4 * head
    if reference:
        needed += tokens * (2 * decoder + attention) + trained * 2 * head
    return float(needed)


def gemm_peak(dtype: str, size: int = 2048, seconds: float = 2.0) -> float:
    """FLOP/s of the fastest product of two size x size matrices within `seconds`."""
    import torch

    left, right = (torch.randn(size, size, dtype=getattr(torch, DTYPES[dtype])) for _ in range(2))
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        left @ right
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * size**3 / fastest


if __name__ == "__main__":
    print(json.dumps({dtype: gemm_peak(dtype) for dtype in sys.argv[1:]}))
