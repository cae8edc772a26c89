"""The arithmetic of a training run: bytes by part at the peak, and floating-point operations.

Recipes are read by Axolotl's keys. Parameters are not computed but counted, on the real modules
with PEFT's adapter, on torch's meta device where they take no memory. Sources:

- NF4 with double quantization: Dettmers et al. 2023, QLoRA; block sizes as in bitsandbytes
- activations: term by term after Korthikanti et al. 2022, Reducing Activation Recomputation, here
  for the Llama layer of transformers under autocast; tests/test_plan_run.py holds the sum
  against the tensors that torch keeps
- operations: Kaplan et al. 2020 (2N forward, 4N backward a token), attention after Chowdhery et
  al. 2022, PaLM, appendix B; over a frozen base the backward pass has no weight gradients: 4N
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """A model with its adapter, in numbers of elements. `adapted`: widths of a layer's adapted
    inputs, summed; `matrices`: the decoder's linear layers one by one."""

    shape: LlamaConfig
    matrices: tuple[int, ...]
    rest: int
    head: int
    adapter: tuple[int, ...]
    adapted: int

    @property
    def total(self) -> int:
        return sum(self.matrices) + self.rest

    @property
    def heads_width(self) -> int:
        """Width of all attention heads together."""
        return self.shape.num_attention_heads * (self.shape.head_dim or 0)


def counts(shape: dict[str, Any], recipe: Recipe) -> Counts:
    """Count the parameters of a model of this shape under the recipe's adapter."""
    rank = recipe.get("lora_r", 0) if recipe.get("adapter") else 0
    targets = recipe.get("lora_target_modules") or "all-linear"
    return _counted(json.dumps(shape, sort_keys=True), rank, json.dumps(targets))


@lru_cache
def _counted(shape: str, rank: int, targets: str) -> Counts:
    config = LlamaConfig(**json.loads(shape))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        layers = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
        matrices = tuple(m.weight.numel() for m in layers)
        total = sum(p.numel() for p in model.parameters())
        adapter: tuple[int, ...] = ()
        adapted = 0
        if rank:
            lora = LoraConfig(r=rank, target_modules=json.loads(targets), task_type="CAUSAL_LM")
            tuned = get_peft_model(model, lora)
            adapter = tuple(p.numel() for p in tuned.parameters() if p.requires_grad)
            inputs = (p.shape[1] for n, p in tuned.named_parameters() if "lora_A" in n)
            adapted = sum(inputs) // config.num_hidden_layers
    head = config.vocab_size * config.hidden_size
    return Counts(config, matrices, total - sum(matrices), head, adapter, adapted)


def nf4_bytes(elements: int) -> tuple[int, int]:
    """A matrix in NF4: bytes of its weights, and of its constants under double quantization.

    bitsandbytes: a scale for each block of 64, held in 8 bits with an fp32 scale for each 256
    of them, their fp32 mean, and the two code books (16 and 256 fp32 numbers).
    """
    blocks = math.ceil(elements / 64)
    return math.ceil(elements / 2), blocks + 4 * math.ceil(blocks / 256) + 4 + 4 * (16 + 256)


def optimizer_bytes(recipe: Recipe, trained: tuple[int, ...], width: int) -> int:
    """Adam's two moments. 8-bit (bitsandbytes): tensors of 4096 elements and more, an fp32 scale a
    block of 256; paged ones are counted too, though they may move to the host. Else in the
    weights' own width (bytes), with an fp32 step count."""
    if "8bit" not in recipe["optimizer"]:
        return sum(2 * width * n + 4 for n in trained)
    return sum(2 * (n + 4 * math.ceil(n / 256)) if n >= 4096 else 8 * n for n in trained)


def tokens_at_once(recipe: Recipe) -> int:
    """Positions in one forward pass; DPO passes both answers of a pair."""
    return (
        recipe["micro_batch_size"]
        * recipe["sequence_len"]
        * (2 if recipe.get("rl") == "dpo" else 1)
    )


def half(recipe: Recipe) -> int:
    """Bytes of a number in the forward pass."""
    return 2 if recipe.get("bf16") or recipe.get("fp16") else 4


def layer_bytes(recipe: Recipe, model: Counts) -> int:
    """What one decoder layer keeps of a token for its backward pass, bytes.

    Each norm its input in fp32; q, k, v (k and v repeated to all heads) and the result of
    attention, with its scores where attention is eager; gate, its SiLU and up; the copy of its
    input that each adapted matrix casts, with a dropout mask; A's result.
    """
    s, shape = half(recipe), model.shape
    wide, inner = shape.hidden_size, shape.intermediate_size
    attention = 4 * s * model.heads_width
    norms = 2 * s * wide if recipe.get("liger_rms_norm") else 8 * wide
    if recipe.get("attn_implementation") == "eager":
        attention += (4 + s) * shape.num_attention_heads * recipe["sequence_len"]
    mlp, copies = 3 * s * inner, s * model.adapted
    if recipe.get("lora_dropout"):
        copies += model.adapted
    if recipe.get("lora_mlp_kernel"):  # keeps its input, gate and up
        mlp, copies = 2 * s * inner, 3 * s * wide
    return norms + attention + mlp + copies + 7 * s * recipe.get("lora_r", 0)


