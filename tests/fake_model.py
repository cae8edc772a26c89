"""A model's server without a model: what llama.cpp's says over HTTP, scripted by the prompt."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

ANSWER = "Fever is a raised body temperature."


class FakeModel:
    """Answers ANSWER, except where the last text asks for trouble.

    hold: streams one token, then waits until `release` is set; `stopped` is set if the
    caller goes away meanwhile. die: the connection breaks after one token. overflow, fail:
    llama.cpp's errors. refuse, sections: other answers.
    """

    def __init__(self) -> None:
        self.url, self.model, self.headers, self.restarts = "", "fake", {"X-Worker": "yes"}, 0
        self.fault: str | None = None
        self.heard = 0.0
        self.asked: list[dict[str, Any]] = []
        self.answers = {"refuse": "I can't help with that.", "": ANSWER}
        self.release, self.stopped, self.begun = (threading.Event() for _ in range(3))
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v1/completions")(self.plain)

    async def run(self) -> None:
        await asyncio.Event().wait()

    def constrained(self, grammar: str) -> dict[str, Any]:
        return {"grammar": grammar}

    async def chat(self, request: Request) -> Any:
        return self.reply(await request.json(), "chat.completion.chunk")

    async def plain(self, request: Request) -> Any:
        return self.reply(await request.json(), "text_completion")

    def reply(self, body: dict[str, Any], kind: str) -> Any:
        self.asked.append(body)
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if text == "overflow":
            error = {"code": 400, "type": "exceed_context_size_error", "message": "too long"}
            return JSONResponse({"error": error}, 400)
        if text == "fail":
            return JSONResponse({"error": {"code": 500, "message": f"broke on {text}"}}, 500)
        if not body.get("stream"):
            return StreamingResponse(self.whole(text, kind), media_type="application/json")
        return StreamingResponse(self.events(text, kind), media_type="text/event-stream")

    async def whole(self, text: str, kind: str) -> Any:
        """The stream's answer in one piece."""
        said, last = "", {}
        async for event in self.events(text, kind):
            if not event.startswith(b"data: ["):
                last = json.loads(event.removeprefix(b"data: "))
                for choice in last["choices"]:
                    said += choice.get("text") or choice.get("delta", {}).get("content") or ""
        chat = {"message": {"role": "assistant", "content": said}}
        choice = chat if kind.startswith("chat") else {"text": said}
        last["choices"] = [{"index": 0, "finish_reason": "stop"} | choice]
        yield json.dumps(last).encode()

    async def events(self, text: str, kind: str) -> Any:
        words = self.answers.get(text, ANSWER).split(" ")
        pieces = [words[0], *(" " + word for word in words[1:])]
        for number, piece in enumerate(pieces):
            chat = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            plain = {"index": 0, "text": piece, "finish_reason": None}
            choice = chat if kind.startswith("chat") else plain
            yield self.event(kind, [choice])
            if number == 0 and text == "die":
                raise RuntimeError("killed")
            if number == 0 and text == "hold":
                self.begun.set()
                try:
                    while not self.release.is_set():
                        await asyncio.sleep(0.01)
                finally:
                    if not self.release.is_set():
                        self.stopped.set()
        end = {"index": 0, "finish_reason": "stop"}
        end |= {"delta": {}} if kind.startswith("chat") else {"text": ""}
        yield self.event(kind, [end])
        usage = {"prompt_tokens": 5, "completion_tokens": len(pieces), "total_tokens": 99}
        yield self.event(kind, [], usage=usage, timings={"prompt_ms": 20, "secret": 1})
        yield b"data: [DONE]\n\n"

    def event(self, kind: str, choices: list[Any], **more: Any) -> bytes:
        chunk = {"id": "x-1", "object": kind, "created": 7, "model": "backend", "choices": choices}
        return b"data: " + json.dumps(chunk | more).encode() + b"\n\n"


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """`app` behind uvicorn on a free port of loopback; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    started = threading.Event()
    original = server.startup

    async def startup(sockets: Any = None) -> None:
        await original(sockets)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread.start()
    assert started.wait(20)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
