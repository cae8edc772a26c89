"""How far one model's next-token predictions are from another's: KL divergence and top-1.

Both models read the same tokens (teacher forcing); at each position the distributions over
the next token are compared. Reference first: KL(p || q) is what q costs, in nats a token, on
text that p would write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medalign import gguf_model
from medalign.artifacts import StepError

Logits = NDArray[np.floating]  # [tokens, vocab], before the softmax
Row = tuple[list[int], int]  # a chat's token ids, and how many of them are the prompt


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities in float64, stable for logits of any size. [tokens, vocab] both."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def divergences(p_logits: Logits, q_logits: Logits) -> NDArray[np.float64]:
    """KL(p || q) of each position, in nats: [tokens]. StepError if shapes differ."""
    if p_logits.shape != q_logits.shape or p_logits.ndim != 2:
        raise StepError(
            f"logits of shape {p_logits.shape} and {q_logits.shape} cannot be compared; "
            "both must be [tokens, vocab] of one tokenizer"
        )
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    q -= p
    return -np.einsum("tv,tv->t", np.exp(p), q)


def compare(
    p_logits: Logits | Iterable[Logits], q_logits: Logits | Iterable[Logits]
) -> dict[str, Any]:
    """Compare the predictions q with the reference p.

    p_logits, q_logits: one array [tokens, vocab] each, or arrays of a row of text each, read
    one after the other. Returns the number of tokens, mean and 99th percentile of KL(p || q)
    in nats, and the share of positions where both have the same first choice. StepError if
    shapes differ or nothing is there, ValueError if one has more rows than the other.
    """
    p_rows = [p_logits] if isinstance(p_logits, np.ndarray) else p_logits
    q_rows = [q_logits] if isinstance(q_logits, np.ndarray) else q_logits
    kl, same = [np.empty(0)], [np.empty(0, bool)]
    for p, q in zip(p_rows, q_rows, strict=True):
        kl.append(divergences(p, q))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
    nats, agree = np.concatenate(kl), np.concatenate(same)
    if not len(nats):
        raise StepError("no tokens to compare")
    return {
        "tokens": len(nats),
        "kl_mean": float(nats.mean()),
        "kl_p99": float(np.quantile(nats, 0.99)),
        "top1": float(agree.mean()),
    }


def gguf_logits(path: Path, token_id_rows: Sequence[Sequence[int]]) -> Iterator[Logits]:
    """What llama.cpp predicts after each token of each row: a [len(row), vocab] float32 array.

    The rows come one by one, since a long text's logits fill gigabytes; list() keeps them all.
    Only one row's are held here. StepError if the GGUF is not there or damaged.
    """
    threads = len(os.sched_getaffinity(0))
    llm = gguf_model.load(
        path,
        n_ctx=max(map(len, token_id_rows)),
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
    )
    for row in token_id_rows:
        llm.reset()
        llm.eval(row)
        yield llm.scores[: len(row)].copy()


def gguf_answers(path: Path, rows: Sequence[Row]) -> Iterator[Logits]:
    """What llama.cpp predicts for each row's answer: [answer tokens, vocab], as gguf_logits."""
    all_logits = gguf_logits(path, [ids[:-1] for ids, _ in rows])
    for logits, (_, prompt) in zip(all_logits, rows, strict=True):
        yield logits[prompt - 1 :]
