"""A GGUF model in llama.cpp: loaded with a clear error, asked chat after chat.

Many chats are spread over processes of one thread each: on a small model that is faster than
one process of many threads, which wait for each other at every layer, and far more so on a
machine that does other things as well.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from medalign.artifacts import StepError, require_file


@dataclass(frozen=True)
class Answer:
    """What a model answered: text, why it stopped ("stop" = by itself), tokens, seconds."""

    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    seconds: float


MOST_WORKERS = 8  # each holds a context of its own; the weights are mapped once
Chat = list[dict[str, str]]  # [{"role": …, "content": …}, …]


def load(path: Path, n_ctx: int = 1024, **settings: Any):
    """Open a GGUF with llama-cpp-python, on one thread unless told otherwise.

    settings: arguments of llama_cpp.Llama, as vocab_only. StepError if it is not there,
    cut short or damaged.
    """
    from llama_cpp import Llama

    require_file(path, "make gguf writes it")
    try:
        alone = {"n_threads": 1, "n_threads_batch": 1, "seed": 0, "verbose": False}
        return Llama(str(path), n_ctx=n_ctx, **{**alone, **settings})
    except ValueError as error:
        raise StepError(f"{path}: llama.cpp cannot load it ({error}); make it again") from error


def text_of(llm, token: int) -> str:
    """How a token is spelled in the GGUF's vocabulary; nothing for -1, which is none."""
    import llama_cpp

    if token == -1:
        return ""
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    return llama_cpp.llama_vocab_get_text(vocab, token).decode()


@cache
def _formatter(template: str, eos: str, bos: str, ask: bool) -> Any:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    return Jinja2ChatFormatter(template, eos, bos, add_generation_prompt=ask)


def render(llm, messages: Chat, ask: bool = True) -> str:
    """A chat as the prompt that a chat request makes of it, under the template in the GGUF.

    ask: the assistant is to speak next; False for a chat that ends with its answer.
    """
    bos, eos = text_of(llm, llm.token_bos()), text_of(llm, llm.token_eos())
    formatter = _formatter(llm.metadata["tokenizer.chat_template"], eos, bos, ask)
    return formatter(messages=messages).prompt


def tokenize(llm, text: str) -> list[int]:
    """The token ids of a rendered prompt, as a chat request makes them of it."""
    return llm.tokenize(text.encode("utf-8"), add_bos=False, special=True)


def ask(llm, messages: Chat, max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Answer:
    """Ask under the chat template inside the GGUF, greedily unless a temperature is given.

    max_tokens: where an answer without end is cut. Nothing is kept of the chat before, so that
    the answer does not hang on what was asked earlier.
    """
    began = time.monotonic()
    llm.reset()
    done = llm.create_chat_completion(
        messages, temperature=temperature, seed=seed, max_tokens=max_tokens
    )
    choice = done["choices"][0]
    return Answer(
        text=choice["message"]["content"],
        finish_reason=choice["finish_reason"],
        prompt_tokens=done["usage"]["prompt_tokens"],
        tokens=done["usage"]["completion_tokens"],
        seconds=round(time.monotonic() - began, 3),
    )


_loaded: list = []  # the model of this worker process


def _start(path: Path, settings: dict[str, Any]) -> None:
    """Load the model once in a worker; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _loaded.append(load(path, **settings))


def loaded() -> Any:
    """The model of this worker process."""
    return _loaded[0]


def spread(
    path: Path, work: Callable[..., Any], *tasks: Sequence[Any], chunk: int = 1, **settings: Any
) -> Iterator[Any]:
    """`work` of every task, one process a core with the model loaded; in the order of the tasks.

    tasks: arguments of `work`, as map takes them; chunk: how many a worker takes at once;
    settings: as load takes them.
    """
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(len(tasks[0]), len(os.sched_getaffinity(0)), MOST_WORKERS))
    with ProcessPoolExecutor(workers, context, _start, (path, settings)) as pool:
        try:
            yield from pool.map(work, *tasks, chunksize=chunk)
        except BrokenProcessPool as error:
            raise StepError(f"{path}: llama.cpp ended while answering (out of memory?)") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _answer(messages: Chat, seed: int, max_tokens: int, temperature: float) -> Answer:
    return ask(loaded(), messages, max_tokens, temperature, seed)


def ask_all(
    path: Path, chats: list[Chat], max_tokens: int, temperature: float = 0.0
) -> Iterator[Answer]:
    """Ask every chat, one process a core; the answers come in the order of the chats.

    With a temperature a chat's seed is its place in `chats`.
    """
    load(path)  # a damaged file is told here, not by every worker
    answer = partial(_answer, max_tokens=max_tokens, temperature=temperature)
    yield from spread(path, answer, chats, range(len(chats)))
