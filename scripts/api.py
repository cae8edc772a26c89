"""The OpenAI-compatible API as a FastAPI application.

    app = create_app(backend, served, limits)      # medalign.serve runs it

Routes and the shape of errors are here; who may enter stands in medalign.admission, what happens
with a request in medalign.gateway, which requests there are in medalign.chat_api.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from medalign.admission import Guard, Limits, as_response
from medalign.chat_api import ApiError, ChatRequest, CompletionRequest, ErrorReply, PredictRequest
from medalign.gateway import CHAT, PLAIN, Gateway, Served
from medalign.worker import Backend

log = logging.getLogger("medalign.api")


def described(error: RequestValidationError | ValidationError) -> ApiError:
    """Pydantic's first complaint in OpenAI's shape, without what the client sent."""
    first = (
        error.errors(include_input=False, include_url=False)[0]
        if isinstance(error, ValidationError)
        else error.errors()[0]
    )
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", "invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(place)
    return ApiError(400, f"{where}: {message}" if where else message, None, where or None)


REPLIES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "the request cannot be answered as it is",
        401: "no valid key",
        404: "no such model",
        413: "the body is too large",
        422: "not used: invalid requests get 400",
        429: "too many requests wait; see Retry-After",
        503: "the model is not ready; see Retry-After",
        504: "the answer took too long",
    }.items()
}


def create_app(backend: Backend, served: Served, limits: Limits | None = None) -> FastAPI:
    """The application. It runs `backend` from startup to shutdown."""
    gateway = Gateway(backend, served, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(backend.run())
        running.add_done_callback(lambda task: app.state.ended(task))
        yield
        running.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await running
        await gateway.client.aclose()

    key = [Depends(HTTPBearer(auto_error=False))] if served.key else []
    app = FastAPI(
        title="MedAlign",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=key,
    )
    app.state.gateway, app.state.ended = gateway, lambda task: None

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return as_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # A page of another origin can post text to this machine, but not JSON without asking.
        if "json" not in request.headers.get("content-type", ""):
            return as_response(ApiError(400, "send the body with Content-Type: application/json"))
        return as_response(described(error))

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> Response:
        reply = as_response(ApiError(error.status_code, str(error.detail)))
        reply.headers.update(error.headers or {})
        return reply

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.error("%s in %s", type(error).__name__, request.url.path)
        return as_response(ApiError(500, "the server failed"))

    @app.post(CHAT, responses=REPLIES)
    async def chat(request: Request, body: ChatRequest) -> Any:
        """Answer a conversation, whole or as a stream of server-sent events."""
        return await gateway.respond(request, body)

    @app.post(PLAIN, responses=REPLIES)
    async def completion(request: Request, body: CompletionRequest) -> Any:
        """Go on with a text as it is: no template, no system prompt."""
        return await gateway.respond(request, body)

    @app.get("/models", responses={401: REPLIES[401]})
    @app.get("/v1/models", responses={401: REPLIES[401]})
    async def models() -> dict[str, Any]:
        """The model's name and its aliases."""
        names = (served.name, *served.aliases)
        rows = [
            {"id": n, "object": "model", "created": served.made, "owned_by": "medalign"}
            for n in names
        ]
        return {"object": "list", "data": rows}

    async def health() -> Response:
        """200 if the model answers, else 503 with the reason."""
        fault = backend.fault
        content = {"status": "unavailable" if fault else "ok", "model": served.name}
        return JSONResponse(content | ({"reason": fault} if fault else {}), 503 if fault else 200)

    health_routes = {"/health", served.health_route}
    for route in health_routes:
        app.get(route, responses={503: {"description": "the model does not answer"}})(health)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """200 as long as the server itself runs."""
        return {"status": "alive"}

    @app.get("/metrics", responses={401: REPLIES[401]})
    async def metrics() -> Response:
        """What Prometheus reads."""
        gateway.metrics.up.set(backend.fault is None)
        gateway.metrics.restarts.set(backend.restarts)
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    if served.predict_route:

        @app.post(served.predict_route, responses=REPLIES)
        async def predict(request: Request, body: PredictRequest) -> dict[str, Any]:
            """Vertex AI's envelope around chat requests and completions."""
            asked = []
            for number, instance in enumerate(body.instances):
                given = {
                    "model": served.name,
                    **(body.parameters or {}),
                    **instance,
                    "stream": False,
                }
                shape = ChatRequest if "messages" in given else CompletionRequest
                try:
                    asked.append(shape.model_validate(given))
                except ValidationError as error:
                    fault = described(error)
                    fault.message = f"instances.{number}: {fault.message}"
                    raise fault from None
            work = asyncio.gather(*map(gateway.whole, asked))
            return {"predictions": await gateway.unless_gone(request, work)}

    app.add_middleware(
        Guard,
        key=served.key,
        limits=gateway.limits,
        metrics=gateway.metrics,
        open_routes=health_routes | {"/health/live"},
    )
    if gateway.limits.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=gateway.limits.allow_origins, allow_headers=["*"]
        )
    return app
