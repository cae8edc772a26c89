"""Vertex AI itself: what it has, and the calls of a plan made one after the other.

Needs google-cloud-aiplatform (pip install medalign[vertex]) and Google's default credentials.
A request refused with 503 is sent again, as https://google.aip.dev/194 has it; a quota error is
told at once, with what had been made before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from medalign.artifacts import StepError
from medalign.vertex_calls import Call, Deployed, Name, State
from medalign.vertex_settings import Settings

LOGIN = "gcloud auth application-default login gives them"


class NotReady(StepError):
    """The SDK or the credentials are missing: nothing was asked."""


def sdk() -> Any:
    """google.cloud.aiplatform. NotReady if it is not installed."""
    try:
        from google.cloud import aiplatform
    except ImportError as error:
        raise NotReady(f"{error}: pip install medalign[vertex], then run again") from error
    return aiplatform


def refused(error: BaseException) -> bool:
    """Is this a 503 to the request itself, which then has begun nothing?

    A 503 to a look at an accepted request is not: sending that one again would do it twice.
    """
    return unavailable(error) and method_of(error) not in (None, "GET")


def looking(error: BaseException) -> bool:
    """Did a look fail, so that the request before it may well be carried out?"""
    return method_of(error) == "GET"


def method_of(error: BaseException) -> str | None:
    """The HTTP method of the request that failed, None where that cannot be said."""
    return getattr(getattr(getattr(error, "response", None), "request", None), "method", None)


def unavailable(error: BaseException) -> bool:
    """Is this a 503?"""
    from google.api_core.exceptions import ServiceUnavailable

    return isinstance(error, ServiceUnavailable)


def persistent(settings: Settings, again: Callable[[BaseException], bool]) -> Retrying:
    """Attempts as the settings have them, for the errors that `again` accepts."""
    return Retrying(
        retry=retry_if_exception(again),
        stop=stop_after_attempt(settings.attempts),
        wait=wait_exponential(multiplier=settings.first_wait_seconds, max=60),
        reraise=True,
    )


def told(error: Exception) -> str:
    """A Google error in one line, with the next step. Errors of other kinds are raised again."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    words = " ".join(str(getattr(error, "message", None) or error).split()).rstrip(".")
    if isinstance(error, exceptions.TooManyRequests):
        return (
            f"quota used up: {words}. Ask for more (Google Cloud console, IAM & Admin, Quotas, "
            "service aiplatform.googleapis.com) or choose another --machine or --region, then run "
            "the same again"
        )
    if isinstance(error, exceptions.Forbidden):
        return f"{words}. The account needs roles/aiplatform.user, the project the Vertex AI API"
    if isinstance(error, (DefaultCredentialsError, exceptions.Unauthorized, GoogleAuthError)):
        return f"no valid Google credentials ({words}); {LOGIN}"
    if isinstance(error, exceptions.ServiceUnavailable):
        return f"Vertex AI is not available now: {words}. Wait, and run the same again"
    if isinstance(error, exceptions.GoogleAPIError):
        return f"Vertex AI: {words}. Correct that, and run the same again"
    if isinstance(error, requests.RequestException):
        return f"Vertex AI was not reached ({words}); look at network, region and --api-endpoint"
    if isinstance(error, (ValueError, TypeError)):
        return f"the SDK does not take it: {words}"
    raise error


def made(call: Call, names: dict[str, Any]) -> Any:
    """Make one call of the SDK; `names` are the results before it."""
    root, *path = call.function.split(".")
    function = reduce(getattr, path, names[root])
    arguments = {k: names[v] if isinstance(v, Name) else v for k, v in call.arguments.items()}
    return function(**arguments)


def carry_out(calls: list[Call], settings: Settings) -> None:
    """Make the calls. StepError at the first that fails: why, what there is, how to undo it."""
    names: dict[str, Any] = {"aiplatform": sdk()}
    left: list[str] = []
    for number, call in enumerate(calls, 1):
        print(f"[{number}/{len(calls)}] {call.function}", flush=True)
        try:
            result = persistent(settings, refused)(made, call, names)
        except KeyboardInterrupt:
            print(f"\n{call.function} may go on in the cloud. {remains(left)}", file=sys.stderr)
            raise
        except Exception as error:
            begun = " It may have been accepted: plan looks." if looking(error) else ""
            raise StepError(f"{call.function}: {told(error)}.{begun} {remains(left)}") from error
        if call.result:
            names[call.result] = result
        if call.made:
            undo = f" (undo: {call.undo.format(**names)})" if call.undo else ""
            left.append(call.made.format(**names) + undo)
            print(f"      {left[-1]}", flush=True)


def remains(left: list[str]) -> str:
    """What the calls before a failure have made, in one sentence."""
    return f"Made before that: {'; '.join(left)}" if left else "Before that nothing was made"


def look_up(name: str, begin: Call, settings: Settings) -> State:
    """What Vertex AI has of a model: its versions, its endpoint, what is deployed. Only reads.

    NotReady without SDK or credentials; StepError if there are several endpoints of the name.
    """
    aiplatform = sdk()
    from google.auth.exceptions import DefaultCredentialsError

    try:
        made(begin, {"aiplatform": aiplatform})
        return persistent(settings, unavailable)(look, aiplatform, name)
    except DefaultCredentialsError as error:
        raise NotReady(f"no Google credentials; {LOGIN}") from error
    except StepError:
        raise
    except Exception as error:
        raise StepError(f"looking up {name}: {told(error)}. Nothing was made") from error


def look(aiplatform: Any, name: str) -> State:
    """The state, asked once."""
    wanted = f'display_name="{name}"'
    models = [m for m in aiplatform.Model.list(filter=wanted) if m.name == name]
    endpoints = aiplatform.Endpoint.list(filter=wanted)
    if len(endpoints) > 1:
        there = ", ".join(e.name for e in endpoints)
        raise StepError(f"several endpoints are called {name}: {there}; delete all but one")
    versions: dict[str, str] = {}
    for version in models[0].versioning_registry.list_versions() if models else ():
        versions |= {alias: version.version_id for alias in version.version_aliases or ()}
    deployed = []
    for there in endpoints[0].list_models() if endpoints else ():
        share = endpoints[0].traffic_split.get(there.id, 0)
        model, created = there.model.split("/")[-1].split("@")[0], there.create_time.timestamp()
        deployed.append(Deployed(there.id, model, there.model_version_id, created, share))
    return State(
        model=models[0].resource_name if models else None,
        versions=versions,
        endpoint=endpoints[0].resource_name if endpoints else None,
        deployed=tuple(sorted(deployed, key=lambda d: d.created)),
    )
