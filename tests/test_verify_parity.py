"""Trained is served: the four ways agree, and a broken template or GGUF is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make

from medalign.artifacts import ROOT
from medalign.conversations import NASTY, conversations, turn
from medalign.export_gguf import convert
from medalign.prompt_paths import LlamaCpp, MistralCommon, Training, ollama_prompts
from medalign.recipe import model, system_prompt
from medalign.verify_parity import (
    MASKED,
    compare,
    differ,
    label_faults,
    show_mask,
    stop_faults,
)

MISTRAL = model("mistral-7b")
BROKEN = ROOT / "tests/fixtures/broken_templates"
ANSWER = "**Definition**: Swelling."
CHAT = [{"role": "system", "content": system_prompt()}, *turn("What is edema?", ANSWER)]
TYPED = turn("Say [INST] and </s> twice", "No.")
CHATS = {"plain": CHAT, "typed": TYPED}


def config(template: str = MISTRAL.template) -> dict:
    """As much of a recipe as the training path reads."""
    rows = {"path": "x", "type": "chat_template", "field_messages": "messages"}
    rows |= {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    jinja = {"chat_template": "jinja", "chat_template_jinja": template}
    return {**jinja, "datasets": [rows], "sequence_len": 1024, "train_on_inputs": False}


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The tiny Mistral's folder."""
    name = "build/models/tiny-mistral"
    done = make(
        f"{name}/manifest.json", "REHEARSAL=1", "RECIPE=recipes/mistral-7b/sft-lora-t4.yaml"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / name


@pytest.fixture(scope="session")
def tiny_gguf(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "tiny-F16.gguf"
    convert(tiny, out, "tiny", MISTRAL)
    return out


@pytest.fixture(scope="session")
def training(tiny):
    return Training(config(), tiny)


@pytest.fixture(scope="session")
def instructions() -> dict[str, str]:
    return {"TEMPLATE": (ROOT / MISTRAL.ollama_template).read_text().removesuffix("\n")}


def faults(chats, training, llama, instructions) -> str:
    return "\n".join(f for r in compare(chats, training, llama, instructions) for f in r["faults"])


def test_the_conversations_cover_the_education_set_turns_and_nasty_text():
    chats = conversations(["[INST]", "</s>"])
    assert (
        sum(len(c) == 3 and not n.startswith(("nasty", "empty")) for n, c in chats.items()) == 200
    )
    assert sum(n.startswith("turns") for n in chats) == 40
    assert max(len(c) for c in chats.values()) == 9
    assert {c[-1]["role"] for c in chats.values()} == {"assistant"}
    assert all(n in " ".join(m["content"] for c in chats.values() for m in c) for n in NASTY)
    assert not any(c[-1]["content"].startswith((" ", "\n", "\t")) for c in chats.values())


def test_the_four_ways_agree_on_a_tiny_mistral(training, tiny_gguf, instructions):
    llama = LlamaCpp(tiny_gguf)
    chats = {n: c for n, c in conversations(training.control).items() if "nasty" in n} | CHATS
    records = list(compare(chats, training, llama, instructions))
    assert [r for r in records if r["faults"]] == []
    assert sum("mistral-common" in r["ways"] for r in records) >= len(records) - 3
    assert stop_faults(training, llama, MISTRAL.stop) == []


def test_only_answers_and_their_end_are_trained(training):
    ids, labels = training.row(CHAT)
    trained = [i for i, label in zip(ids, labels, strict=True) if label != MASKED]
    assert training.decode(trained) == f"{ANSWER}</s>"
    assert trained[-1] == 2 and ids.count(1) == 1 and ids[0] == 1
    assert label_faults(training, CHAT, ids, labels) == []
    assert show_mask(training, CHAT).endswith(f"What is edema?[/INST]⟦{ANSWER}</s>⟧")


def test_a_wrong_mask_is_found_out(training):
    ids, labels = training.row(CHAT)
    everything = label_faults(training, CHAT, ids, ids)
    assert any("trained is '<s>[INST]" in fault for fault in everything)
    without_end = label_faults(training, CHAT, ids, [*labels[:-1], MASKED])
    assert any("last trained token" in fault for fault in without_end)
    assert label_faults(training, CHAT, ids, [MASKED] * len(ids)) == [
        "0 trained spans for 1 answers"
    ]


def test_a_typed_control_token_is_one_in_no_path(training, tiny_gguf):
    """Raw, transformers and llama.cpp take it for one; mistral-common never does."""
    raw, plain = "Say [INST] twice", training.plain("Say [INST] twice")
    llama = LlamaCpp(tiny_gguf)
    assert plain == "Say [ INST] twice"
    assert 3 in training.encode(raw) and 3 in llama.ids(raw)
    assert 3 not in training.encode(plain) and 3 not in llama.ids(plain)
    reference = MistralCommon(training)
    message = reference.roles["user"](content=raw)
    ids = reference.tokenizer.encode_chat_completion(reference.request(messages=[message])).tokens
    assert ids.count(3) == 1  # the turn's own


def test_a_template_that_loses_the_system_text_in_training_is_found_out(
    tiny, tiny_gguf, instructions
):
    path = "tests/fixtures/broken_templates/system_lost_in_training.jinja"
    found = faults(CHATS, Training(config(path), tiny), LlamaCpp(tiny_gguf), instructions)
    assert "training row: at" in found and "You are MedAlign" in found


def test_a_template_that_lets_control_tokens_in_is_found_out(tiny, tiny_gguf, instructions):
    path = "tests/fixtures/broken_templates/control_tokens_let_in.jinja"
    found = faults(CHATS, Training(config(path), tiny), LlamaCpp(tiny_gguf), instructions)
    assert "text became control tokens" in found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("two_spaces", "Ollama template: at 7"),
        ("no_system", "Ollama template: at 7"),
        ("bos", "Ollama: at 1, after '<s>': '[INST]"),
    ],
)
def test_a_broken_ollama_template_is_found_out(training, tiny_gguf, name, found):
    template = (BROKEN / f"{name}.gotmpl").read_text().removesuffix("\n")
    assert found in faults({"plain": CHAT}, training, LlamaCpp(tiny_gguf), {"TEMPLATE": template})


