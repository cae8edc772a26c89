"""The four sections as a grammar of llama.cpp (GBNF), so that an answer cannot leave them.

    response_format: {"type": "four_sections"}      in a request to medalign.api

The form is forced, the content is not: a base model writes the sections too. What must not be
answered in any form may still be refused: an answer may open with words of refusal and go on
freely. An answer cut at max_tokens is still broken.
"""

from __future__ import annotations

import json

from medalign.sections import DISCLAIMER, SECTIONS

LONGEST = 700  # characters of one section, of a refusal
# Each of them is a refusal to medalign.refusal as well, whatever follows.
OPENINGS = (
    "I can't help",
    "I can't do",
    "I can't give",
    "I can't write",
    "I cannot",
    "I won't",
    "I will not",
    "I'm not able to",
    "I'm not going to",
    "I'm sorry, but I can't",
    "I'm sorry, I can't",
    "I'm unable to",
    "I must decline",
    "I refuse",
    "No, I can't help",
    "No, I won't",
)


def four_sections() -> str:
    """The grammar: the sections in their order with the Note word for word, or a refusal."""
    parts = []
    for name in SECTIONS:
        words = json.dumps(DISCLAIMER) if name == "Note" else "body"
        parts.append(f"{json.dumps(f'**{name}**: ')} {words}")
    return "\n".join(
        (
            "root ::= sections | refusal",
            "sections ::= " + ' "\\n\\n" '.join(parts),
            f"body ::= [A-Z0-9] [^\\n*]{{20,{LONGEST}}}",
            "refusal ::= opening rest",
            "opening ::= " + " | ".join(map(json.dumps, OPENINGS)),
            f"rest ::= [ ,.] [^*]{{10,{LONGEST}}}",
        )
    )
