"""Text as it goes into the mix: one Unicode form, no markup, no boilerplate, units one way.

ftfy mends encodings, lxml takes markup out; tables in data/terminology.yaml write units and
shorthand one way. Tests hold what must not be touched: ranges, negations, names of stages.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections import Counter

import ftfy
import lxml.html
import yaml

from medalign.artifacts import ROOT

TERMINOLOGY = ROOT / "data/terminology.yaml"
TAG = re.compile(
    r"</?(?:p|br|b|i|u|div|span|table|tr|td|th|ul|ol|li|a|sub|sup|strong|em|img|h[1-6]|font|center)"
    r"\b[^<>]{0,500}>",
    re.IGNORECASE,
)
BREAKS = re.compile(r"<\s*(?:br|/p|/div|/tr|/li|/h[1-6])\b[^<>]{0,200}>", re.IGNORECASE)
# Sentences that tell of the page or the site the text stood on, not of medicine.
CROSS_REFERENCE = re.compile(
    r"\bclick here\b|\bfor more information,? (?:see|visit|go to|contact|call|please)\b|"
    r"\b(?:see|watch) (?:this|the) video|\bread more about|\bback to top\b|\ball rights reserved|"
    r"\b(?:see|visit|go to|check)\b[^.!?\n]{0,60}\bweb ?(?:site|page)s?\b",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|[.!?]*)")
BOILERPLATE = [
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in {
        "web address": r"\(?\b(?:https?://|www\.)[^\s)]+\)?",
        # "(Ref: Harrison 19/e p1784)", not "(reference range 3.5-5.0)": a page or an edition.
        "book reference": r"[\[(]\s*(?:ref|reference)s?\b[^()\[\]\n]{0,200}?"
        r"(?:\bp(?:age|g)?s?\.?\s?-?\s?\d+|\d+(?:st|nd|rd|th)\s*ed|\d+/e)[^()\[\]\n]{0,200}[\])]|"
        r"\b(?:ref|reference)s?\s*[:.-]+\s*[^.\n]{0,160}?"
        r"\b(?:p(?:age|g)?s?\.?\s?-?\s?\d+[\d\s,-]*|\d+(?:st|nd|rd|th)\s*ed(?:ition|n)?\.?|\d+/e)",
        "sign-off": r"(?:(?<=[.!?\n])|^)\s*(?:hope (?:this|that|it) (?:helps|answers)[^.!?\n]*|"
        r"(?:kind |warm |best )?regards,?[^.!?\n]{0,40}$|"
        r"thank(?:s| you) for (?:using|asking|contacting|writing|your (?:query|question))[^.!?\n]*|"
        r"(?:feel free to|do) (?:write|get) back[^.!?\n]*)[.!]*|"
        r"\b(?:chat ?doctor|healthcare ?magic|icliniq)\b",
    }.items()
]  # fmt: skip


@functools.cache
def tables() -> tuple[list[tuple[re.Pattern[str], str]], re.Pattern[str], dict[str, str]]:
    """Units (expression, form), the expression of all other words, and what those become."""
    read = yaml.safe_load(TERMINOLOGY.read_text(encoding="utf-8"))
    units = [
        (re.compile(rf"(?<=\d)\s?(?:{left})(?![\w/%])"), right)
        for left, right in read["units"].items()
    ]
    words = read["shorthand"] | read["lost_letters"]
    longest = sorted(map(re.escape, words), key=len, reverse=True)
    return units, re.compile(rf"(?<![\w/])(?:{'|'.join(longest)})(?![\w/])", re.IGNORECASE), words


def characters(text: str) -> str:
    """Mended encoding, NFC, plain quotes and spaces, no control characters."""
    text = unicodedata.normalize("NFC", ftfy.fix_text(text, normalization=None))
    text = text.replace("\u00ad", "").replace("\u200b", "").replace("\ufeff", "")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]|[\ue000-\uf8ff]", " ", text)


def plain(text: str) -> str:
    """HTML as text. "<" and ">" that are comparisons ("pH <7.2") stay."""
    if TAG.search(text):
        text = BREAKS.sub("\n", text)
        text = (
            TAG.sub(" ", text)
            if "<" in TAG.sub("", text)
            else lxml.html.fromstring(f"<div>{text}</div>").text_content()
        )
    return html.unescape(text)


def spaces(text: str) -> str:
    """Single spaces, no space before a punctuation mark, at most one empty line."""
    text = re.sub(r"[ \t\u00a0\u2000-\u200a\u202f\u3000]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    text = re.sub(r"(?<=\w) (?=[.,;:?!](?:\s|$))", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def sentences(text: str, changes: Counter[str]) -> str:
    """A text without the sentences that point to another page."""
    if not CROSS_REFERENCE.search(text):
        return text

    def kept(match: re.Match[str]) -> str:
        if not CROSS_REFERENCE.search(match[0]):
            return match[0]
        changes["cross-reference"] += 1
        return " "

    return SENTENCE.sub(kept, text)


def terminology(text: str, changes: Counter[str]) -> str:
    """Units and shorthand written one way; `changes` counts by kind."""
    units, expression, words = tables()
    for pattern, right in units if any(map(str.isdigit, text)) else ():
        # "/mcL" stands right after its number, other units after a space.
        form = right if right[0] == "/" else f" {right}"
        text, n = pattern.subn(form, text)
        changes["unit"] += n

    def written_out(match: re.Match[str]) -> str:
        if match[0].isupper():  # an abbreviation of something else
            return match[0]
        changes["word"] += 1
        word = words[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() and match[0][1:].islower() else word

    return expression.sub(written_out, text)


def tidy(text: str) -> str:
    """Characters and spaces only: for rows that were written for this project."""
    return spaces(characters(text))


def clean(text: str, changes: Counter[str] | None = None) -> str:
    """All of the above. `changes` counts what was done, by kind."""
    changes = Counter() if changes is None else changes
    text = sentences(plain(characters(text)), changes)
    for name, pattern in BOILERPLATE:
        text, n = pattern.subn(" ", text)
        changes[name] += n
    return spaces(terminology(text, changes))
