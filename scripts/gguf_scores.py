"""Loglikelihoods and answers of a GGUF, request by request, in a worker process of its own.

Apart from gguf_lm, so that a worker does not load lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medalign import gguf_model

Tokens = tuple[int, ...]
BLOCK = 128  # tokens read at once


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of the probabilities, shape (vocabulary,)."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - np.log(np.exp(shifted).sum())


def last_logits(llm: Any) -> NDArray[np.float32]:
    """The logits after the last token read, shape (vocabulary,)."""
    import llama_cpp

    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


def read(llm: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Read `tokens` from the start and return the logits after the last of them.

    Whole blocks that the model has read before are not read again. llama.cpp rounds differently for
    batches of different size, so that only blocks of one size give the same result whatever
    was read before.
    """
    before = llm.input_ids[: llm.n_tokens]
    same = 0
    while same < min(len(before), len(tokens) - 1) and before[same] == tokens[same]:
        same += 1
    same -= same % BLOCK
    llm.n_tokens = same
    llm.eval(tokens[same:])
    return last_logits(llm)


def score(llm: Any, shared: Tokens, length: int, last: Sequence[int]) -> list[tuple[float, bool]]:
    """(log-probability, greedy?) of continuations of `length` tokens that differ in the last one.

    shared: context and all but the last token of the continuations; last: their last tokens.
    """
    total, greedy = 0.0, True
    context = len(shared) - (length - 1)
    for end in range(context, len(shared)):
        logits = read(llm, shared[:end])
        total += float(log_softmax(logits)[shared[end]])
        greedy &= int(logits.argmax()) == shared[end]
    logits = read(llm, shared)
    logs, likeliest = log_softmax(logits), int(logits.argmax())
    return [(total + float(logs[token]), greedy and likeliest == token) for token in last]


def score_task(task: tuple[Tokens, int, list[int]]) -> list[tuple[float, bool]]:
    return score(gguf_model.loaded(), *task)


def answer(prompt: list[int], max_tokens: int, stop: list[str]) -> str:
    gguf_model.loaded().reset()
    done = gguf_model.loaded().create_completion(
        prompt, max_tokens=max_tokens, temperature=0.0, stop=stop
    )
    return str(done["choices"][0]["text"])
