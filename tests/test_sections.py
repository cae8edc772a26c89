"""The section format: what parse accepts, and the fault each break of it is called by."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign.sections import DISCLAIMER, FAULTS, SECTIONS, Fault, parse, render

# No deadline: a training may share the machine. No database: tests leave no files behind.
calm = settings(deadline=None, database=None, max_examples=150)

ANSWER = render(
    "A fever is a body temperature above normal.",
    "The brain raises its set point.\nThe body then makes and keeps heat.",
    "Fever points to infection, and 39 °C is common in influenza.",
)
PARAGRAPHS = ANSWER.split("\n\n")

PIECES = [
    *(f"**{name}**:" for name in SECTIONS),
    *(f"**{name}**" for name in SECTIONS),
    *("\n", "\n\n", "\n \t\n", "\r\n", "\r", " ", "**", ":", "\u2028", "\x0c"),
    *(DISCLAIMER, DISCLAIMER + " Goodbye.", "words", "## Definition"),
]
near_answers = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=25).map("".join)

words = st.text(st.characters(categories=("L", "N", "P"), exclude_characters="*"), min_size=1)
# A letter first, so that there is a word to read; single line breaks are part of a body.
prose = st.tuples(st.lists(words, max_size=8), st.sampled_from([" ", "\n", "\n\t"])).map(
    lambda parts: "a" + parts[1].join(parts[0])
)
paragraphs = st.tuples(prose, prose, prose).map(lambda bodies: render(*bodies).split("\n\n"))


def kinds(text: str, ended: bool = True) -> set[str]:
    """The kinds of fault found, without their sections."""
    return {fault.kind for fault in parse(text, ended).faults}


@calm
@given(text=st.text() | near_answers, ended=st.booleans())
def test_parse_never_raises_and_names_only_known_faults(text: str, ended: bool) -> None:
    parsed = parse(text, ended)
    assert {fault.kind for fault in parsed.faults} <= set(FAULTS)
    assert set(parsed.sections) <= set(SECTIONS)
    assert all(str(fault).startswith(fault.kind) for fault in parsed.faults)
    assert ended or not parsed.ok


@calm
@given(text=st.text() | near_answers)
def test_what_parse_accepts_is_written_back_by_render(text: str) -> None:
    parsed = parse(text)
    if parsed.ok:
        bodies = [parsed.sections[name] for name in SECTIONS]
        assert parse(render(*bodies[:3])).sections == parsed.sections


@calm
@given(bodies=st.tuples(prose, prose, prose))
def test_prose_is_rendered_and_parsed_back(bodies: tuple[str, str, str]) -> None:
    parsed = parse(render(*bodies))
    assert parsed.faults == []
    assert list(parsed.sections.values()) == [*(body.strip() for body in bodies), DISCLAIMER]
    assert all(parsed.has(name) for name in SECTIONS)


@calm
@given(bodies=st.tuples(*[st.text() | near_answers | prose] * 3))
def test_whatever_render_writes_is_accepted_by_parse(bodies: tuple[str, str, str]) -> None:
    try:
        answer = render(*bodies)
    except ValueError:
        return
    parsed = parse(answer)
    assert parsed.faults == []
    stripped = [body.strip().replace("\r\n", "\n") for body in bodies]
    assert [parsed.sections[name] for name in SECTIONS[:3]] == stripped


@calm
@given(paragraphs, st.integers(0, 3))
def test_a_section_removed_is_missing(answer: list[str], i: int) -> None:
    parsed = parse("\n\n".join(answer[:i] + answer[i + 1 :]))
    assert parsed.faults == [Fault("missing", SECTIONS[i])]
    assert not parsed.has(SECTIONS[i])


@calm
@given(paragraphs, st.integers(0, 3), st.sampled_from(["", " ", " …", " - -", "\n.\n!"]))
def test_a_section_without_words_is_empty(answer: list[str], i: int, body: str) -> None:
    answer = [*answer[:i], f"**{SECTIONS[i]}**:{body}", *answer[i + 1 :]]
    assert parse("\n\n".join(answer)).faults == [Fault("empty", SECTIONS[i])]


@calm
@given(paragraphs, st.permutations(range(4)).map(lambda order: order[:2]))
def test_two_sections_swapped_are_out_of_order(answer: list[str], pair: list[int]) -> None:
    i, j = pair
    answer = list(answer)
    answer[i], answer[j] = answer[j], answer[i]
    assert parse("\n\n".join(answer)).faults == [Fault("out_of_order")]


@calm
@given(paragraphs, st.integers(0, 3), st.integers(0, 4))
def test_a_section_repeated_anywhere_is_twice(answer: list[str], i: int, at: int) -> None:
    answer = [*answer[:at], answer[i], *answer[at:]]
    parsed = parse("\n\n".join(answer))
    assert Fault("twice", SECTIONS[i]) in parsed.faults
    assert {fault.kind for fault in parsed.faults} <= {"twice", "out_of_order"}


@calm
@given(paragraphs, st.integers(0, 4), prose)
def test_a_paragraph_before_between_or_after_is_text_outside(
    answer: list[str], at: int, text: str
) -> None:
    assert kinds("\n\n".join([*answer[:at], text, *answer[at:]])) == {"text_outside"}


@calm
@given(paragraphs, prose, st.sampled_from([" ", "\n"]))
def test_text_on_the_heels_of_the_note_is_text_outside(
    answer: list[str], text: str, gap: str
) -> None:
    assert parse("\n\n".join(answer) + gap + text).faults == [Fault("text_outside", "Note")]


@calm
@given(paragraphs, prose, st.sampled_from([" ", "\n"]))
def test_text_right_before_the_first_heading_is_text_outside(
    answer: list[str], text: str, gap: str
) -> None:
    faults = parse(text + gap + "\n\n".join(answer)).faults
    assert faults == [Fault("text_outside"), Fault("no_blank_line", "Definition")]


@calm
@given(paragraphs, st.integers(0, 2), st.sampled_from(["\n", " ", ""]))
def test_a_blank_line_removed_is_no_blank_line(answer: list[str], i: int, gap: str) -> None:
    joined = "\n\n".join(answer[: i + 1]) + gap + "\n\n".join(answer[i + 1 :])
    assert parse(joined).faults == [Fault("no_blank_line", SECTIONS[i + 1])]


@calm
@given(
    paragraphs,
    st.integers(0, len(DISCLAIMER.split()) - 1),
    st.sampled_from([str.upper, str.swapcase, lambda word: "xyz", lambda word: ""]),
)
def test_a_note_with_one_word_changed_is_not_the_disclaimer(answer, i, change) -> None:
    note = DISCLAIMER.split()
    note[i] = change(note[i])
    answer = [*answer[:3], "**Note**: " + " ".join(note)]
    assert parse("\n\n".join(answer)).faults == [Fault("note_without_disclaimer", "Note")]


@calm
@given(paragraphs)
def test_an_answer_cut_at_the_token_limit_is_not_ended(answer: list[str]) -> None:
    assert parse("\n\n".join(answer), ended=False).faults == [Fault("not_ended")]


ONE_OF_EACH_FAULT = {
    "missing": "\n\n".join(PARAGRAPHS[1:]),
    "empty": "\n\n".join(["**Definition**: -", *PARAGRAPHS[1:]]),
    "out_of_order": "\n\n".join(PARAGRAPHS[::-1]),
    "twice": "\n\n".join([*PARAGRAPHS, PARAGRAPHS[3]]),
    "text_outside": f"Sure!\n\n{ANSWER}",
    "no_blank_line": "\n".join(PARAGRAPHS),
    "note_without_disclaimer": ANSWER.replace("educational", "medical"),
    "not_ended": ANSWER,
}


def test_every_kind_of_fault_has_an_example() -> None:
    assert set(ONE_OF_EACH_FAULT) == set(FAULTS)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault_occurs_alone(kind: str) -> None:
    assert kinds(ONE_OF_EACH_FAULT[kind], ended=kind != "not_ended") == {kind}


def test_nothing_at_all_is_four_missing_sections() -> None:
    assert parse(" \n ").faults == [Fault("missing", name) for name in SECTIONS]


@pytest.mark.parametrize(
    "heading",
    ["## {}", "## {}:", "**{}:**", "**{}**", "*{}*:", "__{}__:", "{}:", "<b>{}</b>:", "1. {}:"],
)
def test_other_markdown_is_no_heading(heading: str) -> None:
    text = re.sub(r"\*\*([\w ]+)\*\*:", lambda found: heading.format(found[1]), ANSWER)
    assert parse(text).sections == {}
    assert kinds(text) == {"missing", "text_outside"}


@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_a_heading_in_other_case_is_no_heading(change) -> None:
    text = ANSWER.replace("**Explanation**", change("**Explanation**"))
    assert parse(text).faults == [Fault("text_outside"), Fault("missing", "Explanation")]


def test_line_ends_of_windows_are_fine() -> None:
    assert parse(ANSWER.replace("\n", "\r\n")) == parse(ANSWER)


@pytest.mark.parametrize("gap", ["\n\n\n", "\n \t\n", "\n\n  "])
def test_white_space_around_sections_is_ignored(gap: str) -> None:
    assert parse(f"\n {ANSWER.replace(chr(10) * 2, gap)} \n") == parse(ANSWER)


def test_a_section_with_a_fault_is_not_had_but_the_others_are() -> None:
    parsed = parse(ONE_OF_EACH_FAULT["note_without_disclaimer"])
    assert [parsed.has(name) for name in SECTIONS] == [True, True, True, False]


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize(
    "body",
    [
        *("", " \n ", "…", "**"),
        *("One.\n\nTwo.", "One.\n \t\nTwo.", "One.\r\n\r\nTwo."),
        *("**Note**: mine", "One. **Definition**: two.", "One.\n**Clinical Relevance**: two."),
    ],
)
def test_render_raises_on_a_body_that_could_not_be_parsed_back(position: int, body: str) -> None:
    bodies = ["One.", "Two.", "Three."]
    bodies[position] = body
    with pytest.raises(ValueError, match=r"empty|twice|text_outside|no_blank_line"):
        render(*bodies)
