"""What stands between a client's request and the model: system prompt, grammar, errors, counts.

The model itself runs in llama.cpp's server, vLLM or another such endpoint (medalign.worker).
Answers are always streamed from it, so that a client that hangs up or a time limit stops the
generation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from medalign.admission import Limits, Queue
from medalign.chat_api import ApiError, ChatRequest, CompletionRequest, Generation
from medalign.cite import cite, context
from medalign.passages import Passage
from medalign.refusal import is_refusal
from medalign.retrieval import Index
from medalign.section_grammar import OPENING_TOKENS, four_sections
from medalign.serving_metrics import Metrics
from medalign.worker import Backend

log = logging.getLogger("medalign.gateway")
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


@dataclass
class Served:
    """What is served, and to whom. name: the model's; aliases: other names a client may use."""

    name: str
    aliases: list[str] = field(default_factory=list)
    system_prompt: str = ""
    key: str | None = None
    context: int = 4096
    made: int = 0  # Unix time of the model's file
    health_route: str = "/health"
    predict_route: str | None = None
    index: Index | None = None  # passages to show to the model and to cite


@dataclass
class Answer:
    """What the model has said so far."""

    text: str = ""
    finish: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)


def said(choice: dict[str, Any]) -> str:
    """The text of a choice: of a completion, of a chat's piece or of a chat's whole answer."""
    spoken = choice.get("delta") or choice.get("message") or {}
    return choice.get("text") or spoken.get("content") or ""


def prompt_seconds(answer: dict[str, Any]) -> float | None:
    """Seconds to the first token as llama.cpp's server tells with an answer; None of others."""
    told = (answer.get("timings") or {}).get("prompt_ms")
    return None if told is None else told / 1000


