"""The section format: the one place that knows what a teaching answer looks like.

    **Definition**: …            An answer is four paragraphs separated by one blank
                                 line, each opened by its heading, in this order. The
    **Explanation**: …           Note is the disclaimer, word for word. Nothing stands
                                 before the first heading or after the Note.
    **Clinical Relevance**: …

    **Note**: This is educational information only. …

White space is not judged: blank lines may be several, a body may begin on the next line.

Training data is validated with it, model output is scored with it, and a server may
enforce it; none of them spells a heading of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SECTIONS = ("Definition", "Explanation", "Clinical Relevance", "Note")
DISCLAIMER = (
    "This is educational information only. "
    "Always consult healthcare professionals for medical decisions."
)

# Every way an answer can break the format; `Parsed.faults` holds these words only.
FAULTS = {
    "missing": "a section is not there",
    "empty": "a section has no words in it",
    "out_of_order": "the sections are not in the order of SECTIONS",
    "twice": "a section occurs more than once",
    "text_outside": "text before the first section, between sections or after the Note",
    "no_blank_line": "a heading is not set off by a blank line",
    "note_without_disclaimer": "the Note is not the disclaimer, word for word",
    "not_ended": "the model did not end its answer (no end-of-sequence token)",
}

_HEADING = re.compile(r"\*\*(" + "|".join(SECTIONS) + r")\*\*:")
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Fault:
    """One way in which an answer breaks the format: a key of FAULTS, and where."""

    kind: str
    section: str | None = None

    def __str__(self) -> str:
        where = f" ({self.section})" if self.section else ""
        return f"{self.kind}{where}: {FAULTS[self.kind]}"


@dataclass(frozen=True)
class Parsed:
    """Sections found (heading → body, first occurrence) and faults, empty if strict."""

    sections: dict[str, str]
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if the answer keeps the format strictly."""
        return not self.faults

    def has(self, section: str) -> bool:
        """True if `section` is there, once, with words in it (and for the Note: right)."""
        return section in self.sections and all(f.section != section for f in self.faults)


def parse(text: str, ended: bool = True) -> Parsed:
    """Split an answer into its sections and say all that is wrong with it.

    text: the answer, white space around it ignored.
    ended: whether the model ended it by itself (False when cut at a token limit).
    Never raises on any string.
    """
    faults: list[Fault] = []
    found: list[tuple[str, str]] = []
    text = text.replace("\r\n", "\n").strip()
    for paragraph in _BLANK_LINE.split(text) if text else []:
        heading = _HEADING.match(paragraph)
        if heading is None:
            faults.append(Fault("text_outside"))
        starts = list(_HEADING.finditer(paragraph))
        for i, start in enumerate(starts):
            if start.start() > 0:
                faults.append(Fault("no_blank_line", start[1]))
            end = starts[i + 1].start() if i + 1 < len(starts) else len(paragraph)
            found.append((start[1], paragraph[start.end() : end].strip()))

    sections: dict[str, str] = {}
    for name, body in found:
        if name in sections:
            faults.append(Fault("twice", name))
        else:
            sections[name] = body
    for name in SECTIONS:
        if name not in sections:
            faults.append(Fault("missing", name))
        elif not any(c.isalnum() for c in sections[name]):
            faults.append(Fault("empty", name))
        elif name == "Note" and sections[name] != DISCLAIMER:
            trailing = sections[name].startswith(DISCLAIMER)
            faults.append(Fault("text_outside" if trailing else "note_without_disclaimer", name))
    order = [SECTIONS.index(name) for name in sections]
    if order != sorted(order):
        faults.append(Fault("out_of_order"))
    if not ended:
        faults.append(Fault("not_ended"))
    return Parsed(sections, faults)


def render(definition: str, explanation: str, clinical_relevance: str) -> str:
    """Write an answer in the format, the Note added.

    Raises ValueError if a body is empty, holds a blank line or a heading: such an
    answer could not be parsed back.
    """
    bodies = (definition, explanation, clinical_relevance, DISCLAIMER)
    answer = "\n\n".join(
        f"**{name}**: {body.strip()}" for name, body in zip(SECTIONS, bodies, strict=True)
    )
    parsed = parse(answer)
    if not parsed.ok:
        raise ValueError("; ".join(map(str, parsed.faults)))
    return answer
