"""Preference training at labels only is TRL's: loss, gradients and rewards."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from medalign.dpo_at_labels import DPOAtLabels
from medalign.training_speed import logits_at_labels

ROWS = [
    {
        "prompt": [{"role": "user", "content": "May I take two medicines that hold paracetamol?"}],
        "chosen": [{"role": "assistant", "content": "No: count every one, and ask a pharmacist."}],
        "rejected": [{"role": "assistant", "content": "Sure."}],
    },
    {
        "prompt": [{"role": "user", "content": "What does lethal mean?"}],
        "chosen": [{"role": "assistant", "content": "Able to kill."}],
        "rejected": [{"role": "assistant", "content": "I can't talk about that, I am afraid."}],
    },
]


def trainer(base: Path, folder: Path, at_labels: bool, **options):
    """A trainer of either kind on one random model, its B matrices zero as at the start."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = Path("recipes/templates/smollm2.jinja").read_text()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    if at_labels:
        logits_at_labels(model)
    arguments = AxolotlDPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        **options,
    )
    return (DPOAtLabels if at_labels else AxolotlDPOTrainer)(
        model,
        None,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )


def first_step(trained, moved: bool) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, gradients and logged rewards of one batch; moved: after the adapter has changed."""
    torch.manual_seed(2)
    for name, parameter in trained.model.named_parameters():
        if moved and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    batch = next(iter(trained.get_train_dataloader()))
    trained.model.train()
    loss = trained.compute_loss(trained.model, batch)
    loss.backward()
    gradients = {n: p.grad for n, p in trained.model.named_parameters() if p.grad is not None}
    logged = {
        k: v[-1] for k, v in trained._metrics["train"].items() if k.startswith(("re", "logp"))
    }
    return loss.item(), gradients, logged


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": ["sigmoid"]},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], "beta": 0.3},
        {"loss_type": ["ipo"]},
        {"loss_type": ["sigmoid"], "precompute_ref_log_probs": True},
    ],
    ids=["sigmoid", "with sft", "ipo", "precomputed"],
)
def test_loss_gradients_and_rewards_are_those_of_trl(base, tmp_path, options):
    expected = first_step(trainer(base, tmp_path / "trl", False, **options), moved=True)
    found = first_step(trainer(base, tmp_path / "ours", True, **options), moved=True)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert len(found[1]) == 2 * 2 * 7
    for name, gradient in expected[1].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[1][name], gradient, msg=name, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precomputed", [False, True])
def test_the_first_loss_is_ln_2_because_the_reference_is_the_model_itself(
    base, tmp_path, precomputed
):
    ours = trainer(base, tmp_path, True, precompute_ref_log_probs=precomputed)
    loss, _, logged = first_step(ours, moved=False)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert logged["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_a_loss_it_does_not_know_is_an_error(base, tmp_path):
    with pytest.raises(ValueError, match="robust"):
        trainer(base, tmp_path, True, loss_type=["robust"], label_smoothing=0.1)
