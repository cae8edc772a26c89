"""Rows of the sources as conversations.

Questions that come with a rationale become answers in two parts, the answer and the source's own
rationale; those without one are answered as briefly as the source answers them: nothing is made
up. Only teaching prompts (data/education) get the four sections, and only rows that are to hold
under the project's system prompt carry it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from medalign.recipe import system_prompt
from medalign.sources import Fault, Source, columns, key, take

LETTERS = "ABCDEFGH"
Messages = list[dict[str, str]]
# "Ans. is 'c' i.e., …", "Ans: D. FRC", "Answer (b)": how rationales of exam questions begin.
# "Answer is a beta blocker" names none: a bare letter must be marked as one.
NAMED_ANSWER = re.compile(
    r"^\W*ans(?:wer)?\b(?:[\s.:=-]|is\b|option\b)*[(\'\"]?([a-e])(?:[)\'\".:,]|\s*$|\s+i\.e)",
    re.IGNORECASE,
)
NOTE_SECTIONS = {  # section headers of MTS-Dialog, in words
    "ALLERGY": "allergies",
    "ASSESSMENT": "assessment",
    "CC": "chief complaint",
    "DIAGNOSIS": "diagnosis",
    "DISPOSITION": "disposition",
    "EDCOURSE": "emergency department course",
    "EXAM": "physical examination",
    "FAM/SOCHX": "family and social history",
    "GENHX": "history of present illness",
    "GYNHX": "gynecologic history",
    "IMAGING": "imaging",
    "IMMUNIZATIONS": "immunizations",
    "LABS": "laboratory results",
    "MEDICATIONS": "medications",
    "OTHER_HISTORY": "other history",
    "PASTMEDICALHX": "past medical history",
    "PASTSURGICAL": "past surgical history",
    "PLAN": "plan",
    "PROCEDURES": "procedures",
    "ROS": "review of systems",
}


class Unusable(Exception):
    """A row that does not become a conversation: reason, and what of it shows why."""

    def __init__(self, reason: str, evidence: object) -> None:
        super().__init__(reason)
        self.fault = Fault(reason, str(evidence)[:300])


@dataclass
class Conversation:
    """A row of the mix before it is cleaned.

    group: rows that must not be split between train and validation share it (a document, a case).
    """

    messages: Messages
    group: str | None = None
    topic: str | None = None


def turn(question: str, answer: str) -> Messages:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text(row: dict[str, Any], column: Any, needed: bool = True) -> str:
    """A column as text. Unusable if it is needed and empty, or not text."""
    value = row[column] if column else None
    if value is None or value == "":
        if needed:
            raise Unusable("empty column", column)
        return ""
    if not isinstance(value, str | int | float):
        raise Unusable("column is not text", f"{column}: {type(value).__name__}")
    return str(value)


def option_list(value: Any) -> list[str]:
    """Options of a question as a list, from a list or {A: …, B: …}."""
    if isinstance(value, dict):
        if sorted(value) != list(LETTERS[: len(value)]):
            raise Unusable("options are not lettered A, B, …", sorted(value))
        value = [value[letter] for letter in sorted(value)]
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise Unusable("not a list of options", value)
    if not all(isinstance(option, str) and option.strip() for option in value):
        raise Unusable("empty option", value)
    return [option.strip() for option in value]


def right_option(label: Any, options: list[str], answers: str) -> int:
    """Index of the right option.

    answers: how the source writes it. Labels counted from 1 where 0 was declared show as an index
    one past the last option; the whole source is refused then (mix_stages.check_sources).
    """
    if answers == "text":
        if label not in options:
            raise Unusable("answer is not among the options", label)
        return options.index(label)
    if answers == "letter":
        index = LETTERS.find(label) if isinstance(label, str) and len(label) == 1 else -1
    else:
        digits = str(label).strip().removesuffix(".0")
        index = int(digits) - (answers == "from 1") if re.fullmatch(r"\d{1,3}", digits) else -1
    if not 0 <= index < len(options):
        raise Unusable("label out of range", f"{label!r} of {len(options)} options")
    return index


def multiple_choice(source: Source, row: dict[str, Any]) -> Conversation:
    """Question with lettered options → the right one, with the source's rationale if it has one."""
    c = columns(source)
    options = option_list(take(row, c["options"]))
    index = right_option(row[str(c["answer"])], options, source.answers)
    stem = text(row, c["question"])
    if "context" in c:
        stem = f"{joined(row[str(c['context'])])} {stem}"
    listed = "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))
    answer = f"**Answer**: {LETTERS[index]}. {options[index]}"
    rationale = text(row, c.get("rationale"), needed=False).strip()
    if rationale:
        named = NAMED_ANSWER.match(rationale)
        if named and LETTERS.index(named[1].upper()) != index:
            raise Unusable("rationale names another answer", f"{answer} | {rationale}")
        answer += f"\n\n**Explanation**: {rationale}"
    return Conversation(turn(f"{stem}\n\n{listed}", answer))


