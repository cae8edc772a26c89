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
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from medalign.artifacts import StepError, manifest, require_file, run_step, write_json
from medalign.conversations import Chat, conversations
from medalign.prompt_paths import LlamaCpp, MistralCommon, Training, ollama_prompts
from medalign.recipe import read_yaml
from medalign.write_modelfile import check as check_modelfile

MASKED = -100  # the label of a token that is not trained (torch.nn.CrossEntropyLoss)


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


def runs(ids: list[int], labels: list[int]) -> Iterator[tuple[bool, list[int]]]:
    """The row in runs of tokens that are trained or not: (trained, token ids)."""
    pairs = zip(labels, ids, strict=True)
    for trained, group in itertools.groupby(pairs, key=lambda pair: pair[0] != MASKED):
        yield trained, [i for _, i in group]


def label_faults(training: Training, chat: Chat, ids: list[int], labels: list[int]) -> list[str]:
    """What is wrong with the mask: exactly the answers and their end tokens are trained."""
    tokenizer = training.tokenizer
    faults = []
    if any(label not in (MASKED, i) for i, label in zip(ids, labels, strict=True)):
        faults.append("a label is another token than the input's")
    spans = [span for trained, span in runs(ids, labels) if trained]
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
    control = training.control_ids
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
    if not llama.stops():
        faults.append("llama.cpp goes on after the end token")
    if training.tokenizer.eos_token not in stops:
        faults.append(f"the Modelfile does not stop at {training.tokenizer.eos_token}")
    for stop in stops:
        if len(llama.ids(stop)) != 1:
            faults.append(f"the Modelfile's stop {stop!r} is no single token")
    return [f"stop: {fault}" for fault in faults]


def show_mask(training: Training, chat: Chat) -> str:
    """A training row as text, what is trained between ⟦ and ⟧."""
    shown = ((trained, training.decode(span)) for trained, span in runs(*training.row(chat)))
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in shown)


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
