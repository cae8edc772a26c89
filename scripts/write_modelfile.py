"""Write the Ollama Modelfile of a run, or check one.

    python scripts/write_modelfile.py --gguf runs/…/medalign-135m-Q4_K_M.gguf \\
        --recipe recipes/smollm2-135m/sft-lora-cpu.yaml --out runs/…/Modelfile
    python scripts/write_modelfile.py --check runs/…/Modelfile

The system prompt is that of training, the template the recipe's in Go (make verify renders and
compares both), without a BOS token: Ollama adds that one itself.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

from medalign.artifacts import ROOT, StepError, require_file, run_step, written_whole
from medalign.recipe import Model, family_of, model, system_prompt

# Ollama's keywords and the parameters used here (docs/modelfile.md); others are errors there.
KEYWORDS = {"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES"}
PARAMETERS = {
    "num_ctx": int,
    "num_predict": int,
    "repeat_last_n": int,
    "repeat_penalty": float,
    "seed": int,
    "stop": str,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
}
ONCE = {"FROM", "TEMPLATE", "SYSTEM"}
BOS = re.compile(r"<s>|<\|begin_of_text\|>|bos_token")
COMPARISON = re.compile(r"\(eq \([^()]*\)[^()]*\)")  # what is only compared is not written
_INSTRUCTION = re.compile(
    r'(?P<keyword>[A-Za-z]+)[ \t]+(?:"""(?P<block>.*?)"""|(?P<line>[^\n]*))[ \t]*(?:\n|\Z)',
    re.DOTALL,
)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Modelfile: line, keyword in capitals, argument."""

    line: int
    keyword: str
    argument: str


def parse(text: str, name: str = "Modelfile") -> list[Instruction]:
    """The instructions of a Modelfile, strictly. StepError names the line of a fault."""
    found, at = [], 0
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        end = text.find("\n", at) + 1 or len(text)
        if not text[at:end].strip() or text[at:end].lstrip().startswith("#"):
            at = end
            continue
        match = _INSTRUCTION.match(text, at)
        if match is None:
            raise StepError(f"{name}:{line}: not an instruction: {text[at:end].strip()[:60]!r}")
        keyword, block, rest = match["keyword"].upper(), match["block"], match["line"]
        if keyword not in KEYWORDS:
            raise StepError(f"{name}:{line}: unknown instruction {keyword}")
        if block is None and rest.startswith('"""'):
            raise StepError(f'{name}:{line}: {keyword} has no closing """')
        argument = block if block is not None else rest.strip()
        if not argument:
            raise StepError(f"{name}:{line}: {keyword} says nothing")
        found.append(Instruction(line, keyword, argument))
        at = match.end()
    return found


def check(path: Path) -> list[Instruction]:
    """Parse a Modelfile and check what Ollama and this project demand of it.

    StepError for a missing model file, an unknown parameter or a bad value, a repeated
    instruction, a template without the system prompt's place or with a BOS, another system
    prompt than the one of training, characters that Ollama drops.
    """
    text = require_file(path, "make gguf writes it").read_text(encoding="utf-8")
    instructions = parse(text, path.name)

    def fail(i: Instruction, message: str) -> None:
        raise StepError(f"{path}:{i.line}: {message}")

    seen: dict[str, Instruction] = {}
    for i in instructions:
        if i.keyword in ONCE and i.keyword in seen:
            fail(i, f"a second {i.keyword}, the first is in line {seen[i.keyword].line}")
        seen[i.keyword] = i
        if any(not c.isprintable() and c not in "\n\t" for c in i.argument):
            fail(i, f"{i.keyword} holds a character that Ollama drops")
        if i.keyword == "PARAMETER":
            key, _, value = i.argument.partition(" ")
            if key not in PARAMETERS:
                fail(i, f"unknown parameter {key}")
            try:
                PARAMETERS[key](value.strip())
            except ValueError:
                fail(i, f"{key} is {PARAMETERS[key].__name__}, not {value.strip()!r}")
    for keyword in ("FROM", "TEMPLATE", "SYSTEM", "LICENSE"):
        if keyword not in seen:
            raise StepError(f"{path}: no {keyword}")
    template = seen["TEMPLATE"]
    if BOS.search(COMPARISON.sub("", template.argument)):
        fail(template, "TEMPLATE writes a BOS token; Ollama adds one, there would be two")
    if not re.search(r"\.(System|Messages)\b", template.argument):
        fail(template, "TEMPLATE has no place for the system prompt")
    if seen["SYSTEM"].argument != system_prompt():
        fail(seen["SYSTEM"], "SYSTEM is not data/system_prompt.txt")
    source = seen["FROM"].argument
    if source.startswith(("./", "/")) and not (path.parent / source).is_file():
        fail(seen["FROM"], f"FROM names {source}, which does not exist")
    return instructions


def render(family: Model, gguf: str) -> str:
    """The text of a Modelfile for `gguf`, a path relative to it."""
    template = (ROOT / family.ollama_template).read_text(encoding="utf-8").removesuffix("\n")
    stops = "".join(f'PARAMETER stop "{stop}"\n' for stop in family.stop)
    return (
        f"# {family.name} for Ollama: ollama create medalign -f Modelfile\n"
        f"FROM {gguf}\n\n"
        f'TEMPLATE """{template}"""\n\n'
        f'SYSTEM """{system_prompt()}"""\n\n'
        f"{stops}"
        f"PARAMETER num_ctx {family.num_ctx}\n"
        f"PARAMETER temperature 0\n\n"
        f'LICENSE """{family.license}"""\n'
    )


def write(gguf: Path, recipe: Path, out: Path) -> None:
    """Write the Modelfile of a run and check it."""
    relative = "./" + os.path.relpath(gguf, out.parent)
    with written_whole(out) as temporary:
        temporary.write_text(render(model(family_of(recipe)), relative), encoding="utf-8")
        check(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", type=Path)
    args = parser.parse_args()
    if args.check:
        print(f"{args.check}: {len(check(args.check))} instructions, valid")
    elif args.gguf and args.recipe and args.out:
        write(args.gguf, args.recipe, args.out)
        print(f"{args.out}: written and checked")
    else:
        parser.error("give --check FILE, or --gguf, --recipe and --out")


if __name__ == "__main__":
    run_step(main)
