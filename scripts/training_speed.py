"""The same training in less time: decoder layers compiled, logits only where there are labels.

    compile_layers: true
    logits_at_labels: true
    trainer_cls: medalign.dpo_at_labels.DPOAtLabels    # the same for preference pairs

Keys of a recipe, read by medalign.axolotl_plugin. What they save on a CPU stands in
docs/evidence.md. On a GPU the kernels that Axolotl brings do the same work and more.
"""

from __future__ import annotations

import inspect
import types
from typing import Any, cast

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def compile_layers(model: PreTrainedModel | PeftModel) -> None:
    """Compile one decoder layer in place; all others are the same code and use it again.

    Compiling the whole model takes more than five minutes on two cores, one layer less than
    one. Lengths are symbolic, so another batch shape compiles nothing anew. The embeddings are
    made to require gradients: without, the first layer would be a second case to compile.
    """
    base_of(model).enable_input_require_grads()
    for layer in base_of(model).get_decoder().layers:
        layer.compile(dynamic=True)


def logits_at_labels(model: PreTrainedModel | PeftModel) -> None:
    """Replace the forward pass in training: the head sees only the positions that are trained.

    The loss is the model's own, cross-entropy summed and divided by `num_items_in_batch`, or
    by the number of labels where the trainer gives none. Prompt and padding are about a third
    of the positions, and the vocabulary is the widest matrix of a small model. With `by_row`,
    in training or not, `logits` of the result are the log-probabilities of each row's labels,
    summed [rows].
    """
    base = base_of(model)
    whole = base.forward

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        by_row: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if labels is None or not (self.training or by_row):
            if labels is not None:
                kwargs |= {"labels": labels, "num_items_in_batch": num_items_in_batch}
            return whole(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = self.get_decoder()(
            input_ids=input_ids, attention_mask=attention_mask, **kwargs
        ).last_hidden_state
        targets = labels[:, 1:]
        at = targets != -100
        logits = self.get_output_embeddings()(hidden[:, :-1][at])
        if by_row:
            each = -functional.cross_entropy(logits.float(), targets[at], reduction="none")
            sums = each.new_zeros(len(labels)).index_add(0, at.nonzero()[:, 0], each)
            return CausalLMOutputWithPast(logits=cast(torch.FloatTensor, sums))
        loss = functional.cross_entropy(logits.float(), targets[at], reduction="sum")
        loss = loss / (num_items_in_batch or at.sum().clamp(min=1))
        return CausalLMOutputWithPast(loss=cast(torch.FloatTensor, loss))

    forward.__signature__ = inspect.signature(whole.__func__)  # type: ignore[attr-defined]
    base.forward = types.MethodType(forward, base)
