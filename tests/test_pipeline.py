"""The spine, for real and in small: train with kill and resume, merge, GGUF, answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import RECIPE, make, script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from medalign import gguf_model
from medalign.artifacts import ROOT, StepError
from medalign.axolotl_plugin import content_key
from medalign.evaluate_format import evaluate
from medalign.recipe import read_yaml, system_prompt

pytestmark = pytest.mark.slow
SHORT = {"max_steps": 10, "save_steps": 2, "micro_batch_size": 1, "learning_rate": 0.003}
CHAT = [
    {"role": "system", "content": system_prompt()},
    {"role": "user", "content": "What is edema?"},
]


def train_command(out, recipe=RECIPE, **overrides) -> list[str]:
    sets = [x for k, v in {**SHORT, **overrides}.items() for x in ("--set", f"{k}={v}")]
    command = [sys.executable, str(ROOT / "scripts/train_adapter.py"), "--recipe", str(recipe)]
    return [*command, "--out", str(out), *sets]


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, data):
    """A run of ten steps that was stopped by Ctrl-C after its first checkpoint and resumed."""
    folder = tmp_path_factory.mktemp("run")
    command = train_command(folder / "adapter")
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job, as CI may be, ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = folder / "adapter.partial/checkpoint-2/trainer_state.json"
    while not state.exists() and os.read(child.stdout.fileno(), 4096):
        pass  # every step says something
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    stopped = {
        "code": child.returncode,
        "errors": errors.decode(),
        "finished": (folder / "adapter").exists(),
        "checkpoints": sorted(p.name for p in (folder / "adapter.partial").glob("checkpoint-*")),
    }
    # A mark in the checkpoint's own log, which only a resumed run carries on.
    checkpoint = sorted((folder / "adapter.partial").glob("checkpoint-*"))[-1]
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["log_history"][0]["loss"] = 123.0
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"folder": folder, "stopped": stopped, "resumed": resumed}


@pytest.fixture(scope="module")
def merged(run):
    done = script(
        "merge_adapter.py",
        "--adapter",
        run["folder"] / "adapter",
        "--out",
        run["folder"] / "merged",
    )
    assert done.returncode == 0, done.stderr
    return run["folder"] / "merged"


@pytest.fixture(scope="module")
def gguf(run, merged):
    out = run["folder"] / "medalign-135m-Q4_K_M.gguf"
    make("setup")
    done = script("export_gguf.py", "--model", merged, "--out", out, "--family", "smollm2-135m")
    assert done.returncode == 0, done.stderr
    return out


def test_ctrl_c_leaves_a_checkpoint_and_nothing_that_looks_finished(run):
    stopped = run["stopped"]
    assert stopped["code"] == 130
    assert not stopped["finished"]
    assert "checkpoint-2" in stopped["checkpoints"]
    assert "interrupted" in stopped["errors"] and "Traceback" not in stopped["errors"]


def test_the_next_run_resumes_and_finishes(run):
    assert run["resumed"].returncode == 0, run["resumed"].stderr
    adapter = run["folder"] / "adapter"
    log = json.loads((adapter / "training.json").read_text())
    assert [round(s["step"]) for s in log["steps"]] == list(range(1, 11))
    assert log["global_step"] == 10 and len(log["sessions"]) == 2
    assert log["steps"][0]["loss"] == 123.0  # carried on, not trained again
    assert {"loss", "ppl", "grad_norm", "learning_rate"} <= set(log["steps"][0])
    assert not list(adapter.glob("checkpoint-*"))
    assert not (run["folder"] / "adapter.partial").exists()


def test_the_adapters_manifest_says_what_it_was_made_of(run):
    facts = json.loads((run["folder"] / "adapter/manifest.json").read_text())
    assert facts["trainable_parameters"] == 9_768_960  # r=32 on the seven linear layers x 30
    assert facts["data"]["train.jsonl"]["rows"]["train"] == 900
    assert facts["data"]["train.jsonl"]["license"] == "apache-2.0"
    assert 1 < facts["peak_gib"] < 64
    assert facts["seed"] == 42 and facts["overrides"]["max_steps"] == 10
    assert {"recipe", "datasets[0].path", "base_model"} <= set(facts["inputs"])
    assert facts["inputs"]["recipe"]["path"] == "recipes/smollm2-135m/sft-lora-cpu.yaml"


def test_only_the_answer_and_its_end_are_trained(run, base):
    """The labels Axolotl made: prompt masked, answer and <|im_end|> not, no BOS of its own."""
    from datasets import load_from_disk

    tokenizer = AutoTokenizer.from_pretrained(base)
    key = content_key(read_yaml(run["folder"] / "adapter/recipe.yaml"))
    prepared = sorted((ROOT / "build/prepared" / key).rglob("dataset_info.json"))
    row = load_from_disk(str(prepared[-1].parent))[0]
    trained = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    masked = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    answer = tokenizer.decode(trained)
    assert answer.startswith("**Definition**:") and answer.rstrip().endswith("<|im_end|>")
    prompt = tokenizer.decode(masked)
    assert prompt.startswith(
        "<|im_start|>system\n" + system_prompt() + "<|im_end|>\n<|im_start|>user\n"
    )
    assert "**Definition**" not in prompt


def test_the_tracker_has_loss_perplexity_gradient_norm_and_learning_rate(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = sorted((run["folder"] / "adapter").rglob("events.out.tfevents*"))
    tags = set()
    for path in events:
        tags |= set(EventAccumulator(str(path)).Reload().Tags()["scalars"])
    assert {"train/loss", "train/ppl", "train/grad_norm", "train/learning_rate"} <= tags


def test_merged_weights_are_base_plus_adapter(run, base, merged):
    """W + (alpha/r) B A, rounded to bf16, in every one of the 210 linear layers."""
    adapter = load_file(run["folder"] / "adapter/adapter_model.safetensors")
    config = json.loads((run["folder"] / "adapter/adapter_config.json").read_text())
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    names = [n.removesuffix(".lora_A.weight") for n in adapter if n.endswith(".lora_A.weight")]
    assert len(names) == 210
    for name in names:
        b, a = adapter[f"{name}.lora_B.weight"].float(), adapter[f"{name}.lora_A.weight"].float()
        key = name.removeprefix("base_model.model.") + ".weight"
        wanted = before[key].float() + config["lora_alpha"] / config["r"] * (b @ a)
        assert torch.allclose(after[key].float(), wanted, rtol=2**-7, atol=1e-4), key
    assert set(before) == set(after)


def test_merged_logits_equal_base_plus_adapter(run, base, merged):
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(merged)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = plain(**batch).logits
        together = PeftModel.from_pretrained(plain, run["folder"] / "adapter")(**batch).logits
        after = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(**batch).logits
    moved, off = (together - before).abs().mean(), (after - together).abs().mean()
    assert moved > 0.5  # the adapter does something
    assert off < 0.03 * moved  # what is left is the rounding of the merged weights to bf16
    agree = (after.argmax(-1) == together.argmax(-1)).float().mean()
    assert agree >= 0.97


def test_the_gguf_loads_tokenizes_as_trained_and_answers(gguf, merged):
    llm = gguf_model.load(gguf)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    answer = gguf_model.ask(llm, CHAT, max_tokens=8)
    assert answer.tokens == 8 and answer.finish_reason == "length" and answer.text
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert answer.prompt_tokens == len(ids)
    assert list(llm.input_ids[: len(ids)]) == ids


def test_a_truncated_gguf_is_one_clear_error_and_no_result(gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[: 10**6])
    with pytest.raises(StepError, match=r"cut\.gguf: llama\.cpp cannot load it"):
        evaluate(cut, tmp_path / "tuned.json", ["test"], system_prompt(), 1)
    assert not (tmp_path / "tuned.json").exists()


def test_evaluation_of_few_prompts_resumes_and_is_deterministic(gguf, tmp_path):
    first = evaluate(gguf, tmp_path / "a.json", ["test"], system_prompt(), 2)
    part = tmp_path / "b.partial.jsonl"
    identity = json.dumps({"model": first["inputs"]["model"]["sha256"], **first["settings"]})
    part.write_text(json.dumps({**first["items"][0], "seconds": 1234.0, "of": identity}) + "\n")
    second = evaluate(gguf, tmp_path / "b.json", ["test"], system_prompt(), 2)
    assert second["items"][0]["seconds"] == 1234.0  # taken over, not asked again
    assert [i["text"] for i in first["items"]] == [i["text"] for i in second["items"]]
    assert not part.exists()


def test_an_unknown_recipe_key_is_one_clear_error(tmp_path, base, data):
    done = subprocess.run(
        train_command(tmp_path / "adapter", learning_rat=1),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "unknown key 'learning_rat', is it 'learning_rate'?" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "adapter").exists()


def test_accelerate_launch_starts_the_recipe_as_well(tmp_path, base, data):
    """The launcher that README names, on the recipe file itself, for one step."""
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu"]
    command += ["-m", "axolotl.cli.train", str(RECIPE.relative_to(ROOT)), "--max_steps=1"]
    command += ["--micro_batch_size=1", f"--output_dir={tmp_path / 'adapter'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "adapter/training.json").read_text())["global_step"] == 1
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
