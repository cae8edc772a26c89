"""The Makefile's graph: what is finished stays, what is missing and what follows is made."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import make

from medalign.artifacts import ROOT

RUN = "runs/smollm2-135m/sft-lora-cpu"
GGUF = f"{RUN}/medalign-135m-Q4_K_M.gguf"
# Every file of a finished demo, in the order in which it is made.
FINISHED = [
    ".venv/.ready",
    "build/llama.cpp/VERSION",
    "build/models/smollm2-135m-instruct/manifest.json",
    "build/data/education/manifest.json",
    f"{RUN}/adapter/manifest.json",
    f"{RUN}/merged/manifest.json",
    GGUF,
    f"{RUN}/Modelfile",
    "build/models/smollm2-135m-instruct-Q4_K_M.gguf",
    f"{RUN}/eval/tuned.json",
    "build/eval/smollm2-135m-Q4_K_M-base.json",
    f"{RUN}/eval/base.json",
    f"{RUN}/report.html",
]


@pytest.fixture
def finished(tmp_path):
    """A copy of the repository's sources with the files of a finished demo, empty."""
    for name in ("recipes", "data", "evals", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for path in tmp_path.rglob("*"):
        os.utime(path, (1_000_000, 1_000_000))
    for i, name in enumerate(FINISHED):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (2_000_000 + i, 2_000_000 + i))
    return tmp_path


def planned(folder, *arguments: str) -> list[str]:
    """The scripts that make would run, in order."""
    arguments = (*arguments, "RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml")
    done = make("-n", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "scripts/" in line]
    return [line.split("scripts/")[1].split()[0] for line in lines]


def test_a_second_demo_only_shows_the_result(finished):
    done = make("-n", "demo", "RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml", cwd=finished)
    assert planned(finished, "demo") == ["build_report.py"]
    assert "--show" in done.stdout


def test_a_deleted_gguf_is_made_again_with_what_follows_and_nothing_before(finished):
    (finished / GGUF).unlink()
    assert planned(finished, "demo") == [
        "export_gguf.py", "evaluate_format.py", "write_modelfile.py", "build_report.py",
        "build_report.py",
    ]  # fmt: skip


def test_a_changed_data_row_rebuilds_from_the_data_on(finished):
    os.utime(finished / "data/education/train.jsonl", (3_000_000, 3_000_000))
    assert planned(finished, "gguf") == [
        "build_sft.py", "train_adapter.py", "merge_adapter.py", "export_gguf.py",
        "write_modelfile.py",
    ]  # fmt: skip


def test_a_changed_recipe_trains_again_on_the_same_data(finished):
    recipe = finished / "recipes/smollm2-135m/sft-lora-cpu.yaml"
    os.utime(recipe, (3_000_000, 3_000_000))
    assert planned(finished, "sft") == ["train_adapter.py"]


def test_another_seed_trains_into_a_run_of_its_own(finished):
    done = make(
        "-n", "sft", "SEED=7", "RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml", cwd=finished
    )
    assert f"--out {RUN}-seed7/adapter --set seed=7" in done.stdout
    assert "build_sft.py" not in done.stdout


def test_another_quantization_is_another_file(finished):
    assert "export_gguf.py" in planned(finished, "gguf", "QUANT=Q8_0")
    assert "train_adapter.py" not in planned(finished, "gguf", "QUANT=Q8_0")


def test_help_names_every_target_with_what_it_does():
    lines = make("help").stdout.splitlines()[1:]
    promised = [
        "setup",
        "demo",
        "test",
        "test-fast",
        "lint",
        "data",
        "sft",
        "merge",
        "gguf",
        "ollama",
        "eval",
        "report",
        "help",
    ]
    assert set(promised) <= {line.split()[0] for line in lines}
    assert all(len(line.split()) >= 3 for line in lines)


def test_dpo_trains_the_preference_recipe_on_the_stages_before_it(finished):
    """As make would: the teacher is there, SFT on the pairs and DPO are not."""
    done = make("-n", "dpo", cwd=finished)
    assert done.returncode == 0, done.stderr
    first = done.stdout.index("--recipe recipes/smollm2-135m/sft-safety-cpu.yaml")
    assert first < done.stdout.index("--recipe recipes/smollm2-135m/dpo-lora-cpu.yaml")
    assert "build_pairs.py" in done.stdout
    assert "evaluate_safety.py" in done.stdout and "dpo_report.py" in done.stdout
    assert "--recipe recipes/smollm2-135m/sft-lora-cpu.yaml" not in done.stdout


def test_a_later_round_goes_on_from_the_one_before_on_its_answers(finished):
    recipe = "RECIPE=recipes/smollm2-135m/dpo-lora-cpu.yaml"
    told = make("-n", "sft", recipe, "ROUND=2", cwd=finished).stdout
    assert "sample_pairs.py --model runs/smollm2-135m/dpo-lora-cpu/medalign-135m" in told
    assert "--set base_model=runs/smollm2-135m/dpo-lora-cpu/merged" in told
    assert "--out runs/smollm2-135m/dpo-lora-cpu/round-2/adapter" in told


def test_a_variant_is_laid_over_in_a_run_of_its_own(finished):
    recipe = "RECIPE=recipes/smollm2-135m/dpo-lora-cpu.yaml"
    told = make("-n", "sft", recipe, "OVERLAY=recipes/variants/ipo.yaml", cwd=finished).stdout
    assert "dpo-lora-cpu-ipo/adapter --overlay recipes/variants/ipo.yaml" in told
