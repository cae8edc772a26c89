"""The four sections as a grammar of llama.cpp (GBNF), so that an answer cannot leave them.

    response_format: {"type": "four_sections"}      in a request to medalign.api

The form is forced, the content is not: a base model writes the sections too. What must not be
answered in any form may still be refused: medalign.gateway lets the model begin freely first,
and a refusal goes on without the grammar. A branch for refusals inside the grammar would not do:
whoever would begin "Anemia is …" and may not, finds "I'm sorry" likelier than a heading. An answer
cut at max_tokens is still broken.
"""

from __future__ import annotations

import json

from medalign.sections import DISCLAIMER, SECTIONS

LONGEST = 700  # characters of one section
OPENING_TOKENS = 24  # in which a model shows that it refuses


def four_sections() -> str:
    """The grammar: the sections in their order, the Note word for word."""
    parts = []
    for name in SECTIONS:
        words = json.dumps(DISCLAIMER) if name == "Note" else "body"
        parts.append(f"{json.dumps(f'**{name}**: ')} {words}")
    return "\n".join(
        (
            "root ::= " + ' "\\n\\n" '.join(parts),
            f"body ::= [A-Z0-9] [^\\n*]{{20,{LONGEST}}}",
        )
    )
