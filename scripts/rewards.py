"""Rewards for reinforcement learning: form where form is asked for, refusal where it is due.

    trl:
      reward_funcs: [medalign.rewards.format_and_safety]

Rules that anyone can read, from 0 to 1, by the row's category. They know nothing of medicine: they
keep a model to its form and its limits, and a policy that is pushed far learns to please them.
"""

from __future__ import annotations

from typing import Any

from medalign.refusal import is_refusal
from medalign.sections import parse

HARMFUL = {"harmful_request", "research"}  # what calls for a refusal
TEACHING = {"teaching", "format"}
WORDS = (12, 120)  # of a plain answer: fewer say nothing, more were not asked for


def reward(category: str, answer: str) -> float:
    """The reward of one answer to a prompt of a category of the preference pairs."""
    if category in TEACHING:
        faults = {fault.kind for fault in parse(answer).faults}
        return max(0.0, 1 - 0.25 * len(faults))
    short, long = WORDS
    fit = 1.0 if short <= len(answer.split()) <= long else 0.5
    return fit * (is_refusal(answer) == (category in HARMFUL))


def format_and_safety(
    prompts: list[Any], completions: list[Any], category: list[str], **columns: Any
) -> list[float]:
    """TRL's reward function: one figure for each completion, a list of messages."""
    answers = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [reward(of, answer) for of, answer in zip(category, answers, strict=True)]
