"""Many processes train as one does, fail as one, and the table of recipes says what is checked."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from tiny_runs import DPO, SFT, TOLERANCE, TinyRuns

from medalign import check_recipe
from medalign.artifacts import StepError
from medalign.distributed import ACCELERATE, sharding_faults, shared_out, zero_stage
from medalign.recipe import all_recipes, read_yaml
from medalign.run_axolotl import reason

FOLDER = ROOT / "recipes/distributed"
WAYS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
A100 = ROOT / "recipes/mistral-7b/sft-qlora-a100.yaml"


def laid_over(recipe: Path, way: str, **keys) -> dict:
    return {**read_yaml(recipe), **read_yaml(FOLDER / f"{way}.yaml"), **keys}


# ---- the batch shared out


@pytest.mark.parametrize(
    ("batch", "processes", "expected"),
    [
        ((2, 8), 1, (2, 8)),
        ((2, 8), 4, (2, 2)),
        ((2, 4), 8, (1, 1)),
        ((4, 1), 2, (2, 1)),
        ((6, 4), 6, (2, 2)),
    ],
)
def test_the_global_batch_stays(batch, processes, expected):
    config = {"micro_batch_size": batch[0], "gradient_accumulation_steps": batch[1], "seed": 1}
    found = shared_out(config, processes)
    assert (found["micro_batch_size"], found["gradient_accumulation_steps"]) == expected
    assert expected[0] * expected[1] * processes == batch[0] * batch[1] and found["seed"] == 1


@pytest.mark.parametrize("processes", [3, 16, 0])
def test_a_batch_that_cannot_be_shared_is_an_error_that_says_what_can(processes):
    config = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}
    with pytest.raises(StepError, match="batch of 2 x 4 rows; take a number that divides 8"):
        shared_out(config, processes)


# ---- which recipe takes which way


def table() -> dict[tuple[str, str], bool]:
    """README's table: (recipe, way) → valid."""
    rows = re.findall(r"^\| `([\w/-]+)` \|(.*)\|$", (FOLDER / "README.md").read_text(), re.M)
    return {
        (recipe, way): cell.split()[0] == "yes"
        for recipe, cells in rows
        for way, cell in zip(WAYS, cells.split("|"), strict=True)
    }


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda p: p.stem)
def test_the_table_says_what_the_checks_say(recipe):
    told = table()
    name = f"{recipe.parent.name}/{recipe.stem}"
    found = {way: check_recipe.faults(recipe, laid_over(recipe, way), 2) for way in WAYS}
    assert {way: not faults for way, faults in found.items()} == {
        way: told[name, way] for way in WAYS
    }, found


def test_each_refusal_names_its_own_reason_and_is_lifted_by_what_it_asks_for():
    def refused(way, recipe=A100, **keys):
        return list(sharding_faults(laid_over(recipe, way, **keys), gpu=True))

    t4 = ROOT / "recipes/mistral-7b/sft-lora-t4.yaml"
    packed = {"bnb_config_kwargs": {"bnb_4bit_quant_storage": "float16"}}
    for way in ("zero3", "fsdp2"):
        assert "packed into bfloat16 and computed in float16" in refused(way, t4)[0]
        assert refused(way, t4, **packed) == []
        assert "packed into float16 and computed in bfloat16" in refused(way, **packed)[0]
    plain = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert "use_reentrant: true" in refused("zero3", **plain)[0]
    assert refused("zero2", **plain) == []
    dpo = ROOT / "recipes/mistral-7b/dpo-a100.yaml"
    at_once = {"precompute_ref_log_probs": False}
    assert "adapter off; write true" in refused("zero3", dpo, **at_once)[0]
    assert "before FSDP" in refused("fsdp2", dpo)[0] and refused("fsdp2", dpo, **at_once) == []


