"""Show retrieved passages to a model, and cite them in its answer by rule.

    hits = retrieval.load(path).search(question)
    passages = [hit.passage for hit in hits]
    context(passages)        # to put before the question
    cite(answer, passages)   # … so that salt is held back [SYN-0003].

Citations are set by overlap of words, not by the model, so that no identifier can be invented. That
a sentence is cited says that its words and numbers stand in the passage; it is no proof that the
passage says the same. Thresholds and sections: data/retrieval/retrieval.yaml.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medalign import sections
from medalign.passages import Passage, content_words, settings

_PMID = r"(?i:PMID)\s?:?\s?[0-9]+"
_ID = rf"(?:{_PMID}|[A-Z]{{2,8}}-[0-9]{{1,8}})"
# A mark in brackets, also several in one: [PMID 1, SYN-0002]. In parentheses only a PMID counts,
# since (COVID-19) is none.
_MARK = re.compile(rf" ?(?:\[{_ID}(?:\s?[,;]\s?{_ID})*\]|\({_PMID}(?:\s?[,;]\s?{_PMID})*\))")
_CITED = re.compile(_ID)
_BARE = re.compile(_PMID)
_SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!Dr\.)(?<=[.!?])\s+(?=[A-Z0-9\"(*])")
_LAST_POINT = re.compile(r"[.!?]+[\"')\]*]*$")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NEGATION = re.compile(r"\b(?:not|no|never|cannot|neither|none|without)\b|n['\u2019]t\b", re.I)
# What templates mark turns with; a passage that holds one could speak as somebody else.
_TURN = re.compile(
    r"<\|[^|<>]{0,60}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|[\x00-\x08\x0b-\x1f\x7f]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Citation:
    """A citation in an answer. support: of its sentence by the passage, 0 to 1."""

    id: str
    section: str | None
    sentence: str
    retrieved: bool
    allowed: bool
    support: float

    @property
    def ok(self) -> bool:
        """Whether it names a retrieved passage that supports the sentence, where it may stand."""
        enough = self.support >= settings().citations.min_support
        return self.retrieved and self.allowed and enough


def context(passages: Sequence[Passage]) -> str:
    """The block that shows passages to the model; empty if there are none.

    Long passages are cut at the declared number of words. Marks of chat templates are taken out.
    """
    chosen = settings().context
    if not passages:
        return ""
    shown = [chosen.instruction]
    for passage in passages:
        text = _TURN.sub(" ", f"{passage.title}: {passage.text}").split()
        cut = " …" if len(text) > chosen.words_per_passage else ""
        shown.append(f"[{passage.id}] {' '.join(text[: chosen.words_per_passage])}{cut}")
    return "\n\n".join(shown)


def plain(text: str) -> str:
    """A text without citations."""
    return _MARK.sub("", text)


def split(text: str) -> list[str]:
    """The sentences of a text; a line of a list is one. Joined by any white space they are it."""
    parts = [part for line in text.splitlines() for part in _SENTENCE_END.split(line)]
    return [part for part in parts if part.strip()]


@functools.lru_cache(maxsize=8192)
def _words(text: str) -> frozenset[str]:
    return frozenset(content_words(text))


def numbers(text: str) -> set[str]:
    """The numbers of a text, 1,000 as 1000."""
    return {found.replace(",", "") for found in _NUMBER.findall(text)}


def support(sentence: str, passage: Passage) -> float:
    """The share of a sentence's content words that a passage holds, 0 to 1.

    0 if the sentence has too few words to tell, a number that the passage has not, or a negation
    where the most similar sentence of the passage has none, or the other way round.
    """
    sentence = plain(sentence)
    words = _words(sentence)
    whole = f"{passage.title}. {passage.text}"
    if len(words) < settings().citations.min_words or not numbers(sentence) <= numbers(whole):
        return 0.0
    nearest = max(split(whole), key=lambda part: len(words & _words(part)))
    if bool(_NEGATION.search(sentence)) != bool(_NEGATION.search(nearest)):
        return 0.0
    return len(words & _words(whole)) / len(words)


def marked(sentence: str, passages: Sequence[Passage]) -> str:
    """The sentence with the marks of the passages that support it best, before its full stop."""
    chosen = settings().citations
    scores = [(support(sentence, passage), passage.id) for passage in passages]
    best = sorted((s for s in scores if s[0] >= chosen.min_support), key=lambda s: -s[0])
    marks = "".join(f" [{name}]" for _, name in best[: chosen.per_sentence])
    end = _LAST_POINT.search(sentence)
    at = end.start() if end else len(sentence)
    return sentence[:at] + marks + sentence[at:]


def _all_marked(body: str, passages: Sequence[Passage]) -> str:
    """The text of a section with its sentences marked, all white space kept."""
    out, at = "", 0
    for sentence in split(body):
        start = body.index(sentence, at)
        out += body[at:start] + marked(sentence, passages)
        at = start + len(sentence)
    return out + body[at:]


def cited(sentence: str) -> list[str]:
    """The ids cited in a sentence: those in marks, and PMIDs wherever they stand."""
    marks = [mark for found in _MARK.findall(sentence) for mark in _CITED.findall(found)]
    marks += _BARE.findall(plain(sentence))
    return [re.sub(r"(?i:PMID)\D*", "PMID ", mark) for mark in marks]


def cite(answer: str, passages: Sequence[Passage]) -> str:
    """The answer with citations after the sentences that the passages support.

    Only in the declared sections. Marks that the model wrote itself are taken out first, so that
    every one is set by this rule. An answer that does not keep the format, as a refusal, is
    returned as it is; what is returned otherwise keeps the format.
    """
    parsed = sections.parse(answer)
    if not parsed.ok:
        return answer
    bodies = []
    for name in sections.SECTIONS[:-1]:
        body = plain(parsed.sections[name])
        if name in settings().citations.sections:
            body = _all_marked(body, passages)
        bodies.append(body)
    if bodies == [parsed.sections[name] for name in sections.SECTIONS[:-1]]:
        return answer
    try:
        return sections.render(*bodies)
    except ValueError:  # a section that was nothing but marks
        return answer


def check_citations(answer: str, passages: Sequence[Passage]) -> list[Citation]:
    """Every citation in an answer, with what is right and wrong about it.

    Text that does not keep the format has no sections: no citation is allowed in it.
    """
    known = {passage.id: passage for passage in passages}
    parsed = sections.parse(answer)
    places = dict(parsed.sections) if parsed.ok else {None: answer}
    found = []
    for section, body in places.items():
        for sentence in split(body):
            for name in cited(sentence):
                score = support(sentence, known[name]) if name in known else 0.0
                allowed = section in settings().citations.sections
                found.append(Citation(name, section, sentence, name in known, allowed, score))
    return found
