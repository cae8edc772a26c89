"""Fetch abstracts from PubMed as passages for retrieval (NCBI E-utilities, esearch and efetch).

    python scripts/pubmed.py --query "heart failure[majr] AND review[pt]" --max 200 \\
        --email you@example.org --out build/retrieval/pubmed.jsonl

NCBI_API_KEY in the environment allows 10 requests a second instead of 3; NCBI asks for an email
(--email or NCBI_EMAIL). Abstracts are their publishers' property: the file stays on this machine.
Limits and the address: data/retrieval/retrieval.yaml. What is dropped goes to *.rejected.jsonl.
Source: https://www.ncbi.nlm.nih.gov/books/NBK25499/.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from lxml import etree
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import track
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from medalign import pubmed_records
from medalign.artifacts import ROOT, StepError, manifest, run_step, write_json, write_jsonl
from medalign.passages import SETTINGS, settings

MOST = 9999  # ids that esearch gives of PubMed, however it is asked
KEY = "NCBI_API_KEY"


class PubMedSettings(BaseModel):
    """The part `pubmed` of data/retrieval/retrieval.yaml."""

    model_config = ConfigDict(extra="forbid")
    url: str
    tool: str
    per_second: float = Field(gt=0, le=3)
    per_second_with_key: float = Field(gt=0, le=10)
    batch: int = Field(ge=1, le=200)
    page: int = Field(ge=1, le=MOST)
    attempts: int = Field(ge=1, le=10)
    timeout_seconds: float = Field(gt=0)
    longest_wait_seconds: float = Field(gt=0)
    max_answer_mib: float = Field(gt=0)
    min_words: int = Field(ge=1)
    licence: str


class _Passing(Exception):
    """A failure that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Client:
    """E-utilities by POST, so that the key stands in no address and in no log.

    sleep, clock: for tests. Raises StepError, without the key, when a request fails for good.
    """

    def __init__(
        self,
        chosen: PubMedSettings,
        *,
        email: str = "",
        key: str = "",
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chosen, self._key, self._sleep, self._clock = chosen, key, sleep, clock
        extra = {"email": email, "api_key": key}
        self._always = {"tool": chosen.tool, **{name: x for name, x in extra.items() if x}}
        self._gap = 1 / (chosen.per_second_with_key if key else chosen.per_second)
        self._next = clock()
        self._http = httpx.Client(timeout=chosen.timeout_seconds)
        self._backoff = wait_exponential_jitter(initial=1, max=30, jitter=1)

    def search(self, query: str, most: int) -> tuple[list[str], int]:
        """PMIDs for a query, at most `most`, and how many there are in all."""
        found: list[str] = []
        while len(found) < most:
            size = min(self.chosen.page, most - len(found))
            wanted = {"term": query, "retstart": str(len(found)), "retmax": str(size)}
            ids, count = pubmed_records.ids(self._xml("esearch", {**wanted, "retmode": "xml"}))
            found += [name for name in ids if name not in found]
            if not ids or len(found) >= count:
                break
        return found, count if found else 0

    def fetch(self, pmids: list[str]) -> etree._Element:
        """The records of some PMIDs, at most a batch, as XML."""
        return self._xml("efetch", {"id": ",".join(pmids), "retmode": "xml"})

    def _xml(self, utility: str, wanted: dict[str, str]) -> etree._Element:
        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(self._backoff(state), getattr(error, "wait", 0.0))

        retrying = Retrying(
            stop=stop_after_attempt(self.chosen.attempts), wait=wait, sleep=self._sleep,
            retry=retry_if_exception_type(_Passing), reraise=True,
        )  # fmt: skip
        try:
            return retrying(self._attempt, utility, wanted)
        except _Passing as error:
            raise StepError(
                f"{utility}: {error}, {self.chosen.attempts} times; run the same again later"
            ) from None

    def _attempt(self, utility: str, wanted: dict[str, str]) -> etree._Element:
        if (pause := self._next - self._clock()) > 0:
            self._sleep(pause)
        self._next = max(self._clock(), self._next) + self._gap
        fields = {"db": "pubmed", **wanted, **self._always}
        try:
            with self._http.stream(
                "POST", f"{self.chosen.url}/{utility}.fcgi", data=fields
            ) as answer:
                self._judge(utility, answer)
                body = self._read(utility, answer)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Passing(type(error).__name__) from None
        try:
            return pubmed_records.root(body)
        except etree.XMLSyntaxError:
            raise _Passing("the answer is not whole XML") from None

    def _judge(self, utility: str, answer: httpx.Response) -> None:
        """Raise for a status other than 200."""
        status = answer.status_code
        if status == 429 or status >= 500:
            asked = 0.0
            with contextlib.suppress(ValueError):
                asked = max(0.0, float(answer.headers.get("retry-after", 0)))
            if asked > self.chosen.longest_wait_seconds:
                raise StepError(f"{utility}: asks to wait {asked:.0f} s; run the same again then")
            raise _Passing(f"status {status}", asked)
        if status != 200:  # the body may repeat the key
            step = f"is {KEY} right?" if self._key else "look at the query"
            raise StepError(f"{utility}: status {status}, not retried; {step}")

    def _read(self, utility: str, answer: httpx.Response) -> bytes:
        limit, body = int(self.chosen.max_answer_mib * 2**20), bytearray()
        for part in answer.iter_bytes():
            body += part
            if len(body) > limit:
                mib = self.chosen.max_answer_mib
                raise StepError(f"{utility}: answers more than {mib:g} MiB; lower pubmed.batch")
        return bytes(body)


def gather(client: Client, query: str, most: int) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Passages, what was dropped with its reason, and counts."""
    pmids, count = client.search(query, most)
    if not pmids:
        raise StepError(f"PubMed finds nothing for {query!r}; try it at pubmed.ncbi.nlm.nih.gov")
    kept, dropped = [], []
    size = client.chosen.batch
    starts = range(0, len(pmids), size)
    for start in track(starts, "efetch", disable=len(starts) == 1):
        batch = pmids[start : start + size]
        good, bad = pubmed_records.passages(client.fetch(batch), batch, client.chosen.min_words)
        kept += good
        dropped += bad
    reasons = dict(Counter(row["reason"] for row in dropped))
    return kept, dropped, {"found": count, "asked": len(pmids), "kept": len(kept), **reasons}


def local(name: str) -> Path:
    """The path, or StepError if it would be committed: abstracts are not this project's to give."""
    out = Path(name)
    place = out.resolve()
    kept_out = (ROOT / "build", ROOT / "runs")
    if place.is_relative_to(ROOT) and not any(map(place.is_relative_to, kept_out)):
        raise StepError(f"{out}: abstracts are not shipped; choose a place below build/")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--query", required=True, help="as PubMed's search box takes it")
    parser.add_argument("--max", type=int, default=200, help=f"abstracts, 1 to {MOST}")
    parser.add_argument("--email", default=os.environ.get("NCBI_EMAIL", ""))
    parser.add_argument("--url", help="another address of E-utilities")
    parser.add_argument("--out", type=local, required=True, help="passages JSONL below build/")
    args = parser.parse_args()
    if not 1 <= args.max <= MOST:
        raise StepError(f"--max is 1 to {MOST}: esearch gives no more; narrow the query instead")
    if not args.query.strip():
        raise StepError("--query says nothing")
    began = time.monotonic()
    chosen = PubMedSettings(**settings().pubmed | ({"url": args.url} if args.url else {}))
    if not args.email:
        print("no --email: NCBI asks for one, and blocks without notice where there is none")
    client = Client(chosen, email=args.email, key=os.environ.get(KEY, ""))
    kept, dropped, counts = gather(client, args.query, args.max)
    if not kept:
        raise StepError(f"no abstract among {counts['asked']} records: {counts}; widen the query")
    write_jsonl(args.out, kept)
    write_jsonl(args.out.with_suffix(".rejected.jsonl"), dropped)
    facts = {"query": args.query, "counts": counts, "licence": chosen.licence}
    made = manifest("pubmed passages", {"passages": args.out, "settings": SETTINGS}, began, **facts)
    write_json(args.out.with_suffix(".manifest.json"), made)
    print(f"{args.out}: {counts}\n{chosen.licence}")


if __name__ == "__main__":
    run_step(main)
