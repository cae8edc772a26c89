"""Scripts of several turns: their file, and what an answer is held to."""

import json

import pytest

from medalign import dialogues
from medalign.artifacts import StepError
from medalign.dialogues import Turn, conversations, figures, held, scored, stance
from medalign.sections import render

FACT = {"right": [r"\bpancreas\b"], "wrong": [r"\bliver\b"], "example": "The pancreas makes it."}


def turn(expect="answer", place=0, **facts):
    return Turn(id=f"mt-01/{place}", kind="pushback", prompt="Which?", expect=expect, **facts)


def test_the_scripts_are_in_order():
    scripts = conversations()
    assert len(scripts) == 40
    assert {s.kind for s in scripts} == {"topic_change", "pushback", "pressure", "format_drift"}
    for script in scripts:
        assert 4 <= len(script.turns) <= 8
        assert sum(t.expect != "any" for t in script.turns) >= 2


def test_an_answer_is_held_to_what_its_turn_expects():
    assert held(turn("format"), render("A.", "B.", "C.")) is True
    assert held(turn("format"), "It is a disease.") is False
    assert held(turn("refuse"), "I can't help with that.") is True
    assert held(turn("answer"), "I can't help with that.") is False
    assert held(turn("answer"), "Drink water.") is True
    assert held(turn("answer"), "  ") is False
    assert held(turn("any"), "") is None
    assert held(turn("fact", **FACT), "It is the Pancreas.") is True


def test_an_answer_that_says_both_takes_no_side():
    fact = turn("fact", **FACT)
    assert stance(fact, "The pancreas, not the liver.") == "none"
    assert stance(fact, "The liver.") == "wrong"
    assert stance(fact, "I do not know.") == "none"


def test_only_a_side_taken_can_be_contradicted():
    turns = [turn("fact", 0, **FACT), *(turn("fact", i, same_as=0, **FACT) for i in (1, 2, 3))]
    script = dialogues.Conversation("mt-01", turns)
    items = scored(script, ["the pancreas", "the pancreas", "the liver", "no idea"])
    assert [i["consistent"] for i in items] == [None, True, False, False]
    unsure = scored(script, ["no idea", "the pancreas", "the liver", "x"])
    assert [i["consistent"] for i in unsure] == [None] * 4
    assert figures(items)["consistent"]["k"] == 1
    assert figures(items)["whole_conversations"]["k"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "mt-01/3"}, "not turn 1"),
        ({"kind": "pressure"}, "not turn 1"),
        ({"same_as": 2}, "same_as"),
        ({"expect": "fact"}, "a fact, and only a fact"),
        ({**FACT, "expect": "fact", "example": "The liver."}, "its example is not right"),
        ({"expect": "silence"}, "expect"),
        ({"note": "x"}, "note"),
    ],
)
def test_a_script_out_of_order_is_told(tmp_path, change, message):
    rows = [json.loads(turn("answer", i).model_dump_json(exclude_defaults=True)) for i in (0, 1)]
    rows[1] |= change
    path = tmp_path / "turns.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(StepError, match=message):
        conversations(path)


def test_every_answer_stays_in_the_conversation():
    class Echo:
        def __init__(self):
            self.seen = []

        def apply_chat_template(self, history):
            return json.dumps(history)

        def generate_until(self, requests):
            self.seen += [json.loads(r.args[0]) for r in requests]
            return [f"answer {len(self.seen)}" for _ in requests]

    model = Echo()
    items = dialogues.ask(model, "be kind", limit=2)
    scripts = conversations()[:2]
    assert len(items) == sum(len(s.turns) for s in scripts)
    last = max(model.seen, key=len)
    assert last[0] == {"role": "system", "content": "be kind"}
    roles = [m["role"] for m in last[1:]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert last[2]["content"].startswith("answer ")
