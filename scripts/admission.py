"""Who may enter the server, and how many: the key, the size and time of a body, the queue.

Everything is counted here (medalign.serving_metrics) and one line is logged for a request: its
route, status and seconds, no text of the client's.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from medalign.chat_api import ApiError
from medalign.serving_metrics import Metrics

log = logging.getLogger("medalign.requests")


class Limits(BaseModel):
    """deploy/serve.yaml: its comments say what each is."""

    model_config = ConfigDict(extra="forbid")

    slots: int = 8
    threads: int | None = None
    context: int | None = None
    queue: int = 96
    queue_seconds: float = 60
    answer_tokens: int = 512
    seconds: float = 300
    body_bytes: int = 1_048_576
    body_seconds: float = 15
    messages: int = 128
    file_check_seconds: float = 2
    probe_seconds: float = 30
    allow_origins: list[str] = []


class Queue:
    """So many at once, so many waiting, the rest turned away."""

    def __init__(self, limits: Limits, metrics: Metrics):
        self.limits, self.metrics = limits, metrics
        self.free = asyncio.Semaphore(limits.slots)
        self.waiting = 0
        self.typical = 2.0  # seconds of an answer, a moving average
        metrics.slots.set(limits.slots)

    def retry_after(self) -> int:
        """Seconds until a slot is likely to be free, 1 to 30."""
        turns = (self.waiting + 1) / self.limits.slots
        return max(1, min(30, round(turns * self.typical)))

    def turn_away(self, reason: str, message: str) -> ApiError:
        self.metrics.rejected.labels(reason).inc()
        return ApiError(429, message, "rate_limit_exceeded", retry_after=self.retry_after())

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. ApiError 429 if too many wait, or for too long."""
        if self.free.locked() and self.waiting >= self.limits.queue:
            raise self.turn_away("queue_full", "too many requests are waiting; try again")
        began = time.monotonic()
        self.waiting += 1
        self.metrics.waiting.inc()
        try:
            await asyncio.wait_for(self.free.acquire(), self.limits.queue_seconds)
        except TimeoutError:
            raise self.turn_away("queue_timeout", "no slot was free in time; try again") from None
        finally:
            self.waiting -= 1
            self.metrics.waiting.dec()
        held = time.monotonic()
        self.metrics.waited.observe(held - began)
        self.metrics.running.inc()
        try:
            yield
        finally:
            self.free.release()
            self.metrics.running.dec()
            self.typical += 0.1 * (time.monotonic() - held - self.typical)


def as_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


class Guard:
    """Around the whole app: the key, the size and the time of a body, counts, one line of log."""

    def __init__(
        self,
        app: Any,
        key: str | None,
        limits: Limits,
        metrics: Metrics,
        open_routes: set[str],
    ):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.expected = None if key is None else b"Bearer " + key.encode()
        self.open_routes = open_routes

    def allowed(self, scope: dict[str, Any]) -> bool:
        if self.expected is None or scope["path"] in self.open_routes:
            return True
        sent = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(sent, self.expected)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limits, began = self.limits, time.monotonic()
        deadline = began + limits.body_seconds
        read, body_ended, status = 0, False, 0

        async def bounded() -> Any:
            nonlocal read, body_ended
            if body_ended:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, "the request was not sent in time") from None
            read += len(message.get("body", b""))
            body_ended = not message.get("more_body", False)
            if read > limits.body_bytes:
                raise HTTPException(413, f"the request is larger than {limits.body_bytes} bytes")
            return message

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if not self.allowed(scope):
                reply = as_response(ApiError(401, "no valid API key", "invalid_api_key"))
                await reply(scope, receive, noted)
            elif length.isdigit() and int(length) > limits.body_bytes:
                message = f"the request is larger than {limits.body_bytes} bytes"
                await as_response(ApiError(413, message))(scope, receive, noted)
            else:
                await self.app(scope, bounded, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - began
            self.metrics.requests.labels(route, status or 499).inc()
            self.metrics.latency.labels(route).observe(seconds)
            log.info("%s %s %s %.3f s", scope["method"], route, status or 499, seconds)