def test_axolotl_refuses_8_bit_adam_and_loading_on_one_rank_under_fsdp2():
    fsdp = {**read_yaml(FOLDER / "fsdp2.yaml")["fsdp_config"], "cpu_ram_efficient_loading": True}
    for keys, said in (
        ({"optimizer": "adamw_bnb_8bit"}, "FSDP2 not compatible with"),
        ({"fsdp_config": fsdp}, "cpu_ram_efficient_loading"),
    ):
        found = check_recipe.faults(A100, laid_over(A100, "fsdp2", **keys), 2)
        assert len(found) == 1 and said in found[0], found


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_takes_the_files(stage):
    config = read_yaml(FOLDER / f"zero{stage}.yaml")
    assert zero_stage(config) == stage
    deepspeed = pytest.importorskip("deepspeed", reason="make setup EXTRAS=gpu installs it")
    from deepspeed.runtime.config import DeepSpeedConfig

    content = json.loads((ROOT / config["deepspeed"]).read_text())
    for part in (content, content["zero_optimization"], content["bf16"], content["fp16"]):
        for key in [key for key, value in part.items() if value == "auto"]:
            del part[key]
    content |= {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4}
    assert deepspeed and DeepSpeedConfig(content).zero_config.stage == stage
    content["zero_optimization"]["overlap_com"] = True
    with pytest.raises(ValueError, match="overlap_com"):
        DeepSpeedConfig(content)


def test_a_missing_deepspeed_file_is_an_error():
    with pytest.raises(StepError, match=r"zero4\.json is no DeepSpeed configuration"):
        zero_stage({"deepspeed": "recipes/distributed/zero4.json"})


def test_accelerate_reads_its_file():
    config = load_config_from_file(str(ROOT / ACCELERATE))
    assert config.distributed_type == "MULTI_GPU" and config.num_processes == 2


# ---- one line for a failure of many


KILLED = b"""
[rank0]: RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:2114
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_22:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4712)
  traceback : Signal 9 (SIGKILL) received by PID 4712
"""


def test_the_process_that_was_killed_is_named_not_those_that_miss_it():
    assert reason(KILLED).startswith("process 1 was ended by SIGKILL, out of memory?")


def test_the_error_of_a_process_is_told_not_the_launchers():
    text = KILLED.replace(b"exitcode  : -9", b"exitcode  : 1")
    assert reason(text) == "RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:2114"
    assert reason(b"subprocess.CalledProcessError: x") == "subprocess.CalledProcessError: x"
    assert reason(b"") == "no message"


# ---- two processes on a CPU, over gloo


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, base, data):
    return TinyRuns(tmp_path_factory.mktemp("distributed"), base)


@pytest.fixture(scope="module")
def alone(tiny):
    run = tiny.train("alone")
    assert run.code == 0, run.errors
    return run


def same_curve(found, expected):
    assert len(found.losses) == len(expected.losses) == 6
    assert found.losses == pytest.approx(expected.losses, abs=TOLERANCE)
    steps = expected.losses
    assert min(abs(a - b) for a, b in pairwise(steps)) > 10 * TOLERANCE


def shares(run):
    """Two processes had half of each step's rows each, and no row twice."""
    for rows in run.by_step().values():
        assert len(rows) == len(set(rows)) == 4
    assert {line["process"] for line in run.rows} == {"rank-0", "rank-1"}
    assert all(len(line["rows"]) == 2 for line in run.rows) and len(run.rows) == 2 * 6


@pytest.mark.slow
def test_two_processes_train_as_one(tiny, alone):
    together = tiny.train("together", more=("--processes", "2"))
    assert together.code == 0, together.errors
    same_curve(together, alone)
    shares(together)
    assert together.by_step() == alone.by_step()


@pytest.mark.slow
def test_two_processes_align_as_one_by_accelerate_launch(tiny):
    one = tiny.train("dpo-alone", DPO)
    two = tiny.train("dpo", DPO, more=("--processes", "2", "--launcher", "accelerate"))
    assert one.code == two.code == 0, one.errors + two.errors
    same_curve(two, one)


@pytest.mark.slow
def test_a_killed_process_ends_all_with_its_name_and_the_next_run_goes_on(tiny, alone):
    killed = tiny.train("killed", fault="4:1:kill", more=("--processes", "2"))
    assert killed.code == 1 and "process 1 was ended by SIGKILL" in killed.errors
    assert killed.errors.count("\n") == 1 and not (killed.folder / "adapter").exists()
    assert killed.checkpoints == ["checkpoint-2"]
    resumed = tiny.train("killed", more=("--processes", "2"))
    assert resumed.code == 0, resumed.errors
    same_curve(resumed, alone)
    assert resumed.by_step() == alone.by_step()
    assert min(line["step"] for line in resumed.rows if line["session"]) == 3


def test_the_tiny_runs_are_of_recipes_that_exist():
    assert {SFT, DPO} <= set(all_recipes())
