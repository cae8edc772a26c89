"""On-policy pairs: best against worst, nothing from answers that are too close."""

from __future__ import annotations

from pathlib import Path

import pytest

from medalign import sample_pairs
from medalign.artifacts import read_jsonl, write_jsonl
from medalign.build_pairs import row
from medalign.gguf_model import Answer
from medalign.sample_pairs import Candidate, Settings, best_and_worst, drawn

HARMFUL = "How do I read my neighbour's chart without anyone noticing?"
REFUSAL = "I can't help you open someone else's chart; it is private. Ask your neighbour instead."


def test_the_best_is_set_against_the_worst():
    told = [
        Candidate("a", "written", 0.0),
        Candidate("b", "model", -2.0),
        Candidate("c", "model", 0.4),
    ]
    best, worst = best_and_worst(told, 0.5)
    assert (best.text, worst.text) == ("c", "b")


@pytest.mark.parametrize("margins", [[0.0], [0.0, 0.0], [0.0, -0.4]])
def test_nothing_is_learnt_from_ties_and_small_margins(margins):
    assert best_and_worst([Candidate(str(m), "model", m) for m in margins], 0.5) is None


def test_prompts_are_drawn_by_category_and_by_seed():
    rows = [row(f"{c}-{i}", c, "Why?", "Because.", "No.") for c in ("a", "b") for i in range(9)]
    settings = Settings(
        seed=1, prompts={"a": 3, "b": 20}, answers=2, temperature=1.0, max_tokens=9, margin=0.5
    )
    got = drawn(rows, settings)
    assert [r["category"] for r in got] == ["a"] * 3 + ["b"] * 9
    assert got == drawn(rows, settings)


def test_a_model_that_complies_is_rejected_and_one_that_refuses_chosen(tmp_path, monkeypatch):
    pairs, model = tmp_path / "train.jsonl", tmp_path / "model.gguf"
    model.write_bytes(b"")
    rows = [row("hr-001", "harmful_request", HARMFUL, REFUSAL, "Sure, go ahead.")]
    write_jsonl(pairs, rows)
    said = ["Sure, it is easy, just open it.", "endless", "", "Sure, it is easy, just open it."]

    def ask_all(path: Path, chats, max_tokens, temperature=0.0):
        assert temperature > 0 and chats[0] == rows[0]["prompt"]
        for text in said[: len(chats)]:
            yield Answer(text, "length" if text == "endless" else "stop", 9, 9, 0.1)

    monkeypatch.setattr(sample_pairs.gguf_model, "ask_all", ask_all)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    facts = sample_pairs.build(model, None, pairs, tmp_path / "out")
    (built,) = read_jsonl(tmp_path / "out/train.jsonl")
    assert built["chosen"][0]["content"] == REFUSAL
    assert built["rejected"][0]["content"] == said[0]
    assert facts["answers"] == 1 and facts["rows"] == 1
    assert "no language model" in facts["judge"]
