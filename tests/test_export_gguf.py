"""The GGUF export: what the converter sees, and what quantization may lose."""

from __future__ import annotations

import json

import pytest

from medalign import export_gguf
from medalign.artifacts import ROOT, StepError
from medalign.export_gguf import convert, convertible
from medalign.quantization_loss import MAX_KL, MIN_TOP1, check_loss, fits_in_memory
from medalign.recipe import model

MISTRAL = model("mistral-7b")


@pytest.fixture
def folder(tmp_path):
    """A model folder as far as the view of it goes, with a template of its own."""
    path = tmp_path / "merged"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text('{"chat_template": "stock", "eos_token": "</s>"}')
    (path / "chat_template.jinja").write_text("stock")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.mark.parametrize("sentencepiece", [True, False])
def test_the_converter_sees_our_template_licence_and_no_space_prefix(
    folder, tmp_path, sentencepiece
):
    if sentencepiece:
        (folder / "tokenizer.model").write_bytes(b"pieces")
    with convertible(folder, tmp_path / "view", MISTRAL) as view:
        assert (view / "model.safetensors").read_bytes() == b"weights"
        assert (view / "chat_template.jinja").read_text() == (ROOT / MISTRAL.template).read_text()
        settings = json.loads((view / "tokenizer_config.json").read_text())
        card = (view / "README.md").read_text()
    assert settings.get("add_prefix_space") is (False if sentencepiece else None)
    assert settings["eos_token"] == "</s>" and "chat_template" not in settings
    assert "license: apache-2.0" in card and "mistralai/Mistral-7B-Instruct-v0.3" in card
    assert (folder / "chat_template.jinja").read_text() == "stock"  # the folder is as it was
    assert not list(tmp_path.glob("view*"))


def test_a_model_with_code_of_its_own_is_refused(folder, tmp_path):
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(StepError, match=r"auto_map: code from elsewhere is not run"):
        convert(folder, tmp_path / "x.gguf", "x", MISTRAL)
    assert not (tmp_path / "x.gguf").exists()


def test_a_failing_converter_is_one_line(folder, tmp_path):
    with pytest.raises(StepError, match=r"merged: the GGUF converter failed: \w+"):
        convert(folder, tmp_path / "x.gguf", "x", MISTRAL)


@pytest.mark.parametrize(
    ("kl", "top1", "refused"),
    [
        (MAX_KL * 0.9, MIN_TOP1 + 0.01, False),
        (MAX_KL * 1.1, MIN_TOP1 + 0.01, True),
        (MAX_KL * 0.9, MIN_TOP1 - 0.01, True),
    ],
)
def test_too_much_lost_by_quantization_is_an_error(kl, top1, refused):
    loss = {"tokens": 2052, "kl_mean": kl, "kl_p99": 1.0, "top1": top1}
    if refused:
        with pytest.raises(StepError, match=r"Q2_K is too far from f16: KL .* QUANT="):
            check_loss(loss, "Q2_K")
    else:
        check_loss(loss, "Q2_K")


def test_a_file_larger_than_memory_is_not_measured(tmp_path, monkeypatch):
    (tmp_path / "f16").write_bytes(b"x" * 5000)
    assert fits_in_memory(tmp_path / "f16")
    monkeypatch.setattr(export_gguf.os, "sysconf", lambda name: 64)
    assert not fits_in_memory(tmp_path / "f16")