class Gateway:
    """Sends requests on to the backend and reads its answers."""

    def __init__(self, backend: Backend, served: Served, limits: Limits):
        self.backend, self.served, self.limits = backend, served, limits
        self.metrics = Metrics()
        self.queue = Queue(limits, self.metrics)
        self.grammar = four_sections()
        self.client = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(limits.seconds, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=limits.slots),
        )

    def known(self, model: str) -> None:
        if model not in (self.served.name, *self.served.aliases):
            names = ", ".join((self.served.name, *self.served.aliases))
            raise ApiError(
                404, f"no such model here; there is: {names}", "model_not_found", "model"
            )

    def body(self, request: Generation, seen: Answer) -> tuple[str, dict[str, Any]]:
        """The route and the body that the backend is asked with; `seen` gets the passages."""
        self.known(request.model)
        tokens = request.max_tokens
        body: dict[str, Any] = request.sampling()
        if isinstance(request, ChatRequest):
            if len(request.messages) > self.limits.messages:
                message = f"more than {self.limits.messages} messages"
                raise ApiError(400, message, "too_many_messages", "messages")
            try:
                body["messages"] = request.conversation(self.served.system_prompt)
            except ValueError as error:
                raise ApiError(400, str(error), None, "messages") from None
            if self.served.index is not None:
                self.show_passages(body["messages"], self.served.index, seen)
            tokens = request.max_completion_tokens or tokens
            form = request.response_format
            if form and form.type not in ("text", "four_sections"):
                body["response_format"] = form.model_dump(by_alias=True, exclude_none=True)
            if request.logprobs:
                body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
        elif isinstance(request, CompletionRequest):
            body["prompt"] = request.text
            if request.logprobs is not None:
                body["logprobs"] = request.logprobs
        if tokens and tokens > self.served.context:
            message = f"max_tokens is more than the context of {self.served.context} tokens"
            raise ApiError(400, message, "context_length_exceeded", "max_tokens")
        body["max_tokens"] = tokens or self.limits.answer_tokens
        body["model"] = self.backend.model
        return (CHAT if isinstance(request, ChatRequest) else PLAIN), body

    def show_passages(self, messages: list[dict[str, str]], index: Index, seen: Answer) -> None:
        """Put what the index has on the last question behind the system prompt."""
        seen.passages = [hit.passage for hit in index.search(messages[-1]["content"])]
        if seen.passages:
            if messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": ""})
            told = (messages[0]["content"], context(seen.passages))
            messages[0]["content"] = "\n\n".join(filter(None, told))

    def usable(self) -> None:
        """ApiError 503 unless the model can be asked now."""
        if fault := self.backend.fault:
            raise ApiError(503, fault, "model_not_ready", retry_after=2)

    async def read(
        self, route: str, body: dict[str, Any], pieces: asyncio.Queue[dict[str, Any] | None]
    ) -> None:
        """Put the backend's stream into `pieces`, parsed, and None at its end, good or bad.

        Unless body says "stream", the answer is one piece: nothing is parsed token by token that
        nobody reads so.
        """
        try:
            async with (
                asyncio.timeout(self.limits.seconds),
                self.client.stream(
                    "POST", self.backend.url + route, json=body, headers=self.backend.headers
                ) as reply,
            ):
                if reply.status_code != 200:
                    raise self.refused(reply.status_code, await reply.aread())
                if not body.get("stream"):
                    pieces.put_nowait(json.loads(await reply.aread()))
                    self.backend.heard = time.monotonic()
                    return
                async for line in reply.aiter_lines():
                    name, _, data = line.partition(":")
                    if name == "error":
                        raise self.refused(500, data.encode())
                    if name != "data":
                        continue
                    if data.strip() == "[DONE]":
                        return
                    self.backend.heard = time.monotonic()
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise self.refused(chunk["error"].get("code", 500), data.encode())
                    pieces.put_nowait(chunk)
            raise httpx.RemoteProtocolError("the stream ended before its end")
        finally:
            pieces.put_nowait(None)

    async def chunks(self, route: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The backend's stream, parsed. ApiError for whatever goes wrong with it.

        It is read in a task of its own: who consumes it may be first one task, then another.
        """
        pieces: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        reading = asyncio.create_task(self.read(route, body, pieces))
        try:
            while (chunk := await pieces.get()) is not None:
                yield chunk
            await reading
        except (TimeoutError, httpx.TimeoutException):
            message = f"the answer took more than {self.limits.seconds:g} seconds"
            raise ApiError(504, message, "timeout") from None
        except (httpx.HTTPError, json.JSONDecodeError):
            message = "the model stopped in its answer; ask again"
            raise ApiError(503, message, "worker_died", retry_after=2) from None
        finally:
            reading.cancel()

    async def held(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """What holds the answer to the four sections; nothing where the model begins to refuse."""
        opening, began = "", body | {"max_tokens": OPENING_TOKENS}
        async with aclosing(self.chunks(route, began)) as chunks:
            async for chunk in chunks:
                opening += "".join(map(said, chunk.get("choices", ())))
        return {} if is_refusal(opening) else self.backend.constrained(self.grammar)

    def refused(self, status: int | str, content: bytes) -> ApiError:
        """The backend's own error as ours. Its words on contexts and grammars go through."""
        error: Any = None
        with suppress(json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            error = json.loads(content).get("error")
        if not isinstance(error, dict):
            error = {}
        kind, words = str(error.get("type", "")), str(error.get("message", ""))
        if "context" in kind or "context" in words:
            message = f"prompt and answer do not fit into {self.served.context} tokens"
            return ApiError(400, message, "context_length_exceeded", "messages")
        if status == 400:
            return ApiError(400, "the model's server refused the request: " + words[:200])
        log.error("backend: status %s, %s", status, kind or "no type")
        return ApiError(503, "the model's server failed; ask again", "backend_failed", None, 2)

    async def answer(
        self, request: Generation, seen: Answer, stream: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        """Ask within a slot; yield the chunks while `seen` gathers them; count in the end."""
        route, body = self.body(request, seen)
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        self.usable()
        async with self.queue.slot():
            self.usable()  # it may have gone while the request waited
            began, first = time.monotonic(), None
            if isinstance(request, ChatRequest) and request.in_sections:
                body |= await self.held(route, body)
            async with aclosing(self.chunks(route, body)) as chunks:
                async for chunk in chunks:
                    seen.usage = chunk.get("usage") or seen.usage
                    for choice in chunk.get("choices", ()):
                        piece = said(choice)
                        if piece and first is None:
                            first = time.monotonic() - began if stream else prompt_seconds(chunk)
                        seen.text += piece
                        seen.finish = choice.get("finish_reason") or seen.finish
                        if choice.get("logprobs"):
                            seen.logprobs.append(choice["logprobs"])
                    yield chunk
            seconds = time.monotonic() - began
            self.metrics.answered(seen.text, seen.finish == "stop", seen.usage, seconds, first)

    def cleaned(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """A chunk as clients know it: our model's name, none of the backend's own fields."""
        kept = {k: chunk[k] for k in ("id", "object", "created", "choices") if k in chunk}
        return kept | {"model": self.served.name}

    async def whole(self, request: Generation) -> dict[str, Any]:
        """The answer in one piece."""
        seen, last = Answer(), {}
        async with aclosing(self.answer(request, seen, stream=False)) as chunks:
            async for chunk in chunks:
                last = chunk
        if seen.passages:
            seen.text = cite(seen.text, seen.passages)
        choice: dict[str, Any] = {"index": 0, "finish_reason": seen.finish or "stop"}
        if isinstance(request, ChatRequest):
            kind = "chat.completion"
            choice["message"] = {"role": "assistant", "content": seen.text, "refusal": None}
            joined = {"content": [t for part in seen.logprobs for t in part.get("content") or ()]}
        else:
            kind = "text_completion"
            choice["text"] = seen.text
            joined = {}
            for part in seen.logprobs:
                for name, values in part.items():
                    joined.setdefault(name, []).extend(values or [])
        choice["logprobs"] = joined if seen.logprobs else None
        return {
            **{"id": last.get("id", ""), "object": kind, "created": last.get("created", 0)},
            **{"model": self.served.name, "choices": [choice], "usage": seen.usage},
        }

    async def events(
        self,
        request: Generation,
        source: AsyncGenerator[dict[str, Any]],
        first: dict[str, Any] | None,
    ) -> AsyncIterator[bytes]:
        """Server-sent events of the rest of an answer whose first chunk is known."""
        usage = bool(request.stream_options and request.stream_options.include_usage)
        try:
            while first is not None:
                clean = self.cleaned(first)
                if usage:
                    clean["usage"] = first.get("usage")
                if clean.get("choices") or usage:
                    yield b"data: " + json.dumps(clean).encode() + b"\n\n"
                first = await anext(source, None)
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield b"data: " + json.dumps(error.body()).encode() + b"\n\n"
        finally:
            await source.aclose()

    async def in_pieces(self, whole: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """A chat completion as the chunks of a stream."""
        head = {k: whole[k] for k in ("id", "created")} | {"object": "chat.completion.chunk"}
        message, finish = whole["choices"][0]["message"], whole["choices"][0]["finish_reason"]
        delta = {"role": "assistant", "content": message["content"]}
        yield head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        yield head | {"choices": [], "usage": whole["usage"]}

    async def respond(self, request: Request, asked: Generation) -> Response:
        """The HTTP answer; errors before the first token have a status of their own."""
        if not asked.stream:
            return JSONResponse(await self.unless_gone(request, self.whole(asked)))
        if self.served.index is not None and isinstance(asked, ChatRequest):
            # Citations are set in a whole answer.
            source = self.in_pieces(await self.unless_gone(request, self.whole(asked)))
        else:
            source = self.answer(asked, Answer(), stream=True)
        try:
            first = await self.unless_gone(request, anext(source, None))
        except BaseException:
            await source.aclose()
            raise
        return StreamingResponse(
            self.events(asked, source, first),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def unless_gone(self, request: Request, work: Any) -> Any:
        """Await `work`, but cancel it when the client hangs up."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone())
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ApiError(499, "the client closed the connection")
            return task.result()
        finally:
            for each in (task, left):
                each.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await each
