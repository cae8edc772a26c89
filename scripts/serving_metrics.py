"""What the server counts for Prometheus: requests, times, tokens, the queue, kinds of answers.

No label holds a prompt, a key or a client's text, so their number stays bounded. Times are in
seconds. deploy/grafana.json and deploy/alerts.yml read these names; a test compares them.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from medalign.refusal import is_refusal
from medalign.sections import parse

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
RATES = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)


def kind_of(answer: str, ended: bool) -> str:
    """four_sections, refusal, broken_sections (begun and not kept) or other."""
    if parse(answer, ended).ok:
        return "four_sections"
    if is_refusal(answer):
        return "refusal"
    return "broken_sections" if answer.lstrip().startswith("**Definition**") else "other"


class Metrics:
    """One set of metrics in a registry of its own, so that two apps do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on = self.registry
        self.requests = Counter(
            "medalign_requests", "requests, by route and status", ["route", "status"], registry=on
        )
        self.latency = Histogram(
            "medalign_request_seconds", "whole request", ["route"], buckets=SECONDS, registry=on
        )
        self.first_token = Histogram(
            "medalign_first_token_seconds",
            "slot given to first token",
            buckets=SECONDS,
            registry=on,
        )
        self.waited = Histogram(
            "medalign_queue_seconds", "wait for a slot", buckets=SECONDS, registry=on
        )
        self.rate = Histogram(
            "medalign_tokens_per_second", "generation, of one answer", buckets=RATES, registry=on
        )
        self.tokens = Counter("medalign_tokens", "tokens, by kind", ["kind"], registry=on)
        self.answers = Counter("medalign_answers", "answers, by kind", ["kind"], registry=on)
        self.rejected = Counter(
            "medalign_rejected", "requests turned away", ["reason"], registry=on
        )
        self.waiting = Gauge("medalign_queue_depth", "requests waiting for a slot", registry=on)
        self.running = Gauge("medalign_running", "answers being generated", registry=on)
        self.slots = Gauge(
            "medalign_slots", "answers that can be generated side by side", registry=on
        )
        self.up = Gauge("medalign_up", "1 if the model answers", registry=on)
        self.restarts = Gauge("medalign_worker_restarts", "restarts of the worker", registry=on)
        for kind in ("four_sections", "refusal", "broken_sections", "other"):
            self.answers.labels(kind)  # shown as 0 before the first one
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        for reason in ("queue_full", "queue_timeout"):
            self.rejected.labels(reason)

    def answered(
        self, text: str, ended: bool, usage: dict[str, int], seconds: float, first: float | None
    ) -> None:
        """Count one whole answer. seconds, first: from the slot on, to the end and first token.

        first: None where nobody saw it.
        """
        self.answers.labels(kind_of(text, ended)).inc()
        self.tokens.labels("prompt").inc(usage.get("prompt_tokens", 0))
        self.tokens.labels("completion").inc(usage.get("completion_tokens", 0))
        if first is None:
            return
        self.first_token.observe(first)
        if seconds > first and usage.get("completion_tokens", 0) > 1:
            self.rate.observe((usage["completion_tokens"] - 1) / (seconds - first))
