"""The pairs that training reads: form, split, what must not be among them."""

from __future__ import annotations

import itertools
import os
import random

import pytest

from medalign import build_pairs, evaluate_safety, rewards, sources
from medalign.artifacts import StepError, read_jsonl, write_jsonl
from medalign.build_pairs import (
    SETTINGS,
    Settings,
    asked_by_evaluations,
    contrast,
    evaluations,
    is_held_out,
    mixed,
    row,
    teaching,
)
from medalign.check_preferences import GOLD
from medalign.recipe import system_prompt
from medalign.refusal import is_refusal
from medalign.sections import parse
from medalign.settings import declared

sides = ("benign_lookalike", "harmful_request")  # of a contrast: even and odd numbers


@pytest.fixture(scope="module")
def settings() -> Settings:
    return declared(SETTINGS, Settings)


@pytest.fixture(scope="module")
def gold() -> list[dict]:
    return [
        row(p["id"], p["category"], p["prompt"], p["chosen"], p["rejected"])
        for p in read_jsonl(GOLD)
    ]


def test_a_pair_is_a_conversation_under_the_system_prompt():
    pair = row("hr-001", "harmful_request", "May I?", "No.", "Yes.")
    assert [m["role"] for m in pair["prompt"]] == ["system", "user"]
    assert pair["prompt"][0]["content"] == system_prompt()
    assert pair["chosen"] == [{"role": "assistant", "content": "No."}]


def test_a_tenth_is_held_out_and_contrasts_stay_together(settings, gold):
    apart = [pair["id"] for pair in gold if is_held_out(pair["id"], settings)]
    assert 0.07 * len(gold) < len(apart) < 0.14 * len(gold)
    assert contrast("xa-001") == contrast("xa-002") != contrast("xa-003")
    assert contrast("hr-001") != contrast("hr-002")
    rows = read_jsonl(GOLD)
    twins = [  # told by what they are, not by their names: the same kind, the other side
        (one["id"], other["id"])
        for one, other in itertools.pairwise(rows)
        if one["kind"] == other["kind"] and int(one["id"][3:]) % 2
        if (one["category"], other["category"]) == sides[::-1]
    ]
    assert len(twins) > 700 and {one[0] for one, _ in twins} == {"x", "y"}
    assert all(contrast(one) == contrast(other) for one, other in twins)
    both = {contrast(i) for i in apart}
    assert not [p for p in gold if contrast(p["id"]) in both and p["id"] not in apart]


