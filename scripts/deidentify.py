"""Persons taken out of dialogues and notes: names, dates, phones, addresses, e-mails, identifiers.

Presidio finds them (microsoft/presidio). Its trained name models cannot be had from the package
registry, so names come from rules: after a title, in a greeting or an introduction, and then
every other time the same name occurs in the row. Ages stay: they are clinical.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

from medalign.score_rows import STOP, is_clinical

PLACEHOLDERS = {
    "PERSON": "[name]",
    "EMAIL_ADDRESS": "[email]",
    "PHONE_NUMBER": "[phone]",
    "US_SSN": "[id]",
    "RECORD_ID": "[id]",
    "CREDIT_CARD": "[id]",
    "IP_ADDRESS": "[id]",
    "DATE_TIME": "[date]",
    "STREET_ADDRESS": "[address]",
}
MONTH = (  # "may" and "march" are words
    r"(?:May|March|Mar\b|(?i:jan(?:uary)?|feb(?:ruary)?|apr(?:il)?|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?))"
)
SPOKEN_DAY = (
    r"(?:\d{1,2}(?:st|nd|rd|th)?|(?i:twenty|thirty)?[ -]?(?i:first|second|third|fourth|fifth|sixth|"
    r"seventh|eighth|ninth|tenth|eleventh|twelfth|\w+teenth|twentieth|thirtieth))"
)
YEAR = (
    r"(?i:,?\s*(?:of )?(?:(?:19|20)\d\d|two thousand(?: and)?(?: \w+)?|nineteen \w+(?:[ -]\w+)?|"
    r"twenty (?:ten|eleven|twelve|\w+teen|twenty(?:[ -]\w+)?)))"
)
PATTERNS = {
    "DATE_TIME": [
        rf"\b{MONTH}\.? {SPOKEN_DAY}\b{YEAR}?",
        rf"\b{SPOKEN_DAY} (?:of )?{MONTH}\b{YEAR}?",
        rf"\b{MONTH}{YEAR}",
        r"\b\d{1,2}[/.-]\d{1,2}[/.-](?:19|20)?\d\d\b",
        r"\b(?:19|20)\d\d-\d\d-\d\d\b",
        rf"\b{MONTH} \d{{1,2}}\b",
    ],
    "STREET_ADDRESS": [
        r"\b\d{1,5} (?:[NSEW]\.? )?(?:[A-Z][a-z]+ ){1,3}"
        r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl)\b\.?"
        r"(?:,? (?:Apt|Suite|Unit)\.? ?\w+)?",
        r"\b[A-Z]{2} \d{5}(?:-\d{4})?\b",
    ],
    "RECORD_ID": [
        r"\b(?i:MRN|medical record(?: number)?|account(?: number)?|SSN|social security(?: number)?|"
        r"(?:patient|member|policy|license) (?:id|number|no\.?))\s*(?:is|:|#)?\s*#?\d[\d-]{3,}\b",
    ],
}  # fmt: skip
CAPITAL, SMALL = "[A-ZÀ-ÖØ-Þ]", "[a-zß-öø-ÿ]"
NAME = rf"(?:Mc|Mac|O['’]|De|Di|La|Le|Van)?{CAPITAL}{SMALL}+(?:[-'’]{CAPITAL}{SMALL}+)?"
FULL = rf"(?:[A-Z]\.? )*{NAME}(?: {NAME}){{0,2}}"
ANY_CASE_NAME = r"[A-Za-zÀ-ÿ]{2,}"
AGE = r"(?:\w+[ -]){0,3}\d{1,3}[ -]?(?:years?|yrs?|y\.?\s?o|months?|mo|weeks?|days?)\b"
# Expressions whose group is a name. Of those in TITLED it is one whatever the word.
TITLED = [
    rf"\b(?:Dr|Mr|Mrs|Ms|Miss|Mister|Missus|Prof)\b\.? *({FULL}|[A-Z]{{2,}}\b)",
    r"\b(?:DR|MR|MRS|MS)\. +([A-Z]{2,})\b",
    rf"\b(?:[Dd]octor|[Nn]urse) +({FULL})\b(?!:)",
    rf"\b(?i:my name(?:'s| is)|(?:his|her) name(?:'s| is)) +({FULL})\b",
    rf"\b({NAME}(?: {NAME}){{1,2}}),? (?:(?:is|was|presents as) )?an? {AGE}",
    rf"\b({NAME}(?: {NAME}){{1,2}}), (?:an? )?{AGE}",
    rf"\b(?i:patient name):? +({FULL})\b",
]
INTRODUCED = [
    rf"\b(?:[Hh]i|[Hh]ello|[Hh]ey|[Gg]ood (?:morning|afternoon|evening)),? +({NAME}(?: {NAME})?)\b",
    rf"\b(?:I am|I'm|[Tt]his is) +({NAME}(?: {NAME})?)\b",
    # Transcripts in lower case, as ACI-Bench has them.
    rf"\bmy name(?:'s| is) +({ANY_CASE_NAME}(?: {ANY_CASE_NAME})?)\b",
    r"^\[\w+\] (?:(?:okay|alright|all right|so|and|well)[ ,]+)*"
    r"(?:hi|hey|hello|good (?:morning|afternoon|evening))[ ,]+"
    rf"(?:(?:mr|mrs|ms|miss|dr)\.? )?({ANY_CASE_NAME})\b",
    rf"\b(?:mr|mrs|ms|dr)\. +({ANY_CASE_NAME})\b",
    rf"(?:^|[.,] |\] |so ,? ?|, )({ANY_CASE_NAME}) is an? {AGE}",
]
TITLES = (*"mr mrs ms dr miss mister".split(), "mr.", "mrs.", "ms.", "dr.")
NOT_NAMES = frozenset(
    """
    a all and any baby back been before being book boy brother care child come coming correct
    could daughter doctor doing dr everybody everyone exactly father feeling female folks friend
    from gentleman girl glad go good great guest guys have he hello her here hey hi him his how
    husband i i'm in infant is it just kid know lady let ma'am madam male man miss missus mister
    mom mother mr mrs ms neonate newborn nice no not now nurse of oh ok okay on parent patient
    please right say see seems she sir sister so son sure thank thanks that the there they this to
    today twin uh um very was we welcome well what where who why wife with woman yeah yes you
    young your
    """.split()
)
# Names that are words as well: taken out where they are introduced or capitalized, not elsewhere.
WORDS_TOO = frozenset(
    """
    art best bill black bone brown chase dawn day drew faith foot frank gene grace grant gray
    green hand head heart hope jack joy long mark may miles price ray rose sharp short stone
    summer weeks white will wood
    """.split()
)


@functools.cache
def analyzer() -> Any:
    """Presidio with its pattern recognizers on a blank English pipeline: nothing is downloaded."""
    import spacy
    from presidio_analyzer import (
        AnalyzerEngine,
        Pattern,
        PatternRecognizer,
        RecognizerRegistry,
    )  # fmt: skip
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        UsSsnRecognizer,
    )  # fmt: skip

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__(ner_model_configuration=NerModelConfiguration(labels_to_ignore=["O"]))
            self.nlp: Any = {"en": spacy.blank("en")}

    registry = RecognizerRegistry(supported_languages=["en"])
    for recognizer in (
        EmailRecognizer(), CreditCardRecognizer(), IpRecognizer(), UsSsnRecognizer(),
        PhoneRecognizer(supported_regions=("US", "GB"), leniency=1),
    ):  # fmt: skip
        registry.add_recognizer(recognizer)
    for entity, expressions in PATTERNS.items():
        patterns = [Pattern(entity, expression, 0.8) for expression in expressions]
        registry.add_recognizer(
            PatternRecognizer(entity, patterns=patterns, global_regex_flags=re.MULTILINE)
        )
    return AnalyzerEngine(registry, nlp_engine=Blank(), supported_languages=["en"])


def names(texts: list[str]) -> set[str]:
    """Names of persons as the texts of one row introduce them, single words."""
    found = set()
    for expressions, sure in ((TITLED, True), (INTRODUCED, False)):
        for match in (
            m for e in expressions for t in texts for m in re.finditer(e, t, re.MULTILINE)
        ):
            parts = [part.strip(".") for part in match[1].split()]
            found |= {part for part in parts if len(part) > 1 and (sure or not ordinary(part))}
    return {name for name in found if name.lower() not in TITLES and name not in WORDS_TOO}


def ordinary(word: str) -> bool:
    """Whether a word that stands where a name may stand is more likely none."""
    word = word.lower()
    return word in NOT_NAMES or word in STOP or is_clinical(word)


def deidentify(texts: list[str], changes: Counter[str]) -> list[str]:
    """The texts of one row with placeholders for what points to a person; counted by kind."""
    known = names(texts)
    known |= {name.capitalize() for name in known}
    # Where all is in lower case the names are so too, but for those that are words as well.
    if any(text == text.lower() for text in texts):
        words = {name.lower() for name in known}
        known |= {word for word in words if word not in WORDS_TOO and not ordinary(word)}
    cleaned = [_patterns(text, changes) for text in texts]
    if not known:
        return cleaned
    longest = "|".join(sorted(map(re.escape, known), key=lambda n: (-len(n), n)))
    # A word that is a name as well is one beside a name or a title: "kelly wood", "mrs. wood".
    beside = "|".join([longest, *sorted(n.lower() for n in known if n.lower() in WORDS_TOO)])
    titled = "".join(rf"|(?<=\b{re.escape(title)} )(?:{beside})\b" for title in TITLES)
    expression = re.compile(rf"\b(?:{longest})(?: (?:{beside}))*\b{titled}")
    result = []
    for text in cleaned:
        text, n = expression.subn(PLACEHOLDERS["PERSON"], text)
        changes["PERSON"] += n
        result.append(text)
    return result


def _patterns(text: str, changes: Counter[str]) -> str:
    found = analyzer().analyze(text, language="en", score_threshold=0.4)
    spans: list[tuple[int, int, str]] = []
    for hit in sorted(found, key=lambda h: (h.start, -h.end)):
        if hit.entity_type not in PLACEHOLDERS:
            continue
        if spans and hit.start < spans[-1][1]:  # overlapping: one span, of the longer one's kind
            start, end, kind = spans[-1]
            longer = hit.entity_type if hit.end - hit.start > end - start else kind
            spans[-1] = (start, max(end, hit.end), longer)
        else:
            spans.append((hit.start, hit.end, hit.entity_type))
    for start, end, kind in reversed(spans):
        text = text[:start] + PLACEHOLDERS[kind] + text[end:]
        changes[kind] += 1
    return text
