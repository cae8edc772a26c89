"""A model folder as a model of lm-eval, with likelihoods read quickly where there is no GPU.

lm-eval's own `hf` computes every token's logits over the whole vocabulary and reads the five solved
examples of a subject again for each question. Here logits are computed where they are read, what
the questions of a subject begin with is read once, and requests of about one length go together,
in bfloat16 where the processor multiplies in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from medalign.gguf_lm import SEEN, Group, Request, alike
from medalign.recipe import cpu_has_bf16

TOKENS = 4096  # of a batch, those shared in front not counted
SHARED = 64  # tokens that requests have in front alike, from which on they are read once


def begin_alike(groups: Sequence[Group]) -> Iterator[tuple[int, list[Group]]]:
    """Sorted groups, those with at least SHARED tokens in front alike together.

    Yields how many tokens are alike (0 for groups that share too little) and the groups.
    """
    together: dict[tuple[int, ...], list[Group]] = {}
    for group in groups:
        together.setdefault(group[0][:SHARED], []).append(group)
    alone = []
    for same in together.values():
        if len(same) == 1:
            alone += same
            continue
        # At least what the last logits are read of stays apart from what is shared.
        apart = [tokens[:-length] for tokens, length in same]
        differ = (i for i, column in enumerate(zip(*apart, strict=False)) if len(set(column)) > 1)
        front = next(differ, min(map(len, apart)))
        yield front if front >= SHARED else 0, same
    yield 0, alone


def batches(groups: Sequence[Group], shared: int) -> Iterator[list[Group]]:
    """Groups by length, the longest first, as many at once as TOKENS allow with their padding."""
    batch: list[Group] = []
    for group in sorted(groups, key=lambda g: (-len(g[0]), g)):
        if batch and (len(batch) + 1) * (len(batch[0][0]) - shared) > TOKENS:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


class Folder(HFLM):
    """path: a model folder. On a GPU lm-eval's own, which finds its batch size by itself."""

    def __init__(self, path: Path, dtype: str | None = None) -> None:
        self.on_gpu = torch.cuda.is_available()
        here = "auto" if self.on_gpu else "bfloat16" if cpu_has_bf16() else "float32"
        self.dtype_name = dtype or here
        super().__init__(
            str(path),
            device="cuda" if self.on_gpu else "cpu",
            dtype=self.dtype_name,
            batch_size="auto" if self.on_gpu else 1,
            trust_remote_code=False,
            max_length=SEEN,
        )

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        **settings: Any,
    ) -> list[tuple[float, bool]]:
        if self.on_gpu:
            return super()._loglikelihood_tokens(requests, disable_tqdm, **settings)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        wanted = alike(requests, self.max_length)
        with tqdm(total=len(wanted), disable=disable_tqdm) as bar, torch.inference_mode():
            for shared, groups in begin_alike(sorted(wanted)):
                read = self.model(torch.tensor([groups[0][0][:shared]])) if shared else None
                for batch in batches(groups, shared):
                    scores = self.scores(batch, shared, read and read.past_key_values)
                    for group, logs in zip(batch, scores, strict=True):
                        continuation = group[0][len(group[0]) - group[1] + 1 :]
                        before = sum(float(logs[i, token]) for i, token in enumerate(continuation))
                        greedy = logs.argmax(-1).tolist()
                        for i in wanted[group]:
                            last = requests[i][2][-1]
                            found[i] = (
                                before + float(logs[-1, last]),
                                greedy == [*continuation, last],
                            )
                            self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                    bar.update(len(batch))
        return found

    def scores(self, batch: Sequence[Group], shared: int, read: Any) -> list[torch.Tensor]:
        """Of each group the log-probabilities at its continuation, shape (tokens, vocabulary).

        read: the cache of the `shared` tokens that the groups begin with, None if there are none.
        Shorter groups are padded in front, unseen by the attention and by the positions.
        """
        rows = [tokens[shared:] for tokens, _ in batch]
        width, kept = max(map(len, rows)), max(length for _, length in batch)
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        seen = torch.tensor(
            [[1] * shared + [0] * (width - len(row)) + [1] * len(row) for row in rows]
        )
        places = (seen.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        cache = None
        if read is not None:
            cache = deepcopy(read)
            cache.batch_repeat_interleave(len(rows))
        logits = self.model(
            ids,
            attention_mask=seen,
            position_ids=places,
            past_key_values=cache,
            logits_to_keep=kept,
        ).logits.float()
        logs = logits.log_softmax(-1)
        return [logs[i, -length:] for i, (_, length) in enumerate(batch)]