def joined(value: Any) -> str:
    """A context as one text: PubMedQA's {contexts: […]} or a list of sentences."""
    if isinstance(value, dict):
        value = value.get("contexts")
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise Unusable("context is not a list of texts", type(value).__name__)
    return " ".join(part.strip() for part in value)


def abstract_question(source: Source, row: dict[str, Any]) -> Conversation:
    """Abstract and question → yes, no or maybe, with the authors' conclusion."""
    c = columns(source)
    decision = text(row, c["answer"]).lower()
    if decision not in ("yes", "no", "maybe"):
        raise Unusable("label out of range", decision)
    context = joined(row[str(c["context"])])
    question = f"Abstract: {context}\n\nQuestion: {text(row, c['question'])}"
    answer = f"**Answer**: {decision}"
    if conclusion := text(row, c.get("rationale"), needed=False).strip():
        answer += f"\n\n**Explanation**: {conclusion}"
    return Conversation(turn(question, answer))


def question_answer(source: Source, row: dict[str, Any]) -> Conversation:
    """A question with its answer as the source has them."""
    c = columns(source)
    return Conversation(turn(text(row, c["question"]), text(row, c["answer"])))


def dialogue_note(source: Source, row: dict[str, Any]) -> Conversation:
    """A visit's transcript → its note, or the section of it that the source holds."""
    c = columns(source)
    part = "note"
    if "topic" in c:
        header = text(row, c["topic"])
        if header not in NOTE_SECTIONS:
            raise Unusable("unknown section", header)
        part = f'section "{NOTE_SECTIONS[header]}" of the note'
    dialogue = text(row, c["dialogue"])
    prompt = f"Write the {part} for this visit. Use only what was said.\n\n{dialogue}"
    return Conversation(turn(prompt, text(row, c["note"])))


def consultation(source: Source, row: dict[str, Any]) -> Conversation:
    """Alternating utterances "patient: …", "doctor: …" → user and assistant turns."""
    utterances = row[str(columns(source)["utterances"])]
    if not isinstance(utterances, list) or len(utterances) < 2:
        raise Unusable("not a dialogue", utterances)
    messages = []
    for role, utterance in zip(("user", "assistant") * len(utterances), utterances, strict=False):
        speaker, _, said = str(utterance).partition(":")
        if speaker.strip().lower() != {"user": "patient", "assistant": "doctor"}[role]:
            raise Unusable("turns do not alternate", utterance)
        messages.append({"role": role, "content": said})
    return Conversation(messages[: len(messages) // 2 * 2])


def conversation(source: Source, row: dict[str, Any]) -> Conversation:
    """Messages as they are written in this project."""
    messages = row[str(columns(source)["messages"])]
    known = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    roles = [m.get("role") for m in messages] if known else []
    if len(roles) < 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Unusable("turns do not alternate", roles)
    return Conversation([{"role": m["role"], "content": str(m["content"])} for m in messages])


TASKS = {
    f.__name__: f
    for f in (
        multiple_choice, abstract_question, question_answer,
        dialogue_note, consultation, conversation,
    )
}  # fmt: skip


def convert(source: Source, row: dict[str, Any]) -> Conversation:
    """A source's row as a conversation. Unusable says why it is none."""
    try:
        made = TASKS[source.task](source, row)
        c = columns(source)
        made.group = (key(row, c["group"]) if "group" in c else None) or None
        made.topic = text(row, c.get("topic"), needed=False) or None
    except KeyError as error:
        raise Unusable("missing column", f"{error.args[0]}; there are {', '.join(row)}") from error
    if source.system_prompt:
        made.messages.insert(0, {"role": "system", "content": system_prompt()})
    return made
