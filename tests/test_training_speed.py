"""Faster training is the same training: loss and gradients, whole against at labels only."""

from __future__ import annotations

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from medalign.training_speed import compile_layers, logits_at_labels

PADDING = 3


@pytest.fixture
def model():
    """A random Llama of two layers under LoRA, whose B matrices are not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    tuned = get_peft_model(
        LlamaForCausalLM(config),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    return tuned.train()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows: a prompt of 5 and an answer; the second row ends in padding."""
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (2, 17))
    mask = torch.ones_like(ids)
    mask[1, -PADDING:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, batch, **more) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, **more).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("items", [None, 50, torch.tensor(50)])
def test_loss_and_gradients_are_those_of_the_whole_forward_pass(model, batch, items):
    more = {} if items is None else {"num_items_in_batch": items}
    expected, gradients = loss_and_gradients(model, batch, **more)
    logits_at_labels(model)
    loss, found = loss_and_gradients(model, batch, **more)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert len(found) == len(gradients) == 2 * 2 * 7
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_the_head_sees_only_the_positions_that_are_trained(model, batch):
    seen = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    logits_at_labels(model)
    model(**batch)
    assert seen == [((batch["labels"][:, 1:] != -100).sum().item(), 300)]


def test_without_labels_or_in_evaluation_the_logits_are_whole(model, batch):
    logits_at_labels(model)
    without = {key: value for key, value in batch.items() if key != "labels"}
    assert model(**without).logits.shape == (2, 17, 300)
    model.eval()
    result = model(**batch)
    assert result.logits.shape == (2, 17, 300)
    assert result.loss > 0


def test_a_batch_without_any_label_gives_zero_and_no_nan(model, batch):
    logits_at_labels(model)
    loss, _ = loss_and_gradients(model, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert loss == 0


def test_the_trainer_still_finds_the_columns_it_keeps(model):
    before = list(inspect.signature(model.get_base_model().forward).parameters)
    logits_at_labels(model)
    assert list(inspect.signature(model.get_base_model().forward).parameters) == before
    assert "input_ids" in before


@pytest.mark.slow
def test_compiled_layers_compute_the_same_and_keep_their_names(model, batch):
    expected, gradients = loss_and_gradients(model, batch)
    names = list(model.state_dict())
    compile_layers(model)
    loss, found = loss_and_gradients(model, batch)
    assert loss == pytest.approx(expected, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, msg=name, rtol=1e-3, atol=1e-5)
    assert list(model.state_dict()) == names
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    loss_and_gradients(model, {key: value[:, :-1] for key, value in batch.items()})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled  # any length
