"""The Modelfile: rendered, parsed strictly, and wrong ones refused with their line."""

from __future__ import annotations

import pytest

from medalign.artifacts import ROOT, StepError
from medalign.recipe import MODELS, all_recipes, model, read_yaml, system_prompt
from medalign.write_modelfile import check, parse, render, write

RECIPE = ROOT / "recipes/smollm2-135m/sft-lora-cpu.yaml"


@pytest.fixture
def good(tmp_path):
    gguf = tmp_path / "medalign-135m-Q4_K_M.gguf"
    gguf.write_bytes(b"GGUF")
    write(gguf, RECIPE, tmp_path / "Modelfile")
    return tmp_path / "Modelfile"


def test_a_written_modelfile_is_valid_and_complete(good):
    found = {i.keyword: i.argument for i in check(good)}
    assert found["FROM"] == "./medalign-135m-Q4_K_M.gguf"
    assert found["SYSTEM"] == system_prompt()
    stops = [i.argument for i in check(good) if i.argument.startswith("stop")]
    assert stops == ['stop "<|im_end|>"']


@pytest.mark.parametrize("family", list(read_yaml(MODELS)))
def test_every_family_renders_a_valid_modelfile(tmp_path, family):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "Modelfile").write_text(render(model(family), "./x.gguf"))
    check(tmp_path / "Modelfile")


def test_the_root_modelfile_is_the_mistral_familys():
    assert ROOT / "recipes/mistral-7b/sft-lora-t4.yaml" in all_recipes()
    run = "./runs/mistral-7b/sft-lora-t4/medalign-7b-Q4_K_M.gguf"
    assert (ROOT / "Modelfile").read_text() == render(model("mistral-7b"), run)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FROM ./medalign", "FORM ./medalign", r"Modelfile:2: unknown instruction FORM"),
        ("FROM ./medalign", "FROM ./other", r"FROM names ./other"),
        ('TEMPLATE """', 'TEMPLATE """<s>', r"BOS token"),
        (".Messages", ".Nothing", r"no place for the system prompt"),
        ("You are MedAlign", "You are a doctor", r"SYSTEM is not data/system_prompt.txt"),
        ("PARAMETER temperature 0", "PARAMETER temprature 0", r"unknown parameter temprature"),
        ("PARAMETER num_ctx 4096", "PARAMETER num_ctx many", r"num_ctx is int, not 'many'"),
        ("PARAMETER temperature 0", "SYSTEM twice", r"a second SYSTEM"),
        ("PARAMETER temperature 0", "PARAMETER", r"not an instruction|says nothing"),
        ("apache-2.0", "apache\x07-2.0", r"a character that Ollama drops"),
        ('SYSTEM """', 'SYSTEM ""', r"SYSTEM|not an instruction"),
    ],
)
def test_a_broken_modelfile_is_refused_with_its_fault(good, old, new, message):
    text = good.read_text()
    assert old in text
    good.write_text(text.replace(old, new, 1))
    with pytest.raises(StepError, match=message):
        check(good)


def test_an_unclosed_block_names_its_line():
    with pytest.raises(StepError, match=r'Modelfile:2: SYSTEM has no closing """'):
        parse('FROM ./x.gguf\nSYSTEM """never ends\nmore\n')
