"""Build a notebook from its source: Python in jupytext's percent format → .ipynb without outputs.

    python scripts/build_notebook.py --source notebooks/medalign_t4.py \\
        --out notebooks/medalign_t4.ipynb

The same source gives the same bytes. `--check` writes nothing and fails if the notebook is not
what the source builds. The kernel and what Colab reads (GPU type) stand in the source's header.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jupytext
import nbformat

from medalign.artifacts import StepError, require_file, run_step, written_whole


def build(source: Path) -> str:
    """The text of the notebook that `source` builds.

    StepError if it is not there, not in UTF-8, or has a code cell that is not Python.
    """
    require_file(source, "git checkout brings it back")
    try:
        notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    except UnicodeDecodeError as error:
        raise StepError(f"{source}: not in UTF-8 ({error})") from error
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number:02}"
        if cell.cell_type == "code":
            try:
                compile(cell.source, f"cell {number}", "exec")
            except SyntaxError as error:
                raise StepError(f"{source}: code {error}") from error
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def check(source: Path, out: Path) -> None:
    """Raise StepError if the notebook `out` is not what `source` builds."""
    require_file(out, "build_notebook.py without --check writes it")
    if out.read_bytes() != build(source).encode():
        raise StepError(f"{out} is not what {source} builds; run the same without --check")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="Python in percent format")
    parser.add_argument("--out", type=Path, required=True, help="notebook, .ipynb")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    args = parser.parse_args()
    if args.check:
        check(args.source, args.out)
        print(f"{args.out}: up to date")
    else:
        with written_whole(args.out) as temporary:
            temporary.write_text(build(args.source), encoding="utf-8")
        print(f"{args.out}: written")


if __name__ == "__main__":
    run_step(main)
