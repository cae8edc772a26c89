"""Clinical relevance and quality of a row: documented features, kept in the row.

relevance, 0 to 1: the share of content words that are clinical (data/clinical_words.yaml), of the
question and of the answer, the higher one, doubled and cut at 1: about every second content word
of a textbook sentence is clinical.

quality, 0 to 1: the mean of the features of `quality`, each 0 to 1, so that a row can be argued
with: which one is low says why.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

import yaml

from medalign.artifacts import ROOT

CLINICAL = ROOT / "data/clinical_words.yaml"
STOP = frozenset(
    """
    a about after all also although among an and any are as at be because been before being
    between both but by can could did do does doing during each either few for from further had
    has have having he her here hers him his how i if in into is it its itself just may me might
    more most must my no nor not of off on once one only or other our out over own s same she
    should since so some such t than that the their them then there these they this those through
    to too two under until up upon us use used using very was we were what when where whether
    which while who whom why will with within without would you your yes following true false
    except answer explanation option
    """.split()
)


@functools.cache
def clinical() -> tuple[frozenset[str], re.Pattern[str]]:
    """The clinical words, and the expression of clinical beginnings and endings."""
    read = {key: value.split() for key, value in yaml.safe_load(CLINICAL.read_text()).items()}
    affixes = (
        rf"(?:{'|'.join(read['beginnings'])})\w{{3,}}|\w{{3,}}(?:{'|'.join(read['endings'])})s?"
    )
    return frozenset(read["words"]), re.compile(affixes)


@functools.lru_cache(maxsize=2**17)
def is_clinical(word: str) -> bool:
    """Whether a lower-case word counts as clinical."""
    words, affixes = clinical()
    singular = (
        word[:-3] + "y" if word.endswith("ies") else word[:-1] if word.endswith("s") else word
    )
    return word in words or singular in words or affixes.fullmatch(word) is not None


def content_words(text: str) -> list[str]:
    """Lower-cased words of two letters and more that are no stop words."""
    return [w for w in re.findall(r"[a-z]{2,}", text.lower()) if w not in STOP]


def relevance(question: str, answer: str) -> float:
    """Clinical share of the content words, of question or answer, doubled; 0 to 1."""
    shares = [0.0]
    for text in (question, answer):
        words = content_words(text)
        if len(words) >= 3:
            shares.append(sum(map(is_clinical, words)) / len(words))
    return min(1.0, 2 * max(shares))


def quality(question: str, answer: str) -> dict[str, float]:
    """Features of a well-made row, each 0 (bad) to 1 (good).

    letters: share of letters and spaces, of the worse of question and answer, full marks from 85 %.
    variety: distinct three-word sequences of the answer, against lists repeated on and on.
    case: share of lower-case letters, likewise, full marks from 60 %: no text in capitals.
    finished: whether the answer stops at the end of a sentence or is a short phrase.
    complete: whether nothing is cut off ("…") and nothing refers to a picture that is not there.
    """
    both = f"{question}\n{answer}"
    texts = [text for text in (question, answer) if text]
    letters = min(sum(c.isalpha() or c.isspace() for c in text) / len(text) for text in texts)
    lower = min(sum(map(str.islower, text)) / max(1, sum(map(str.isalpha, text))) for text in texts)
    words = answer.lower().split()
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    variety = len(triples) / max(1, sum(triples.values())) if triples else 1.0
    finished = len(words) < 12 or answer.rstrip().endswith((".", "!", "?", ")", '"', "]", ":", "'"))
    cut = re.search(r"\.\.\.\s*$|…\s*$", answer) or re.search(
        r"\b(?:(?:figure|image|picture|photograph|diagram|graph) (?:shown|below|above|given)|"
        r"(?:shown|see|given) (?:in|the) (?:the )?(?:figure|image|picture|below))\b",
        both,
        re.IGNORECASE,
    )
    return {
        "letters": min(1.0, letters / 0.85),
        "variety": variety,
        "case": min(1.0, lower / 0.6),
        "finished": float(finished),
        "complete": float(cut is None),
    }


def scores(question: str, answer: str) -> dict[str, float]:
    """All features with `relevance` and `quality`, rounded so that they are the same everywhere."""
    features = quality(question, answer)
    found = {
        "relevance": relevance(question, answer),
        "quality": sum(features.values()) / len(features),
        **features,
    }
    return {name: round(value, 3) for name, value in found.items()}