def logits_bytes(recipe: Recipe, model: Counts, label_share: float) -> int:
    """The logits' peak: fp32 log-softmax, its gradient and the loss's, 12 bytes each; in chunks of
    Liger's size with liger_fused_linear_cross_entropy; at label_share of the positions with
    logits_at_labels."""
    tokens, vocabulary = tokens_at_once(recipe), model.shape.vocab_size
    if recipe.get("liger_fused_linear_cross_entropy"):
        pieces = math.ceil(vocabulary / model.shape.hidden_size)
        rows = 2 ** math.ceil(math.log2(max(1, tokens / pieces)))
        return rows * vocabulary * (half(recipe) + 4) + tokens * model.shape.hidden_size * 2
    return int(12 * tokens * (label_share if recipe.get("logits_at_labels") else 1) * vocabulary)


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `again` (a layer computed again, with its gradients) and `logits` are never
    there at once: the larger counts."""

    weights: int
    constants: int
    adapters: int
    gradients: int
    optimizer: int
    kept: int
    again: int
    logits: int
    reference: int
    overhead: int

    @property
    def peak(self) -> int:
        fixed = self.weights + self.constants + self.adapters + self.gradients + self.optimizer
        return fixed + self.kept + max(self.again, self.logits + self.reference) + self.overhead


def memory(recipe: Recipe, model: Counts, assumptions: dict[str, float]) -> Memory:
    """The peak of one training step, by part."""
    s, tokens = half(recipe), tokens_at_once(recipe)
    weights, constants = s * model.total, 0
    if recipe.get("load_in_4bit") and recipe.get("adapter") == "qlora":
        sizes = [nf4_bytes(n) for n in model.matrices]
        weights, constants = s * model.rest + sum(a for a, _ in sizes), sum(b for _, b in sizes)
    elif recipe.get("load_in_8bit"):
        weights = s * model.rest + sum(model.matrices)
    trained = model.adapter or (model.total,)
    # PEFT holds adapters over a 16-bit base in fp32, but TRL's DPO over a 4-bit one in 16 bit
    narrow = recipe.get("peft_autocast_adapter_dtype") is False or (constants and recipe.get("rl"))
    width = s if narrow or not model.adapter else 4
    layer, shape = layer_bytes(recipe, model), model.shape
    checkpointed = bool(recipe.get("gradient_checkpointing"))
    each = s * shape.hidden_size if checkpointed else layer
    # the MLP's gradients in 16 bit and from the adapter in fp32, two of hidden width; one matrix
    # back from NF4
    work = (s + 4) * shape.intermediate_size + 2 * s * shape.hidden_size
    again = tokens * (work + layer * checkpointed) + s * max(model.matrices) * bool(constants)
    logits = logits_bytes(recipe, model, assumptions["label_share"])
    kept = tokens * each * shape.num_hidden_layers
    live = recipe.get("rl") == "dpo" and not recipe.get("precompute_ref_log_probs")
    reference = logits // 2 if live else 0  # no second copy of the weights: the adapter is off
    loose = kept + max(again, logits + reference)
    overhead = assumptions["overhead_gib"] * 2**30 + assumptions["fragmentation"] * loose
    return Memory(
        weights=weights,
        constants=constants,
        adapters=width * sum(model.adapter),
        gradients=width * sum(trained),
        optimizer=optimizer_bytes(recipe, trained, width),
        kept=kept,
        again=again,
        logits=logits,
        reference=reference,
        overhead=int(overhead),
    )


def operations(recipe: Recipe, model: Counts, tokens: float, length: float) -> float:
    """Floating-point operations of training on `tokens`, in sequences of `length` on average.

    Forward 2 for each weight of a matrix and 4 · width · length for attention (no causal
    half taken off); backward twice that, but without weight gradients over a frozen base;
    checkpointing one forward pass of the layers more, DPO's reference one of all.
    """
    shape = model.shape
    layers = 2 * sum(model.matrices)
    attention = 4 * shape.num_hidden_layers * model.heads_width * length
    forward = layers + 2 * model.head + attention
    backward = forward + attention + (0 if model.adapter else layers + 2 * model.head)
    again = (layers + attention) if recipe.get("gradient_checkpointing") else 0
    reference = forward if recipe.get("rl") == "dpo" else 0
    return tokens * (forward + backward + again + reference + 6 * sum(model.adapter))
