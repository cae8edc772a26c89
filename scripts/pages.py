"""HTML pages that stand alone: a template of this folder, filled, with the style they share."""

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
