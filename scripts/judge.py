"""The judge: which of two answers to a request is better, by three rubrics from 1 to 5.

`ModelJudge` (model_judge.py) asks a language model behind any OpenAI-compatible endpoint
(OPENAI_API_KEY, OPENAI_BASE_URL, JUDGE_MODEL, MAX_USD), each pair in both orders so that a liking
for the first place cancels. `RubricJudge` (rubric_judge.py) is rules and no model: it needs
nothing and sees little, so a figure of its must carry its name. Rubrics and prompt are
data/judge/rubric-v1, prices data/judge/prices.yaml. judge_gold.py says how far a judge agrees with
the gold pairs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sklearn.metrics import cohen_kappa_score

from medalign.suite import rate

RUBRICS = ("factual_accuracy", "empathy", "refusal_quality")


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt. category: as in data/preferences; reference: a right answer."""

    id: str
    category: str
    prompt: str
    first: str
    second: str
    reference: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Scores of both answers (rubric → 1 to 5), the mean of both orders asked.

    margin: mean of first less mean of second, above 0 if the first is better.
    consistent: whether both orders say the same answer is better (or both neither).
    """

    id: str
    first: dict[str, float]
    second: dict[str, float]
    margin: float
    consistent: bool


@dataclass
class Judged:
    """What a judge could say. failures: id → why there is no verdict.

    stopped: why the rest was not asked, None if all was. usd, tokens: spent on this call.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


class Judge(Protocol):
    """Anything that compares answers."""

    name: str

    def judge(self, comparisons: Sequence[Comparison]) -> Judged: ...

    def estimate(self, comparisons: Sequence[Comparison]) -> tuple[int, int, float]: ...


def sign(number: float) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def judge_of_environment() -> Judge:
    """The model the environment names, else the rules."""
    from medalign.model_judge import ModelJudge
    from medalign.rubric_judge import RubricJudge

    if any(os.environ.get(name, "").strip() for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")):
        return ModelJudge()
    return RubricJudge()


def _agreement(verdicts: Sequence[Verdict], gold: Sequence[bool]) -> dict[str, Any]:
    said = [sign(v.margin) for v in verdicts]
    true = [1 if first else -1 for first in gold]
    hits = sum(a == b for a, b in zip(said, true, strict=True))
    # One class on both sides leaves kappa undefined (0/0).
    kappa = cohen_kappa_score(said, true) if len({*said, *true}) > 1 else math.nan
    return {
        **rate(hits, len(said)),
        "ties": said.count(0),
        "consistent": sum(v.consistent for v in verdicts),
        "kappa": round(float(kappa), 4) if math.isfinite(kappa) else None,
    }


def agreement(
    verdicts: Sequence[Verdict],
    gold_first_is_better: Sequence[bool],
    categories: Sequence[str] | None = None,
) -> dict[str, Any]:
    """How often a judge prefers what is better, with n and the 95 % Wilson interval.

    A tie (margin 0) counts as wrong, and is counted in `ties`. kappa: Cohen's, a tie being a
    class of its own; None where it is not defined. consistent: verdicts both orders agree on.
    categories: of each verdict, for `by_category`. ValueError if lengths differ.
    """
    found = _agreement(verdicts, gold_first_is_better)
    if categories is None:
        return found
    rows = list(zip(verdicts, gold_first_is_better, categories, strict=True))
    found["by_category"] = {
        name: _agreement(
            [v for v, _, category in rows if category == name],
            [first for _, first, category in rows if category == name],
        )
        for name in dict.fromkeys(categories)
    }
    return found
