"""The bench compares like with like, and says so where it cannot."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import yaml

from medalign import bench_systems, bench_training
from medalign.artifacts import ROOT, StepError, read_jsonl
from medalign.bench_systems import (
    SYSTEMS,
    llamafactory_arguments,
    llamafactory_dataset,
    lora_arguments,
    medalign_overrides,
    schedule,
    trl_arguments,
)
from medalign.bench_tables import apart, gguf_table, plot, ratio, summary, table
from medalign.bench_training import check_log, one_run, speeds, utilisation
from medalign.held_out_loss import preference, supervised
from medalign.recipe import read_yaml
from medalign.step_log import counts
from medalign.utilisation import matrix_parameters, training_flops

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
LORA = 9_768_960


@pytest.fixture(params=["sft", "dpo"])
def config(request):
    shared = {"max_steps": 20, "warmup_steps": 2, "seed": 7}
    return read_yaml(ROOT / bench_systems.STAGES[request.param]) | shared


def test_steps_default_to_the_recipes_epochs(monkeypatch, tmp_path):
    rows = [{"id": str(i)} for i in range(1231)]
    monkeypatch.setattr(bench_systems, "read_jsonl", lambda path: rows)
    whole = bench_systems.bench_config("dpo", None, 1, tmp_path)
    assert (whole["max_steps"], whole["warmup_steps"], whole["seed"]) == (154, 15, 1)
    assert "test_datasets" not in whole
    part = bench_systems.bench_config("dpo", 30, 2, tmp_path)
    drawn = read_jsonl(Path(part["datasets"][0]["path"]))
    assert part["max_steps"] == 30 and len({row["id"] for row in drawn}) == 30 * 8
    again = bench_systems.bench_config("dpo", 30, 3, tmp_path)
    assert read_jsonl(Path(again["datasets"][0]["path"])) != drawn
    more = bench_systems.bench_config("dpo", 400, 2, tmp_path)  # than an epoch: all rows
    assert more["max_steps"] == 400 and more["datasets"] == whole["datasets"]


def test_the_competitors_arguments_are_the_recipes(config):
    trl = trl_arguments(config, "fp32")
    assert trl["learning_rate"] == config["learning_rate"]
    assert trl["per_device_train_batch_size"] == config["micro_batch_size"]
    assert trl["gradient_accumulation_steps"] == config["gradient_accumulation_steps"]
    assert (trl["max_steps"], trl["warmup_steps"], trl["seed"]) == (20, 2, 7)
    assert trl["use_cpu"] and not trl["gradient_checkpointing"] and not trl["bf16"]
    assert trl_arguments(config, "bf16")["bf16"]
    if config.get("rl") == "dpo":
        assert trl["loss_type"] == ["sigmoid", "sft"] and trl["loss_weights"] == [1.0, 0.3]
    lora = lora_arguments(config)
    assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (32, 32, 0.0)
    theirs = llamafactory_arguments(config, Path("x"), "bf16")
    assert schedule(config).items() <= theirs.items()
    assert (theirs["lora_rank"], theirs["lora_alpha"], theirs["lora_target"]) == (32, 32, "all")
    assert theirs["disable_gradient_checkpointing"] and not theirs["packing"] and theirs["bf16"]


def test_trl_knows_the_arguments(config):
    from dataclasses import fields

    from trl import DPOConfig, SFTConfig

    known = {f.name for f in fields(DPOConfig if config.get("rl") == "dpo" else SFTConfig)}
    assert set(trl_arguments(config, "bf16")) <= known


def test_our_run_is_the_recipe_but_for_what_is_shared(config):
    changed = dict(pair.split("=", 1) for pair in medalign_overrides(config, Path("/x")))
    read = {key: yaml.safe_load(value) for key, value in changed.items()}
    shared = {"datasets", "num_epochs", "max_steps", "warmup_steps", "seed"}
    allowed = {*shared, "plugins", *bench_systems.LEFT_OUT}
    assert set(read) - allowed <= {"dataset_prepared_path"}
    assert read["plugins"][:-1] == config["plugins"] and read["max_steps"] == 20
    assert read["warmup_ratio"] is None


def test_llamafactory_reads_the_recipes_rows():
    rows = llamafactory_dataset(read_yaml(ROOT / bench_systems.STAGES["sft"]))["rows"]
    assert rows["file_name"].endswith("build/data/education/train.jsonl")
    assert rows["columns"] == {"messages": "messages"}
    assert rows["tags"]["assistant_tag"] == "assistant"


def test_padding_is_no_token():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, -100, 7]])
    batch = {"input_ids": mask, "attention_mask": mask, "labels": labels}
    assert counts(batch) == {"tokens": 7, "positions": 8, "trained": 3}
    del batch["labels"]
    batch["completion_mask"] = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    assert counts(batch)["trained"] == 3


def test_flops_of_the_embedded_model():
    decoder, head = matrix_parameters(SMOLLM2)
    assert decoder + head == 134_515_008 - 61 * 576  # all but the norms; the head is the embedding
    plain = training_flops(SMOLLM2, LORA, 1000, 600, 0.0, reference=False)
    assert plain == 1000 * (4 * decoder + 6 * LORA) + 600 * 4 * head
    longer = training_flops(SMOLLM2, LORA, 1000, 600, 300.0, reference=False)
    assert longer - plain == 1000 * 6 * 30 * 9 * 64 * 300
    assert training_flops(SMOLLM2, LORA, 1000, 600, 300.0, reference=True) > 1.4 * longer


def log(steps=4, seconds=2.0, first=10.0):
    """A log of `steps` steps of two batches of 80 real tokens; the first step takes longer."""
    batch = {"tokens": 80, "positions": 100, "trained": 50}
    return {
        "began": 0.0,
        "step_ends": [first + seconds * i for i in range(steps)],
        "accumulated": 2,
        "batches": [batch] * 2 * steps,
        "losses": [2.0 - 0.1 * i for i in range(steps)],
        "trainable": LORA,
        "bf16": True,
        "peak_gib": 3.0,
    }


def test_speeds_whole_and_steady():
    found = speeds(log(), wall=32.0)
    assert found["whole_tokens_per_second"] == 640 / 32
    assert found["steady_seconds"] == 4.0 and found["steady_tokens"] == 320
    assert found["steady_tokens_per_second"] == 80
    assert found["padding"] == pytest.approx(0.2)
    assert found["training_loss"] == pytest.approx(1.7)
    many = speeds(log(steps=20), wall=60.0)
    assert many["steady_seconds"] == 30.0 and many["steady_tokens"] == 15 * 160


def test_utilisation_is_of_the_peak_in_the_same_dtype():
    found = {"stage": "sft", "dtype": "bf16", "steady_rows": 16, **speeds(log(), wall=32.0)}
    peaks = {"bf16": 2e12, "fp32": 1e11}
    needed = training_flops(SMOLLM2, LORA, 320, 200, 20.0, reference=False)
    assert utilisation(found, SMOLLM2, peaks) == pytest.approx(needed / 4.0 / 2e12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step_ends": [1.0]}, "steps"),
        ({"bf16": False}, "fp32"),
        ({"accumulated": 1}, "accumulated"),
        ({"losses": [1.0]}, "its log"),
    ],
)
def test_a_training_of_something_else_is_an_error(change, says):
    config = {"max_steps": 4, "gradient_accumulation_steps": 2}
    check_log(log(), config, "trl-bf16")
    with pytest.raises(StepError, match=says):
        check_log(log() | change, config, "trl-bf16")


def test_a_system_that_fails_is_an_error_and_no_empty_row(tmp_path, monkeypatch, config):
    failing = [sys.executable, "-c", "import sys; sys.exit('it broke')"]
    monkeypatch.setattr(bench_training, "command", lambda *_: failing)
    with pytest.raises(StepError, match=r"(?s)trl-fp32 ended with 1: it broke"):
        one_run("sft", "trl-fp32", config, tmp_path / "run")
    monkeypatch.setattr(bench_training, "command", lambda *_: [sys.executable, "-c", ""])
    with pytest.raises(StepError, match="saved none"):
        one_run("sft", "trl-fp32", config, tmp_path / "run")


def runs(system, speed, losses, seeds=(42, 1, 2)):
    return [
        {
            "system": system,
            "round": i,
            "seed": seed,
            "whole_seconds": 100.0,
            "whole_tokens_per_second": speed * (1 + i),
            "steady_tokens_per_second": 2 * speed * (1 + i),
            "utilisation": 0.5,
            "padding": 0.1,
            "peak_gib": 2.0,
            "training_loss": 1.0,
            "held_out_loss": loss,
        }
        for i, (seed, loss) in enumerate(zip(seeds, losses, strict=True))
    ]


def test_ratios_are_of_the_same_round():
    first, other = runs("a", 30, [1, 1, 1]), runs("b", 10, [1, 1, 1])
    assert ratio(first, other, "whole_tokens_per_second") == 3.0
    other[2]["whole_tokens_per_second"] = 1.0  # one disturbed run decides nothing
    assert ratio(first, other, "whole_tokens_per_second") == 3.0


def test_losses_beyond_the_noise_are_flagged(tmp_path):
    ours, near = runs("medalign", 30, [1.00, 1.02, 1.04]), runs("near", 10, [1.01, 1.03, 1.05])
    far = runs("far", 20, [1.20, 1.22, 1.24])
    rows = summary(ours + near + far)
    assert [row["flag"] for row in rows.values()] == [False, False, True]
    text = table(rows)
    assert "3.00 × as fast" in text and text.count("BEYOND NOISE") == 1
    assert len({line.count("|") for line in text.splitlines()}) == 1
    plot({"sft": rows}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_noise_needs_three_seeds_that_differ():
    assert apart([1.0], [2.0]) is None
    assert apart([1.0] * 3, [2.0] * 3) == math.inf
    assert apart([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == 0
    same = summary(runs("a", 1, [1, 1, 1], (42, 42, 42)) + runs("b", 1, [9, 9, 9], (42, 42, 42)))
    assert same["b"]["apart"] is None and not same["b"]["flag"]


def test_held_out_losses():
    assert supervised([(-30.0, 10), (-10.0, 10)]) == 2.0
    config = {"rl_beta": 0.1, "dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1.0, 0.3]}
    untrained = preference(config, [(-20.0, 10)], [(-30.0, 10)], [(-20.0, -30.0)])
    assert untrained == pytest.approx(math.log(2) + 0.3 * 2.0)
    better = preference(config, [(-20.0, 10)], [(-50.0, 10)], [(-20.0, -30.0)])
    assert better == pytest.approx(math.log1p(math.exp(-2.0)) + 0.6)
    with pytest.raises(ValueError, match="ipo"):
        preference({**config, "dpo_loss_type": ["ipo"]}, [(-1.0, 1)], [(-1.0, 1)], [(-1.0, -1.0)])


def test_gguf_ratios():
    rounds = [
        {
            "medalign": {"prompt": 500.0, "generated": 90.0},
            "llama-bench": {"prompt": 400.0, "generated": 100.0},
        }
    ]
    assert "1.25 × and 0.90 × as fast" in gguf_table(rounds)


def test_every_stage_begins_with_medalign():
    assert all(systems[0] == "medalign" for systems in SYSTEMS.values())