def test_teaching_pairs_keep_the_format_against_refusals_and_bare_text(data, settings):
    pairs = teaching(settings)
    assert len(pairs) == settings.teaching
    assert len({pair["prompt"][1]["content"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert not parse(pair["chosen"][0]["content"]).faults
        assert parse(pair["rejected"][0]["content"]).faults
    refused = sum(is_refusal(pair["rejected"][0]["content"]) for pair in pairs)
    assert refused == settings.teaching // 2


def test_the_mix_of_dpo_keeps_to_its_limits_and_contrasts_together(settings):
    rows = [row(f"xa-{i:03d}", c, "p", "a", "b") for i in range(1, 201) for c in (sides[i % 2],)]
    rows += [row(f"hr-{i:03d}", "empathy", "p", "a", "b") for i in range(9)]
    few = settings.model_copy(update={"most": {sides[0]: 30, sides[1]: 30}})
    kept = mixed(rows, few)
    assert len(kept) == 69
    of = {side: {contrast(r["id"]) for r in kept if r["category"] == side} for side in sides}
    assert of[sides[0]] == of[sides[1]]
    assert len(of[sides[0]]) == 30
    assert sum(r["category"] == "empathy" for r in kept) == 9


def test_a_prompt_of_an_evaluation_is_found_and_dropped(monkeypatch):
    own = [d for d in sources.own_evaluations() if "refusal" in d.name]
    monkeypatch.setattr(build_pairs, "evaluations", lambda: (own, []))
    planted = read_jsonl(build_pairs.ROOT / own[0].path)[0]["prompt"]
    rows = [
        row("a-1", "benign_lookalike", planted, "Yes.", "No."),
        row("a-2", "benign_lookalike", planted.upper(), "Yes.", "No."),
        row("a-3", "benign_lookalike", "How do I sharpen a kitchen knife safely?", "So.", "No."),
    ]
    assert set(asked_by_evaluations(rows)) == {"a-1", "a-2"}


def test_no_gold_prompt_is_asked_by_any_evaluation(gold):
    if "MEDALIGN_DATA_DIR" not in os.environ:
        pytest.skip("MEDALIGN_DATA_DIR is not set: the public evaluations are not here")
    assert evaluations()[1] == []
    assert asked_by_evaluations(gold) == {}


@pytest.fixture
def public(tmp_path, monkeypatch):
    """MedSafetyBench's files, twelve requests of each of nine principles, of words drawn by lot."""
    folder = tmp_path / "medsafetybench"
    folder.mkdir()
    monkeypatch.setenv("MEDALIGN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(build_pairs.build_mix, "evaluations", lambda: [])
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("ada", "eke", "ilo", "omu")]
    for split in ("train", "test"):
        rows = [
            {
                "harmful_medical_request": " ".join(draw.sample(syllables, 9)),
                "safe_response": "Yes, gladly." if n == 7 else "I'm sorry, but I can't help.",
                "category": principle,
            }
            for principle in range(1, 10)
            for n in range(12)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def test_refusals_for_research_train_only_where_they_are_accepted(public):
    assert build_pairs.research({"share-alike"}) == ({}, {})
    found, funnel = build_pairs.research({"research"})
    pairs, of = found["medsafetybench-train"], funnel["medsafetybench-train"]
    assert of["read"] == 108 == of["train"] + sum(of["dropped"].values())
    assert of["train"] == len(pairs) > 20 and of["dropped"]["no refusal"] >= 1
    assert all(p["category"] == "research" for p in pairs)
    assert all(is_refusal(p["chosen"][0]["content"]) for p in pairs)
    assert not any(is_refusal(p["rejected"][0]["content"]) for p in pairs)
    assert len({p["id"] for p in pairs}) == len(pairs)


def test_no_tuning_prompt_nor_the_like_of_one_is_trained_on(public, monkeypatch):
    tuning = {item["prompt"] for item in evaluate_safety.rows_of("harmful_tune")}
    found, funnel = build_pairs.research({"research"})
    asked = [p["prompt"][-1]["content"] for p in found["medsafetybench-train"]]
    assert len(tuning) == 72 == funnel["medsafetybench-train"]["dropped"]["a tuning prompt"]
    assert asked and not set(asked) & tuning
    alike = " ".join(reversed(asked[0].split()))  # the same words in another order
    monkeypatch.setattr(evaluate_safety, "rows_of", lambda name: [{"prompt": f"{alike} now"}])
    found, funnel = build_pairs.research({"research"})
    again = {p["prompt"][-1]["content"] for p in found["medsafetybench-train"]}
    assert asked[0] not in again and asked[1] in again
    assert funnel["medsafetybench-train"]["dropped"]["a tuning prompt"] == 1


def test_accepted_refusals_need_their_file_and_every_evaluation(public, monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("MEDALIGN_DATA_DIR", raising=False)
    with pytest.raises(StepError, match="medsafetybench-train: not on the hub"):
        build_pairs.research({"research"})
    monkeypatch.setenv("MEDALIGN_DATA_DIR", str(public.parent))
    with pytest.raises(StepError, match="must be kept apart from every evaluation"):
        build_pairs.research({"research"})


def test_every_category_of_the_mix_is_rewarded_for_what_its_better_answers_do(settings):
    refusal = "I'm sorry, but I can't help with that; please speak to someone you trust about it."
    for category in settings.most:
        refused = rewards.reward(category, refusal)
        assert (refused == 1) == (category in ("harmful_request", "research")), category
