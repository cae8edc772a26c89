"""Silver pairs of exam questions and abstracts: right against wrong, in one form.

Options stand in the same sentence on both sides. A rationale argues for the right option: it is
kept only where the wrong option's words can take the right one's place in it, and left out on both
sides otherwise. An abstract's conclusion gives the decision away: it is left out always.
"""

from __future__ import annotations

import re

from medalign import convert_rows, sources
from medalign.clean_text import clean
from medalign.convert_rows import LETTERS, Unusable
from medalign.rows import words
from medalign.silver_rows import Row, Sides, SilverSettings, chance, content, matches, tidied
from medalign.sources import columns

COMBINED = re.compile(  # an option that stands for others
    r"^(?:all|none|both|neither|any)(?: (?:the|of|are|is) .*)?$|\b(?:of the above|of these)\b|"
    r"^(?:both |neither |options? )?\(?[A-E]\)?(?:,? (?:and|or|nor|&) \(?[A-E]\)?)+$",
    re.IGNORECASE,
)
POINTS_TO_LETTER = re.compile(r"\b(?:options?|choices?|ans(?:wers?)?)\b|(?-i:\b[B-E]\b)", re.I)


def choices(row: Row, s: SilverSettings) -> list[Sides]:
    """The right option against each wrong one. Unusable says why a question makes no pairs."""
    c, rules = columns(row.source), s.multiple_choice
    options = convert_rows.option_list(sources.take(row.raw, c["options"]))
    right = convert_rows.right_option(row.raw[str(c["answer"])], options, row.source.answers)
    options = [option_text(option) for option in options]
    if COMBINED.search(options[right]):
        raise Unusable("right option stands for others", options[right])
    if matches(rules.needs, row.prompt):
        raise Unusable("needs what is not in the text", row.prompt)
    wrong = [n for n, o in enumerate(options) if words(o) != words(options[right])]
    drawn = sorted(wrong, key=lambda n: chance(s.seed, row.id, n))[: rules.wrong_options]
    given = convert_rows.text(row.raw, c.get("rationale"), needed=False)
    rationale = clean(given) if len(given.split()) <= rules.rationale_words else ""
    frame = rules.frames[int(chance(s.seed, row.id, "frame") * len(rules.frames))]
    sides = []
    for n in sorted(drawn):
        chosen, rejected = (
            re.sub(r'(?<=[.?!]["”])\.|(?<=[?!])\.', "", filled)
            for filled in (frame.format(letter=LETTERS[k], option=options[k]) for k in (right, n))
        )
        others = [o for k, o in enumerate(options) if k not in (right, n)]
        if (both := argued(rationale, options[right], options[n], others)) is not None:
            chosen, rejected = f"{chosen} {both[0]}", f"{rejected} {both[1]}"
        sides.append((LETTERS[n], chosen, rejected))
    return sides


def option_text(option: str) -> str:
    """An option as it stands in a sentence: cleaned, in one line, no full stop."""
    return " ".join(tidied(clean(option)).split()).rstrip(".").strip()


def argued(rationale: str, right: str, wrong: str, others: list[str]) -> tuple[str, str] | None:
    """A rationale for the right option, and the same with the wrong one in its place; or None.

    None unless nothing but the name need be changed: no letter, no other option, no other mention
    of the right one, and both options alike in grammar as far as their first and last letters tell.
    """

    def name(option: str) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w){re.escape(option)}(?!\w)", re.IGNORECASE)

    rationale = rationale.strip()
    if not rationale.endswith((".", "!", "?")) or POINTS_TO_LETTER.search(rationale):
        return None
    if not name(right).search(rationale) or name(wrong).search(rationale):
        return None
    if any(name(other).search(rationale) for other in others):
        return None
    if (right[-1] == "s") != (wrong[-1] == "s") or (right[0] in "aeiouAEIOU") != (
        wrong[0] in "aeiouAEIOU"
    ):
        return None

    def placed(match: re.Match[str]) -> str:
        written = wrong if wrong[:2].isupper() else wrong[0].lower() + wrong[1:]
        return written[0].upper() + written[1:] if match[0][0].isupper() else written

    swapped = name(right).sub(placed, rationale)
    if content(right) & (content(swapped) - content(wrong)):
        return None
    return rationale, swapped


def decisions(row: Row, s: SilverSettings) -> list[Sides]:
    """The right decision against the opposite one; against "maybe", yes or no by the seed."""
    right = convert_rows.text(row.raw, columns(row.source)["answer"]).lower()
    either = "yes" if chance(s.seed, row.id, "maybe") < 0.5 else "no"
    wrong = {"yes": "no", "no": "yes", "maybe": either}[right]
    frames = s.abstract_question.frames
    frame = frames[int(chance(s.seed, row.id, "frame") * len(frames))]
    first = frame.startswith("{")
    chosen, rejected = (
        frame.format(decision=word.capitalize() if first else word) for word in (right, wrong)
    )
    return [(wrong, chosen, rejected)]
