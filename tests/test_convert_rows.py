"""Rows of each kind of source become conversations; what does not fit says why."""

import pytest

from medalign.convert_rows import TASKS, Unusable, convert
from medalign.recipe import system_prompt
from medalign.sources import Source

EXAM = {
    "id": "id",
    "question": "q",
    "options": ["a", "b", "c", "d"],
    "answer": "cop",
    "rationale": "exp",
}
ROW = {
    "id": 7,
    "q": "Which organ makes insulin?",
    "a": "Liver",
    "b": "Spleen",
    "c": "Pancreas",
    "d": "Thymus",
}


def source(task: str, columns: dict, **changes) -> Source:
    facts = {
        "name": "tested",
        "license": "mit",
        "terms": "open",
        "path": "x.jsonl",
        "columns": columns,
    }
    return Source(task=task, **{**facts, **changes})


def exam(answers="from 0"):
    return source("multiple_choice", EXAM, answers=answers)


def test_a_question_with_a_rationale_keeps_it_and_gets_nothing_else():
    made = convert(exam(), {**ROW, "cop": 2, "exp": "Beta cells of the islets."})
    assert made.messages[0]["content"] == (
        "Which organ makes insulin?\n\nA. Liver\nB. Spleen\nC. Pancreas\nD. Thymus"
    )
    assert made.messages[1]["content"] == (
        "**Answer**: C. Pancreas\n\n**Explanation**: Beta cells of the islets."
    )


def test_a_question_without_a_rationale_is_answered_in_one_line():
    made = convert(exam(), {**ROW, "cop": 2, "exp": None})
    assert made.messages[1]["content"] == "**Answer**: C. Pancreas"


@pytest.mark.parametrize(
    ("answers", "label", "right"),
    [
        ("from 0", 2, "C"),
        ("from 1", 3, "C"),
        ("letter", "C", "C"),
        ("text", "Pancreas", "C"),
        ("from 0", "2", "C"),
    ],
)
def test_the_label_is_read_as_declared(answers, label, right):
    made = convert(exam(answers), {**ROW, "cop": label, "exp": ""})
    assert made.messages[1]["content"].startswith(f"**Answer**: {right}. ")


@pytest.mark.parametrize(
    ("answers", "label"),
    [
        ("from 0", 4),
        ("from 0", -1),
        ("from 1", 0),
        ("letter", "E"),
        ("letter", 2),
        ("from 0", "x"),
        ("from 0", None),
    ],
)
def test_a_label_out_of_range_is_no_answer(answers, label):
    with pytest.raises(Unusable, match="label out of range"):
        convert(exam(answers), {**ROW, "cop": label, "exp": ""})


@pytest.mark.parametrize(
    "rationale",
    ["Ans. is 'b' i.e., Spleen", "Ans: B. Spleen", "Answer is (b) spleen", "Ans-b", "Answer: B"],
)
def test_a_rationale_that_names_another_answer_is_refused(rationale):
    with pytest.raises(Unusable, match="rationale names another answer"):
        convert(exam(), {**ROW, "cop": 2, "exp": rationale})


@pytest.mark.parametrize(
    "rationale", ["Ans. is 'c' i.e., Pancreas", "A patient with …", "Answer: Pancreas", "B cells"]
)
def test_other_rationales_stay(rationale):
    assert rationale in convert(exam(), {**ROW, "cop": 2, "exp": rationale}).messages[1]["content"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"b": ""}, "empty option"), ({"b": None}, "empty option"), ({"q": ""}, "empty column"),
        ({"q": ["x"]}, "column is not text"),
    ],
)  # fmt: skip
def test_a_row_with_a_hole_says_which(change, reason):
    with pytest.raises(Unusable, match=reason):
        convert(exam(), {**ROW, "cop": 2, "exp": "", **change})


def test_a_missing_column_is_named():
    row = {key: value for key, value in ROW.items() if key != "c"}
    with pytest.raises(Unusable, match="missing column") as raised:
        convert(exam(), {**row, "cop": 2, "exp": ""})
    assert raised.value.fault.evidence.startswith("c; there are ")


def test_options_may_be_lettered_and_context_may_be_in_pieces():
    columns = {"context": "context", "question": "q", "options": "o", "answer": "l"}
    row = {
        "context": ["A man faints.", "His pulse is slow."],
        "q": "Why?",
        "o": {"B": "Y", "A": "X"},
        "l": "B",
    }
    made = convert(source("multiple_choice", columns), row)
    assert made.messages[0]["content"] == "A man faints. His pulse is slow. Why?\n\nA. X\nB. Y"
    assert made.messages[1]["content"] == "**Answer**: B. Y"


def test_an_abstract_keeps_its_conclusion():
    columns = {"question": "q", "context": "c", "answer": "d", "rationale": "l"}
    row = {"q": "Does it?", "c": {"contexts": ["One.", "Two."]}, "d": "maybe", "l": "It may."}
    made = convert(source("abstract_question", columns), row)
    assert made.messages[0]["content"] == "Abstract: One. Two.\n\nQuestion: Does it?"
    assert made.messages[1]["content"] == "**Answer**: maybe\n\n**Explanation**: It may."
    with pytest.raises(Unusable, match="label out of range"):
        convert(source("abstract_question", columns), {**row, "d": "perhaps"})


def test_a_dialogue_is_asked_for_its_section():
    columns = {"dialogue": "d", "note": "n", "topic": "h"}
    made = convert(source("dialogue_note", columns), {"d": "Doctor: Hi", "n": "Well.", "h": "ROS"})
    assert 'section "review of systems" of the note' in made.messages[0]["content"]
    with pytest.raises(Unusable, match="unknown section"):
        convert(source("dialogue_note", columns), {"d": "Doctor: Hi", "n": "Well.", "h": "XYZ"})


def test_a_consultation_alternates_and_ends_with_the_doctor():
    consultation = source("consultation", {"utterances": "u"})
    said = [
        "patient: It hurts.",
        "doctor: Where?",
        "patient: Here.",
        "doctor: I see.",
        "patient: Bye.",
    ]
    made = convert(consultation, {"u": said})
    assert [m["role"] for m in made.messages] == ["user", "assistant"] * 2
    with pytest.raises(Unusable, match="alternate"):
        convert(consultation, {"u": ["doctor: Hi.", "patient: Hi."]})


def test_only_rows_that_hold_under_the_system_prompt_carry_it():
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    columns = {"messages": "messages"}
    with_prompt = convert(
        source("conversation", columns, system_prompt=True), {"messages": messages}
    )
    assert with_prompt.messages[0] == {"role": "system", "content": system_prompt()}
    without = convert(source("conversation", columns), {"messages": messages})
    assert [m["role"] for m in without.messages] == ["user", "assistant"]


def test_every_task_that_can_be_declared_is_there():
    assert set(TASKS) == set(Source.model_fields["task"].annotation.__args__)
