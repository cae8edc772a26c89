"""A long run goes on with the same rows and the same loss, keeps the disk free, ends when lost."""

from __future__ import annotations

import types
from itertools import chain

import pytest
import torch
from tiny_runs import DPO, SFT, TOLERANCE, TinyRuns
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from medalign.artifacts import StepError
from medalign.long_runs import WINDOW, DataOrder, StopWhenLost, lost
from medalign.recipe import all_recipes, read_yaml

FLAT = [{"loss": 1.0, "grad_norm": 0.5}] * WINDOW


def after(*losses: float, **more) -> list[dict[str, float]]:
    return [*FLAT, *({"loss": loss, "grad_norm": 0.5, **more} for loss in losses)]


# ---- lost


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_or_gradient_that_is_not_finite_is_lost_at_once(value):
    assert lost([{"loss": value}], None, False) == f"loss is {value}"
    assert lost(after(1.0, grad_norm=value), 3.0, False) == f"grad_norm is {value}"
    assert lost(after(1.0, grad_norm=value), 3.0, True) is None  # fp16's scaler leaves it out
    assert lost([{"loss": value}], None, True) == f"loss is {value}"


def test_a_loss_is_lost_when_its_mean_has_grown_so_many_times():
    assert "loss is 7.1, the first 5 logged were 1" in lost(after(*[7.1] * WINDOW), 7.0, False)
    assert lost(after(*[6.9] * WINDOW), 7.0, False) is None
    assert lost(after(*[7.1] * WINDOW), None, False) is None
    assert lost(after(1, 1, 29.0, 1, 1), 7.0, False) is None  # one batch is not a trend
    assert lost(after(*[3.5] * WINDOW), 3.0, False) is None  # other rows, not another model
    assert lost(after(*[7.1] * WINDOW), 3.0, False)
    assert lost(after(*[99.0] * (WINDOW - 1)), 3.0, False) is None  # nothing to compare with
    below = [{"loss": -1.0}] * WINDOW + [{"loss": 9.0}] * WINDOW
    assert lost(below, 3.0, False) is None  # a loss that may be negative has no multiple


def test_the_error_names_step_checkpoint_and_what_to_do(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    arguments = types.SimpleNamespace(output_dir=str(tmp_path), fp16=False)
    history = after(float("nan"))
    state = types.SimpleNamespace(log_history=history, global_step=11)
    with pytest.raises(StepError, match=r"step 11: loss is nan; .*checkpoint-10; lower learning"):
        StopWhenLost(3.0).on_log(arguments, state, None)
    state.log_history = [*history, {"eval_loss": 1.0}]  # said once, by the step itself
    StopWhenLost(3.0).on_log(arguments, state, None)


# ---- the order of rows


def orders(epoch: float, processes: int, batch: int, accumulated: int) -> list[int]:
    lengths = torch.randint(5, 50, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGroupedSampler(batch * accumulated, lengths=lengths)
    loader = DataLoader(range(64), batch_size=batch, sampler=sampler)
    arguments = types.SimpleNamespace(
        seed=42,
        data_seed=None,
        train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        world_size=processes,
    )
    state = types.SimpleNamespace(epoch=epoch)
    DataOrder().on_epoch_begin(arguments, state, None, train_dataloader=loader)
    return list(sampler)


def test_rows_come_in_the_order_of_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = orders(0, 1, 2, 4)
    torch.manual_seed(2)
    assert orders(0, 1, 2, 4) == first == orders(0, 4, 2, 1)
    second = orders(1.0, 1, 2, 4)
    assert second != first and sorted(second) == sorted(first)
    assert orders(1.4, 1, 2, 4) == second  # resumed in the middle


# ---- disk


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda p: p.stem)
def test_every_recipe_keeps_one_checkpoint_and_resumes_from_it(recipe):
    config = read_yaml(recipe)
    assert config["save_total_limit"] == 1 and config["save_steps"] > 0
    assert config.get("auto_resume_from_checkpoints") or config["max_steps"] <= config["save_steps"]


# ---- real runs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, base, data):
    return TinyRuns(tmp_path_factory.mktemp("long"), base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "keys"),
    [(SFT, {}), (SFT, {"group_by_length": False}), (DPO, {})],
    ids=["sft, by length", "sft, random", "dpo"],
)
def test_a_run_killed_in_its_second_epoch_goes_on_with_the_same_rows_and_loss(
    tiny, request, recipe, keys
):
    name = request.node.callspec.id
    whole = tiny.train(f"{name} whole", recipe, **keys)
    assert whole.code == 0, whole.errors
    killed = tiny.train(name, recipe, fault="6:0:kill", **keys)
    assert killed.code == 1 and killed.checkpoints == ["checkpoint-4"]
    resumed = tiny.train(name, recipe, **keys)
    assert resumed.code == 0, resumed.errors
    again = {line["step"] for line in resumed.rows if line["session"]}
    assert again == {5, 6}  # of 3 steps an epoch
    ids = [line["rows"] for line in whole.rows]
    assert [line["rows"] for line in resumed.rows if line["session"]] == ids[2 * 4 :]
    first, second = sorted(chain(*ids[:6])), sorted(chain(*ids[6:]))
    assert first == second and ids[:6] != ids[6:]  # each epoch all rows, in its own order
    assert resumed.losses == pytest.approx(whole.losses, abs=TOLERANCE)
    assert max(line["checkpoints"] for line in whole.rows) == 1


@pytest.mark.slow
def test_a_loss_of_nan_ends_the_run_and_its_step_is_not_saved(tiny):
    run = tiny.train("nan", fault="4:0:nan")
    assert run.code == 1 and not (run.folder / "adapter").exists()
    assert "StepError: step 4: loss is nan; stopped before saving it" in run.errors
    assert run.checkpoints == ["checkpoint-2"] and "checkpoint-2; lower" in run.errors
    assert run.errors.count("\n") == 1


@pytest.mark.slow
def test_a_loss_that_grows_ends_the_run(tiny):
    run = tiny.train("wild", fault="6:0:huge", num_epochs=5)
    assert run.code == 1 and not (run.folder / "adapter").exists()
    assert "StepError: step 10: loss is" in run.errors and "(diverged_at 3)" in run.errors
    assert run.checkpoints == ["checkpoint-8"] and "checkpoint-8; lower" in run.errors
