"""A call of Google's SDK, printed and made from one description, and what Vertex AI has already."""

from __future__ import annotations

import pprint
import textwrap
from dataclasses import dataclass, field
from typing import Any


class Name(str):
    """The name that a call's result goes by in the calls after it."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Call:
    """One call of the SDK. result: the name its result gets.

    made, undo: what there is afterwards and the command that removes it; {name.attribute} is
    filled in from the results.
    """

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    result: str | None = None
    made: str = ""
    undo: str = ""

    def text(self) -> str:
        """The call as Python."""
        begin = f"{self.result} = " if self.result else ""
        lines = []
        for key, value in self.arguments.items():
            shown = pprint.pformat(value, width=92 - len(key), sort_dicts=False)
            aligned = shown.replace("\n", "\n" + " " * (len(key) + 1))
            lines.append(textwrap.indent(f"{key}={aligned},", "    "))
        inside = "\n" + "\n".join(lines) + "\n" if lines else ""
        return f"{begin}{self.function}({inside})"


@dataclass(frozen=True)
class Deployed:
    """A version deployed on the endpoint. created: seconds since 1970; traffic: per cent."""

    id: str
    model: str
    version: str
    created: float
    traffic: int


@dataclass(frozen=True)
class State:
    """What Vertex AI has already. versions: alias → version id; deployed: oldest first."""

    model: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    deployed: tuple[Deployed, ...] = ()
