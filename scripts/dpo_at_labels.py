"""Direct preference optimization in batches of one length, with logits only where answers are.

TRL's trainer makes the logits of every position, prompts and padding too, and takes their entropy,
mean and argmax at each step. With a vocabulary of 49,152 and a small model that is half of the
step on a CPU. Loss, reference and rewards are TRL's (Rafailov et al. 2023; the `sft` term as in
RPO, Pang et al. 2024), which tests/test_dpo_at_labels.py compares; other losses: TRL's trainer.
"""

from __future__ import annotations

from typing import Any

import torch
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from torch.nn import functional
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

LOSSES = {"sigmoid", "sft", "ipo"}


class DPOByLength(AxolotlDPOTrainer):
    """Axolotl's DPO trainer with batches of pairs of about one length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """Batches of pairs of about one length, in an order that the seed alone decides.

        A four-section answer is three times as long as a refusal: mixed, a third of the
        positions are padding.
        """
        rows = self.train_dataset if train_dataset is None else train_dataset
        columns = (rows[f"{part}_ids"] for part in ("prompt", "chosen", "rejected"))
        lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths=lengths,
            generator=torch.Generator().manual_seed(self.args.data_seed or self.args.seed),
        )


class DPOAtLabels(DPOByLength):
    """Axolotl's DPO trainer over a model whose forward pass is `logits_at_labels`.

    ValueError on a loss it does not know.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if unknown := set(self.loss_types) - LOSSES:
            raise ValueError(f"dpo_loss_type {sorted(unknown)}: only {sorted(LOSSES)} here")

    def by_row(
        self, model: Any, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed log-probabilities of chosen and rejected answers [pairs] each."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        sums = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            by_row=True,
            use_cache=False,
        ).logits
        return sums.chunk(2)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        """The same under the reference: the model with its adapter off."""
        plain = self.accelerator.unwrap_model(self.model)
        name = "ref" if "ref" in plain.peft_config else None
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(plain, self.args.gradient_checkpointing_kwargs),
            use_adapter(plain, adapter_name=name),
        ):
            return self.by_row(model, inputs)

    def _compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool
    ) -> Any:
        chosen, rejected = self.by_row(model, inputs)
        if self.precompute_ref_logps:
            reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = self.compute_ref_log_probs(model, inputs)
        gains = chosen - reference[0], rejected - reference[1]
        tokens = inputs["completion_mask"].sum(1).clamp(min=1).chunk(2)
        losses = {
            "sigmoid": lambda: -functional.logsigmoid(self.beta * (gains[0] - gains[1])).mean(),
            "ipo": lambda: (
                (gains[0] / tokens[0] - gains[1] / tokens[1] - 1 / (2 * self.beta)) ** 2
            ).mean(),
            "sft": lambda: -chosen.sum() / tokens[0].sum(),
        }
        weighted = zip(self.loss_types, self.loss_weights, strict=True)
        loss = sum(losses[name]() * weight for name, weight in weighted)
        rewards = [self.beta * gain.detach() for gain in gains]
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            count = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += count
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        for name, values in {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
        }.items():
            self._metrics[mode][name].append(self.accelerator.gather(values).mean().item())
        return (loss, None) if return_outputs else loss