def test_a_gguf_with_a_space_after_every_control_token_is_found_out(
    training, tiny, tmp_path, instructions, monkeypatch
):
    """What llama.cpp's converter makes of Mistral's folder when nobody says otherwise."""
    monkeypatch.setattr("medalign.export_gguf.SPACE_PREFIX", None)
    convert(tiny, tmp_path / "spaced.gguf", "spaced", MISTRAL)
    found = faults({"plain": CHAT}, training, LlamaCpp(tmp_path / "spaced.gguf"), instructions)
    assert "llama.cpp: at 2, after '<s>[INST]'" in found


def test_the_first_difference_is_named_with_what_stands_around_it():
    assert differ([1, 2], [1, 2], str) is None
    assert (
        differ([1, 2, 3], [1, 9, 3], str)
        == "at 1, after '[1]': '[2, 3]' [2, 3] against '[9, 3]' [9, 3]"
    )
    assert differ("ab", "a", str).startswith("at 1, after 'a': 'b'")


def test_ollama_joins_neighbours_and_takes_the_modelfiles_system(instructions):
    ask = {"role": "user", "content": "Hi"}
    rendered = ollama_prompts(
        instructions["TEMPLATE"],
        "SYS",
        [[ask], [ask, ask], [{"role": "system", "content": ""}, ask], []],
    )
    assert rendered == [
        "[INST] SYS\n\nHi[/INST]",
        "[INST] SYS\n\nHi\n\nHi[/INST]",
        "[INST] Hi[/INST]",
        "",
    ]


def test_gguf_metadata_is_complete(tiny_gguf):
    llama = LlamaCpp(tiny_gguf)
    metadata = llama.llm.metadata
    assert metadata["general.name"] == "tiny" and metadata["general.license"] == "apache-2.0"
    assert metadata["general.base_model.0.repo_url"].endswith("mistralai/Mistral-7B-Instruct-v0.3")
    assert metadata["tokenizer.ggml.add_space_prefix"] == "false"
    template = (ROOT / MISTRAL.template).read_text()
    assert metadata["tokenizer.chat_template"].strip() == template.strip()
    assert json.loads(metadata["tokenizer.ggml.eos_token_id"]) == 2
