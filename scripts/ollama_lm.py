"""A model of Ollama as a model of lm-eval, by Ollama's own API (docs/api.md: /api/chat, streamed).

Ollama applies the template of the Modelfile itself, so a request is the chat and no text of ours.
It gives no loglikelihoods.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
from lm_eval.api.model import LM
from lm_eval.models.api_models import JsonChatStr
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from medalign.artifacts import StepError

PASSING = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout)
LARGEST = 2**22  # bytes of an answer's stream


class Ollama(LM):
    """`name`: as `ollama list` has it; `host`: http://127.0.0.1:11434 unless told otherwise."""

    def __init__(self, name: str, host: str) -> None:
        super().__init__()
        self.name = name
        host = host if "://" in host else f"http://{host}"
        self.client = httpx.Client(base_url=host, timeout=httpx.Timeout(600, connect=5))

    @property
    def tokenizer_name(self) -> str:
        return self.name

    def digest(self) -> str | None:
        """The model's digest. StepError if Ollama does not answer or has no such model."""
        try:
            models = self.client.get("/api/tags").raise_for_status().json()["models"]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise StepError(f"{self.client.base_url}: no Ollama there ({error})") from error
        wanted = {self.name, f"{self.name}:latest"}
        found = next((m for m in models if m["name"] in wanted), None)
        if found is None:
            raise StepError(f"Ollama has no {self.name}: ollama create {self.name} -f Modelfile")
        return found.get("digest")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Any:
        return JsonChatStr(json.dumps(chat_history, ensure_ascii=False))

    def chat_template(self, chat_template: bool | str = False) -> str:
        return ""

    @retry(
        retry=retry_if_exception_type(PASSING),
        stop=stop_after_attempt(4),
        wait=wait_exponential(max=8),
        reraise=True,
    )
    def _ask(self, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
        body = {"model": self.name, "messages": messages, "stream": True, "options": options}
        said: list[str] = []
        size = 0
        with self.client.stream("POST", "/api/chat", json=body) as answer:
            if answer.status_code != 200:
                told = answer.read()[:200].decode("utf-8", "replace")
                raise StepError(f"Ollama: {answer.status_code} {told}")
            for line in answer.iter_lines():
                size += len(line)
                if size > LARGEST:
                    raise StepError(f"Ollama: an answer of more than {LARGEST} bytes")
                if not line.strip():
                    continue
                try:
                    piece = json.loads(line)
                except ValueError as error:
                    raise StepError(f"Ollama: not JSON in its stream: {line[:100]}") from error
                if "error" in piece:
                    raise StepError(f"Ollama: {piece['error']}")
                said.append(piece.get("message", {}).get("content", ""))
                if piece.get("done"):
                    return "".join(said)
        raise httpx.RemoteProtocolError("the stream ended before its answer was done")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in tqdm(requests, self.name, disable=disable_tqdm):
            text, wanted = request.args
            options = {
                "temperature": 0.0,
                "seed": 0,
                "num_predict": wanted.get("max_gen_toks", 256),
                "stop": wanted.get("until", []),
            }
            chat = json.loads(text.prompt) if isinstance(text, JsonChatStr) else None
            chat = chat or [{"role": "user", "content": str(text)}]
            try:
                answers.append(self._ask(chat, options))
            except PASSING as error:
                raise StepError(
                    f"{self.client.base_url}: Ollama does not answer ({error})"
                ) from error
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def loglikelihood(self, requests: Any) -> Any:
        raise StepError("Ollama gives no loglikelihoods: the suites are asked as chats")

    loglikelihood_rolling = loglikelihood
