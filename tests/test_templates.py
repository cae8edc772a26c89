"""Chat templates: the prompt at inference is a prefix of the row in training, system kept."""

from __future__ import annotations

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medalign.artifacts import ROOT
from medalign.recipe import all_recipes, read_yaml, system_prompt

TEMPLATES = sorted({read_yaml(r)["chat_template_jinja"] for r in all_recipes()})
SYSTEM = {"role": "system", "content": system_prompt()}
TURNS = [
    {"role": "user", "content": "What is edema?"},
    {"role": "assistant", "content": "**Definition**: Swelling."},
    {"role": "user", "content": "  And ascites? "},
    {"role": "assistant", "content": "Fluid in the belly."},
]


def render(name: str, messages, **options) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, loader=jinja2.FileSystemLoader(ROOT),
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return environment.get_template(name).render(
        messages=messages, **{"add_generation_prompt": False, **tokens, **options}
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [[SYSTEM], []], ids=["system", "no system"])
@pytest.mark.parametrize("turns", [2, 4])
def test_the_inference_prompt_is_a_prefix_of_the_training_row(name, system, turns):
    messages = [*system, *TURNS[:turns]]
    row = render(name, messages)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render(name, messages[:i], add_generation_prompt=True)
            assert row.startswith(prompt)
            assert row[len(prompt) :].lstrip().startswith(message["content"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_system_prompt_stands_in_training_and_inference_once(name):
    for messages, generating in (([SYSTEM, *TURNS], False), ([SYSTEM, TURNS[0]], True)):
        text = render(name, messages, add_generation_prompt=generating)
        assert text.count(system_prompt()) == 1
        assert text.index(system_prompt()) < text.index("What is edema?")


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_never_say_tools(name):
    """Not even in a comment: Ollama prefers a GGUF's own template if the word is in it."""
    assert "tools" not in (ROOT / name).read_text()


def test_mistral_single_turn_is_the_published_form():
    text = render("recipes/templates/mistral-v3.jinja", [SYSTEM, *TURNS[:2]])
    assert text == (
        f"<s>[INST] {system_prompt()}\n\nWhat is edema?[/INST] **Definition**: Swelling.</s>"
    )
