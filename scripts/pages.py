"""HTML pages that stand alone: a template of this folder, filled, with the style they share.

And Markdown's tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template
from markupsafe import Markup

STYLE = Path(__file__).with_name("page.css")


def fill(template: Path, **facts: Any) -> str:
    """A Jinja template filled; everything is escaped, a name that is missing is an error."""
    page = Template(
        template.read_text(encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return page.render(style=Markup(STYLE.read_text(encoding="utf-8")), **facts)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
