"""A GGUF model in llama.cpp: loaded with a clear error, asked one chat at a time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from medalign.artifacts import StepError, require_file


@dataclass(frozen=True)
class Answer:
    """What a model answered: text, why it stopped ("stop" = by itself), tokens, seconds."""

    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    seconds: float


def load(path: Path, n_ctx: int = 1024, logits_all: bool = False):
    """Open a GGUF with llama-cpp-python. StepError if it is not there, cut short or damaged."""
    from llama_cpp import Llama

    require_file(path, "make gguf writes it")
    try:
        return Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=len(os.sched_getaffinity(0)),
            logits_all=logits_all,
            seed=0,
            verbose=False,
        )
    except ValueError as error:
        raise StepError(f"{path}: llama.cpp cannot load it ({error}); make it again") from error


def ask(llm, messages: list[dict[str, str]], max_tokens: int) -> Answer:
    """Ask greedily under the chat template inside the GGUF.

    messages: [{"role", "content"}, …]. max_tokens: where an answer without end is cut.
    """
    began = time.monotonic()
    done = llm.create_chat_completion(messages, temperature=0.0, max_tokens=max_tokens)
    choice = done["choices"][0]
    return Answer(
        text=choice["message"]["content"],
        finish_reason=choice["finish_reason"],
        prompt_tokens=done["usage"]["prompt_tokens"],
        tokens=done["usage"]["completion_tokens"],
        seconds=round(time.monotonic() - began, 3),
    )
