"""A GGUF as a model of lm-eval: loglikelihoods and greedy answers from llama.cpp itself.

lm-eval's own `gguf` asks a server, which gives the logarithms of the few likeliest tokens only.
One process a core, as in gguf_model. Requests are sorted by their tokens, so that what neighbours
begin with alike (the five shots of a subject) is read once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

from medalign import gguf_model, gguf_scores
from medalign.artifacts import StepError

CHUNK = 16  # requests a worker takes at once: neighbours, which begin alike
SEEN = 2048  # tokens of a request that are read, the last ones; as lm-eval's hf by default


Request = tuple[tuple[str, str], list[int], list[int]]  # texts, tokens of context, continuation
Group = tuple[gguf_scores.Tokens, int]  # all tokens but the last, length of the continuation


def alike(requests: Sequence[Request], longest: int) -> dict[Group, list[int]]:
    """The requests (their places) that differ in their last token only, as options by letter do.

    longest: tokens that are read, the last ones of longer.
    """
    groups: dict[Group, list[int]] = defaultdict(list)
    for i, (_texts, context, continuation) in enumerate(requests):
        tokens = (context + continuation)[-longest:]
        groups[tuple(tokens[:-1]), len(continuation)].append(i)
    return groups


class GGUF(TemplateLM):
    """path: the GGUF; max_length: tokens of context and continuation, the last ones of longer."""

    def __init__(self, path: Path, max_length: int = SEEN) -> None:
        super().__init__()
        self.path, self.max_length = path, max_length
        self.vocabulary = gguf_model.load(path, n_ctx=64, vocab_only=True)
        self.adds_bos = self.vocabulary.metadata.get("tokenizer.ggml.add_bos_token") == "true"

    @property
    def eot_token_id(self) -> int:
        return int(self.vocabulary.token_eos())

    @property
    def prefix_token_id(self) -> int:
        bos = self.vocabulary.token_bos()
        return int(bos if bos != -1 else self.vocabulary.token_eos())

    @property
    def tokenizer_name(self) -> str:
        return self.path.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.vocabulary.metadata["tokenizer.chat_template"])

    def apply_chat_template(
        self, chat_history: gguf_model.Chat, add_generation_prompt: bool = True
    ) -> str:
        return gguf_model.render(self.vocabulary, chat_history, add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, one BOS in front where the model has one and the text does not bring it."""
        add = self.adds_bos if add_special_tokens is None else add_special_tokens
        bos = gguf_model.text_of(self.vocabulary, self.vocabulary.token_bos())
        add = add and not (bos and string.startswith(bos))
        return list(self.vocabulary.tokenize(string.encode(), add_bos=add, special=True))

    def _spread(self, work: Any, tasks: Sequence[Any], chunk: int = 1) -> Iterator[Any]:
        settings = {"n_ctx": self.max_length, "n_batch": gguf_scores.BLOCK}
        return gguf_model.spread(self.path, work, tasks, chunk=chunk, **settings)

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        wanted = alike(requests, self.max_length)
        groups = sorted(wanted)
        tasks = [(*group, [requests[i][2][-1] for i in wanted[group]]) for group in groups]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        scored = self._spread(gguf_scores.score_task, tasks, CHUNK)
        for group, results in zip(
            groups, tqdm(scored, self.path.name, len(tasks), disable=disable_tqdm), strict=True
        ):
            for i, result in zip(wanted[group], results, strict=True):
                found[i] = result
                self.cache_hook.add_partial("loglikelihood", requests[i][0], result)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise StepError("no suite of ours asks for the likelihood of whole texts")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy answers. All requests have the same generation settings, as a suite's have."""
        if not requests:
            return []
        wanted = normalize_gen_kwargs(requests[0].args[1], 256)
        eos = gguf_model.text_of(self.vocabulary, self.eot_token_id)
        stop = handle_stop_sequences(wanted.get("until"), eos)
        most = wanted["max_gen_toks"]
        prompts = [self.tok_encode(r.args[0])[-(self.max_length - most) :] for r in requests]
        work = partial(gguf_scores.answer, max_tokens=most, stop=stop)
        answers = []
        asked = self._spread(work, prompts)
        for request, answer in zip(
            requests, tqdm(asked, self.path.name, len(prompts), disable=disable_tqdm), strict=True
        ):
            answers.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers
