"""The judge that is a language model behind an OpenAI-compatible endpoint.

Both orders are asked; answers are cached on disk, failures retried, spending limited; the key is
read from the environment and told to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import hashlib
import json
import math
import os
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import diskcache
import openai
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.progress import Progress
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from medalign.artifacts import ROOT, StepError
from medalign.judge import Comparison, Judged
from medalign.judge_rubric import SCHEMA, VERSION, Ruling, messages, verdict
from medalign.recipe import read_yaml

PRICES = ROOT / "data/judge/prices.yaml"
CACHE = ROOT / "build/judge-cache"
OPENAI = "https://api.openai.com/v1"

ATTEMPTS = 6  # requests for one ruling before it is a failure
FAILURES = 10  # rulings that fail one after the other before the run stops
LONGEST_WAIT = 300.0  # seconds; an endpoint that asks for more is asked again another day
CHARACTERS = 4.0  # of English text a token, rounded down: an estimate rather too high
RULING_TOKENS = 130  # what a ruling takes, for the estimate
LIMIT_TOKENS = 500  # a ruling's limit at first; doubled when it was cut


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    """As much of an endpoint's body as is needed; what does not fit is malformed."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Passing(Exception):
    """A failure worth another request. wait: seconds that the endpoint asked for."""

    def __init__(self, message: str, wait: float | None = None, cut: bool = False) -> None:
        super().__init__(message)
        self.wait, self.cut = wait, cut


class _Refused(Exception):
    """The model or its filter will not judge this case."""


class _Spent(Exception):
    """One more request could pass the spend limit."""


def _retry_after(headers: Any) -> float | None:
    """Seconds an endpoint asks to wait, from its headers (a number or an HTTP date)."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        with contextlib.suppress(ValueError):
            seconds = float(value) / unit
            if math.isfinite(seconds):
                return max(0.0, seconds)
        with contextlib.suppress(ValueError):
            until = email.utils.parsedate_to_datetime(value)
            return max(0.0, (until - dt.datetime.now(dt.timezone.utc)).total_seconds())
    return None


_backoff = wait_exponential_jitter(initial=1, max=60, jitter=1)


def _wait(state: RetryCallState) -> float:
    """Seconds before the next request: what was asked for, else doubling with jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _Passing) else None
    return _backoff(state) if asked is None else asked


class ModelJudge:
    """A language model as the judge, over the OpenAI protocol.

    cache: folder of rulings by the hash of model, rubric version and messages; what lies there
    is not asked again. concurrency: requests in flight. timeout: seconds for one request.
    sleep: waits that many seconds. usd, tokens_in, tokens_out: spent by this judge so far.
    StepError if the environment does not say whom to ask, or the model has no price.
    """

    def __init__(
        self,
        cache: Path = CACHE,
        concurrency: int = 8,
        timeout: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        url = os.environ.get("OPENAI_BASE_URL", "").strip()
        if not self._key and not url:
            raise StepError("set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own")
        if not re.fullmatch(r"[!-~]*", self._key):
            raise StepError("OPENAI_API_KEY holds characters that no key has; set it again")
        self._url = url or OPENAI
        if urlsplit(self._url).scheme not in ("http", "https"):
            raise StepError("OPENAI_BASE_URL is no http:// or https:// address")
        self.host = urlsplit(self._url).hostname or "the endpoint"
        self.model = os.environ.get("JUDGE_MODEL", "").strip() or "gpt-4.1"
        self.name = f"{self.model} at {self.host}, {VERSION}"
        self.max_usd = self._limit(os.environ.get("MAX_USD", "").strip() or "5")
        self._prices = self._price(read_yaml(PRICES))
        self._cache, self._concurrency, self._timeout = cache, concurrency, timeout
        self._sleep = sleep
        self.usd, self.tokens_in, self.tokens_out = 0.0, 0, 0
        self._reserved = 0.0  # USD that requests in flight may cost at most
        self._failed = 0  # rulings that failed since the last that did not

    def _limit(self, text: str) -> float:
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if not (math.isfinite(limit) and limit >= 0):
            raise StepError(f"MAX_USD={text!r} is no amount of US dollars")
        return limit

    def _price(self, prices: dict[str, Any]) -> tuple[float, float]:
        """USD a token of input and of output. A dated snapshot costs what its model costs."""
        base = re.sub(r"-\d{4}-\d\d-\d\d$", "", self.model)
        price: Any = prices.get(self.model, prices.get(base))
        try:
            return float(price["input"]) / 1e6, float(price["output"]) / 1e6
        except (TypeError, KeyError, ValueError):
            pass
        raise StepError(f"{PRICES}: no price for {self.model!r}, so MAX_USD cannot be kept; add it")

    def _cost(self, tokens_in: int, tokens_out: int) -> float:
        return tokens_in * self._prices[0] + tokens_out * self._prices[1]

    def _safe(self, text: object) -> str:
        """One line of an endpoint's words without the key or what looks like one."""
        line = " ".join(str(text).split())
        line = line.replace(self._key, "…") if self._key else line
        return re.sub(r"\bsk-[\w*.-]+|(?i:bearer) \S+", "…", line)[:300]

    def key(self, chat: list[ChatCompletionMessageParam]) -> str:
        """Under which name a ruling is kept."""
        content = json.dumps([self.model, VERSION, chat], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[diskcache.Cache]:
        """The cache. It holds JSON, never pickles; a broken or full one is a StepError."""
        try:
            with diskcache.Cache(
                str(self._cache), disk=diskcache.JSONDisk, eviction_policy="none"
            ) as cache:
                yield cache
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise StepError(f"{self._cache}: {error}; free space, or remove it") from None

    def estimate(self, comparisons: Sequence[Comparison]) -> tuple[int, int, float]:
        """What judging costs: tokens in, tokens out, USD. What is in the cache costs nothing.

        Tokens are counted as characters / CHARACTERS: good for an order of magnitude.
        """
        tokens_in = tokens_out = 0
        with self._opened() as cache:
            for case in comparisons:
                for swapped in (False, True):
                    chat = messages(case, swapped)
                    if self.key(chat) not in cache:
                        tokens_in += self._tokens(chat)
                        tokens_out += RULING_TOKENS
        return tokens_in, tokens_out, self._cost(tokens_in, tokens_out)

    def _tokens(self, chat: list[ChatCompletionMessageParam]) -> int:
        text = "".join(str(message.get("content")) for message in chat) + json.dumps(SCHEMA)
        return math.ceil(len(text) / CHARACTERS)

    def judge(self, comparisons: Sequence[Comparison]) -> Judged:
        """Judge every comparison in both orders, within MAX_USD.

        What failed for good is in `failures`; at the spend limit `stopped` says so. StepError,
        with what was judged kept in the cache, if the endpoint refuses the key or the request,
        or fails for FAILURES rulings in a row.
        """
        before = self.usd, self.tokens_in, self.tokens_out
        with self._opened() as cache:
            judged = asyncio.run(self._judge_all(comparisons, cache))
        judged.usd = round(self.usd - before[0], 6)
        judged.tokens_in = self.tokens_in - before[1]
        judged.tokens_out = self.tokens_out - before[2]
        return judged

    async def _judge_all(self, comparisons: Sequence[Comparison], cache: diskcache.Cache) -> Judged:
        judged = Judged()
        rulings: dict[tuple[int, bool], Ruling] = {}
        gate = asyncio.Semaphore(self._concurrency)
        self._failed = 0

        async def rule(index: int, swapped: bool) -> None:
            case = comparisons[index]
            chat = messages(case, swapped)
            kept = cache.get(self.key(chat))
            if kept is None:
                async with gate:
                    if judged.stopped or case.id in judged.failures:
                        return
                    try:
                        kept = await self._ruling(client, chat)
                    except _Spent as error:
                        judged.stopped = str(error)
                        return
                    except _Passing as error:
                        judged.failures[case.id] = f"failed {ATTEMPTS} times, at last: {error}"
                        self._another_failed(error)
                        return
                    self._failed = 0
                    cache.set(self.key(chat), kept)
            if "refusal" in kept:
                judged.failures[case.id] = kept["refusal"]
            else:
                rulings[index, swapped] = Ruling.model_validate(kept)

        failed: Exception | None = None
        bar = Progress(console=Console(stderr=True))
        client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self._url, max_retries=0, timeout=self._timeout
        )
        try:
            async with client, asyncio.TaskGroup() as group:
                with bar:
                    row = bar.add_task(self.model, total=2 * len(comparisons))
                    tasks = [
                        group.create_task(rule(index, swapped))
                        for index in range(len(comparisons))
                        for swapped in (False, True)
                    ]
                    for task in tasks:
                        task.add_done_callback(lambda _: bar.advance(row))
                    await asyncio.wait(tasks) if tasks else None
        except* (StepError, sqlite3.Error, diskcache.Timeout) as errors:
            failed = errors.exceptions[0]
        if failed is not None:
            raise failed
        for index, case in enumerate(comparisons):
            orders = [rulings.get((index, swapped)) for swapped in (False, True)]
            if case.id not in judged.failures and None not in orders:
                judged.verdicts.append(verdict(case, [o for o in orders if o is not None]))
        return judged

    def _another_failed(self, error: _Passing) -> None:
        """StepError when so many rulings in a row failed that the endpoint must be down."""
        self._failed += 1
        if self._failed >= FAILURES:
            raise StepError(
                f"{self.host}: {self._failed} rulings in a row failed, the last: {error}; "
                "what was judged is kept, run the same again"
            )

    async def _ruling(
        self, client: openai.AsyncOpenAI, chat: list[ChatCompletionMessageParam]
    ) -> dict[str, Any]:
        """A ruling as JSON, or {"refusal": why}. _Passing when all attempts failed."""
        limit = LIMIT_TOKENS
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS), wait=_wait, sleep=self._sleep,
            retry=retry_if_exception_type(_Passing), reraise=True,
        )  # fmt: skip
        try:
            async for attempt in retrying:
                with attempt:
                    try:
                        return await self._attempt(client, chat, limit)
                    except _Passing as error:
                        limit *= 2 if error.cut else 1
                        raise
        except _Refused as error:
            return {"refusal": str(error)}
        raise AssertionError("tenacity ends with a result or an error")

    async def _attempt(
        self, client: openai.AsyncOpenAI, chat: list[ChatCompletionMessageParam], limit: int
    ) -> dict[str, Any]:
        """One request within the spend limit, its body read and its cost counted."""
        most = self._cost(self._tokens(chat), limit)
        if self.usd + self._reserved + most > self.max_usd:
            raise _Spent(f"the spend limit of {self.max_usd:.2f} USD is reached; raise MAX_USD")
        self._reserved += most
        try:
            body = await self._send(client, chat, limit)
        finally:
            self._reserved -= most
        try:
            completion = _Completion.model_validate_json(body)
        except ValidationError:
            self._charge(_Usage(prompt_tokens=self._tokens(chat), completion_tokens=limit))
            raise _Passing("a body that is no chat completion") from None
        guess = _Usage(prompt_tokens=self._tokens(chat), completion_tokens=RULING_TOKENS)
        self._charge(completion.usage or guess)
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise _Passing(f"a ruling longer than {limit} tokens", cut=True)
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise _Refused(self._safe(f"not judged: {choice.message.refusal or 'content filter'}"))
        try:
            return Ruling.model_validate_json(choice.message.content or "").model_dump()
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
            raise _Passing(f"a ruling outside the schema ({where})") from None

    def _charge(self, usage: _Usage) -> None:
        self.tokens_in += usage.prompt_tokens
        self.tokens_out += usage.completion_tokens
        self.usd += self._cost(usage.prompt_tokens, usage.completion_tokens)

    async def _send(
        self, client: openai.AsyncOpenAI, chat: list[ChatCompletionMessageParam], limit: int
    ) -> bytes:
        """The body of one answer. Errors leave here as ours, with no trace of the request."""
        error: Exception
        try:
            response = await client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=chat,
                temperature=0,
                max_completion_tokens=limit,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "ruling", "strict": True, "schema": SCHEMA},
                },
            )
            return response.http_response.content
        except openai.APIStatusError as status:
            error = self._of_status(status)
        except openai.APITimeoutError:
            error = _Passing(f"no answer within {self._timeout:g} s")
        except openai.APIConnectionError as broken:
            error = _Passing(f"the connection failed ({type(broken.__cause__).__name__})")
        except (openai.OpenAIError, ValueError) as other:
            error = _Passing(self._safe(f"{type(other).__name__}: {other}"))
        raise error  # out here, so that the library's exception is not its context

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        """What a status above 399 means: another request, a case lost, or the end of the run."""
        status, code = error.status_code, str(error.code)
        if status in (401, 403):
            return StepError(f"{self.host}: OPENAI_API_KEY was not accepted (status {status})")
        if code == "insufficient_quota":
            return StepError(f"{self.host}: the account has no quota left; what was judged is kept")
        if code in ("content_filter", "context_length_exceeded"):
            return _Refused(f"not judged: {code}")
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(error.response.headers)
            if wait is not None and wait > LONGEST_WAIT:
                return StepError(
                    f"{self.host}: asks to wait {wait:.0f} s (status {status}); "
                    "what was judged is kept, run the same again then"
                )
            return _Passing(f"status {status}", wait)
        said = self._safe(error.message)
        return StepError(
            f"{self.host}: status {status} for JUDGE_MODEL={self.model}, not retried: {said}"
        )
