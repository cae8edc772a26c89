"""What a language model is asked as the judge, and the shape of what it must answer.

The words are those of data/judge/rubric-v1; a changed word is another version.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from statistics import fmean
from string import Template
from typing import Literal

from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, ConfigDict

from medalign.artifacts import ROOT
from medalign.judge import RUBRICS, Comparison, Verdict, sign
from medalign.sections import DISCLAIMER, SECTIONS

VERSION = "rubric-v1"
RUBRIC = ROOT / "data/judge" / VERSION


class Scores(BaseModel):
    """The rubrics of one answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    factual_accuracy: Literal[1, 2, 3, 4, 5]
    empathy: Literal[1, 2, 3, 4, 5]
    refusal_quality: Literal[1, 2, 3, 4, 5]

    @property
    def total(self) -> int:
        return self.factual_accuracy + self.empathy + self.refusal_quality


class Ruling(BaseModel):
    """What the model must answer: why, then the scores of both places."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reason: str
    answer_a: Scores
    answer_b: Scores


SCHEMA = Ruling.model_json_schema()


def verdict(case: Comparison, rulings: Sequence[Ruling]) -> Verdict:
    """Both orders as one verdict; rulings[1] saw the second answer as A."""
    straight, swapped = rulings
    firsts, seconds = (
        (straight.answer_a, swapped.answer_b),
        (straight.answer_b, swapped.answer_a),
    )
    leads = [a.total - b.total for a, b in zip(firsts, seconds, strict=True)]
    return Verdict(
        case.id,
        {name: fmean(getattr(scores, name) for scores in firsts) for name in RUBRICS},
        {name: fmean(getattr(scores, name) for scores in seconds) for name in RUBRICS},
        round(sum(leads) / (len(leads) * len(RUBRICS)), 4),
        sign(leads[0]) == sign(leads[1]),
    )


@functools.cache
def _templates() -> tuple[str, Template]:
    """The system message, filled, and the user message, to be filled."""
    system, user = (RUBRIC / "prompt.md").read_text(encoding="utf-8").split("\n---\n")
    rubrics = "\n".join((RUBRIC / f"{name}.md").read_text(encoding="utf-8") for name in RUBRICS)
    headings = ", ".join(f"**{name}**:" for name in SECTIONS)
    filled = Template(system).substitute(
        rubrics=rubrics, sections=headings, disclaimer=f"**{SECTIONS[-1]}**: {DISCLAIMER}"
    )
    return filled, Template(user)


def messages(case: Comparison, swapped: bool) -> list[ChatCompletionMessageParam]:
    """The chat for one order. swapped: the second answer stands in place A.

    The fences carry a hash of all they hold, so that no text can spell its own end.
    """
    system, user = _templates()
    answers = (case.second, case.first) if swapped else (case.first, case.second)
    # A model cut inside a character leaves half of it, which is no UTF-8.
    parts = [
        part.encode("utf-8", "replace").decode()
        for part in (case.category, case.prompt, *answers, case.reference or "")
    ]
    code = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    category, request, answer_a, answer_b, true = parts
    reference = "There is no reference answer."
    if case.reference is not None:
        reference = f"<<<REFERENCE {code}\n{true}\nREFERENCE {code}>>>"
    content = user.substitute(
        category=category if re.fullmatch(r"\w+", category) else "other",
        code=code, request=request, answer_a=answer_a, answer_b=answer_b, reference=reference,
    )  # fmt: skip
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]
