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

PLACEHOLDERS = {
    "PERSON": "[name]",
    "EMAIL_ADDRESS": "[email]",
    "PHONE_NUMBER": "[phone]",
    "URL": "[link]",
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
NAME = r"[A-Z][a-z]+(?:[-'][A-Z][a-z]+)?"
ANY_CASE_NAME = r"[A-Za-z][a-z]+"
INTRODUCED = [  # expression, its group is the name; the names themselves are capitalized
    rf"\b(?:Dr|Mr|Mrs|Ms|Miss|Prof)\.? +((?:{NAME}|[A-Z])(?: (?:{NAME}))?)\b",
    rf"\b[Dd]octor +((?:{NAME})(?: {NAME})?)\b(?!:)",
    rf"\b[Mm]y name(?:'s| is) +({NAME}(?: {NAME})?)\b",
    rf"\b(?:[Hh]i|[Hh]ello|[Hh]ey|[Gg]ood (?:morning|afternoon|evening)),? +({NAME}(?: {NAME})?)\b",
    rf"\b({NAME} {NAME}) is an? \d{{1,3}}[- ]year",
    rf"\b(?:patient|PATIENT|Patient) (?:name|NAME|Name):? +({NAME}(?: {NAME})?)\b",
    # Transcripts in lower case, as ACI-Bench has them.
    r"^\[doctor\] (?:(?:okay|alright|all right|so|and|well)[ ,]+)*"
    r"(?:hi|hey|hello|good (?:morning|afternoon|evening))[ ,]+"
    rf"(?:(?:mr|mrs|ms|miss|dr)\.? )?({ANY_CASE_NAME})\b",
    rf"\b(?:mr|mrs|ms|miss|dr)\.? +({ANY_CASE_NAME})\b",
    rf"(?:^|[.,] |\] |so ,? ?|, )({ANY_CASE_NAME}) is an? \d{{1,3}}[- ]year",
]
NOT_NAMES = frozenset(
    """
    a all and any baby back been being book care come coming correct doctor dr everybody everyone
    exactly feeling folks friend from glad go good great guest guys have he hello her here hey hi
    him his how i i'm in is it know let ma'am madam miss mr mrs ms nice no not now nurse of oh ok
    okay on patient please right say see seems she sir so sure thank thanks that the there they
    this to today uh um very was we welcome well what who why with yeah yes you your young
    """.split()
)
# Names that are words as well: taken out where they are introduced or capitalized, not elsewhere.
WORDS_TOO = frozenset(
    """
    art bill black bone brown chase dawn drew faith foot frank gene grace grant gray green hand
    head heart hope jack joy long mark may miles price ray rose short stone summer white will wood
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
    found = {
        part
        for expression in INTRODUCED
        for text in texts
        for match in re.finditer(expression, text, re.MULTILINE)
        for part in match[1].split()
        if part.lower() not in NOT_NAMES
    }
    return {name for name in found if len(name) > 1 and name not in WORDS_TOO}


def deidentify(texts: list[str], changes: Counter[str]) -> list[str]:
    """The texts of one row with placeholders for what points to a person; counted by kind."""
    known = names(texts)
    # A name introduced in lower case is one also when capitalized; the other way only if no word.
    known |= {name.capitalize() for name in known}
    known |= {name.lower() for name in known if name.lower() not in WORDS_TOO}
    cleaned = [_patterns(text, changes) for text in texts]
    if not known:
        return cleaned
    longest = "|".join(sorted(map(re.escape, known), key=lambda n: (-len(n), n)))
    expression = re.compile(rf"\b(?:{longest})(?: (?:{longest}))*\b")
    result = []
    for text in cleaned:
        text, n = expression.subn(PLACEHOLDERS["PERSON"], text)
        changes["PERSON"] += n
        result.append(text)
    return result


def _patterns(text: str, changes: Counter[str]) -> str:
    found = analyzer().analyze(text, language="en", score_threshold=0.4)
    end = len(text)
    for hit in sorted(found, key=lambda h: (h.start, -h.end), reverse=True):
        if hit.end > end or hit.entity_type not in PLACEHOLDERS:
            continue
        text = text[: hit.start] + PLACEHOLDERS[hit.entity_type] + text[hit.end :]
        end = hit.start
        changes[hit.entity_type] += 1
    return text
