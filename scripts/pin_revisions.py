"""Write the revisions of hub datasets and models that are not pinned yet: make pin.

    python scripts/pin_revisions.py            asks the hub (network, HF_TOKEN for gated ones)

data/sources.yaml and recipes/models.yaml keep `revision: null` until then, and nothing is
downloaded from a repository without a revision. A revision that stands there is left alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from medalign.artifacts import ROOT, StepError, run_step, written_whole
from medalign.sources import SOURCES

MODELS = ROOT / "recipes/models.yaml"
COMMIT = re.compile(r"[0-9a-f]{40}")
Ask = Callable[[str], str | None]  # hub id → commit


def pin(text: str, name_key: str, ask: Ask) -> tuple[str, list[str]]:
    """A YAML text with every `revision: null` filled in for the `name_key` of its entry.

    Only these lines change, comments stay. Returns the text and what was asked for.
    """
    pinned = []
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if not re.fullmatch(r"\s+revision: null\s*(#.*)?\n?", line):
            continue
        indent = line[: len(line) - len(line.lstrip())]
        hub = None
        for step in (-1, 1):  # the entry's other keys stand at the same depth around it
            j = i + step
            while hub is None and 0 <= j < len(lines) and lines[j].startswith(indent):
                if match := re.fullmatch(rf"{indent}{name_key}: ([^\s#]+)\s*(#.*)?\n?", lines[j]):
                    hub = match[1]
                j += step
        if hub in (None, "null"):
            continue
        commit = ask(str(hub))
        if commit is None or not COMMIT.fullmatch(commit):
            raise StepError(f"{hub}: the hub named no commit ({commit!r}); nothing was written")
        lines[i] = line.replace("null", commit, 1)
        pinned.append(f"{hub} @ {commit}")
    return "".join(lines), pinned


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    from huggingface_hub import HfApi

    hub = HfApi()

    def asking(kind: str) -> Ask:
        def ask(name: str) -> str | None:
            try:
                return hub.repo_info(name, repo_type=kind).sha
            except Exception as error:
                raise StepError(
                    f"{name}: the hub did not answer: {error}; nothing was written"
                ) from error

        return ask

    wanted: list[tuple[Path, str, str]] = [(SOURCES, "hub", "dataset"), (MODELS, "hub_id", "model")]
    found = [(path, *pin(path.read_text("utf-8"), key, asking(kind))) for path, key, kind in wanted]
    for path, text, pinned in found:
        if pinned:
            with written_whole(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for line in pinned:
            print(f"{path.relative_to(ROOT)}: {line}")
    if not any(pinned for _, _, pinned in found):
        print("everything that is on the hub is pinned")


if __name__ == "__main__":
    run_step(main)
