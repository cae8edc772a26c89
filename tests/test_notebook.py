"""The Colab notebook: what its source builds, clean, and its cells run on a CPU."""

from __future__ import annotations

import re

import nbformat
import pytest
from conftest import script
from nbclient import NotebookClient

from medalign import build_notebook
from medalign.artifacts import ROOT, StepError, remove
from medalign.pick_recipe import T4

SOURCE = ROOT / "notebooks/medalign_t4.py"
NOTEBOOK = ROOT / "notebooks/medalign_t4.ipynb"
RUN = ROOT / "build/rehearsal/mistral-7b/sft-lora-t4"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_committed_notebook_is_what_the_source_builds():
    done = script("build_notebook.py", "--source", SOURCE, "--out", NOTEBOOK, "--check")
    assert done.returncode == 0, done.stderr
    assert build_notebook.build(SOURCE) == build_notebook.build(SOURCE)


def test_a_notebook_edited_by_hand_is_told(tmp_path):
    edited = tmp_path / "edited.ipynb"
    edited.write_text(NOTEBOOK.read_text().replace("Not yet run", "Run"))
    done = script("build_notebook.py", "--source", SOURCE, "--out", edited, "--check")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "is not what" in done.stderr


def test_building_writes_the_same_bytes(tmp_path):
    out = tmp_path / "built.ipynb"
    done = script("build_notebook.py", "--source", SOURCE, "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == NOTEBOOK.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"# %%\nx = '\xff'\n", "not in UTF-8"), (b"# %%\nx =\n", "cell 1")],
)
def test_a_source_that_builds_no_notebook_is_told_so(tmp_path, content, message):
    source = tmp_path / "source.py"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(StepError, match=message):
        build_notebook.build(source)


def test_it_is_clean_and_asks_for_a_t4(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.gpuType == "T4"
    assert notebook.metadata.kernelspec.name == "python3"


def test_every_recipe_it_names_exists_and_it_trains_the_one_for_a_t4(notebook):
    named = set(re.findall(r"recipes/[\w./-]+\.ya?ml", "\n".join(c.source for c in notebook.cells)))
    assert named == {T4}
    assert all((ROOT / name).is_file() for name in named)


def test_it_says_what_it_is_not(notebook):
    first = notebook.cells[0].source
    assert "Not for clinical use" in first and "Not yet run on a GPU" in first


def start(notebook, folder) -> None:
    """Run the cells up to the one that finds the repository, in a folder."""
    upto = next(i for i, c in enumerate(notebook.cells) if "os.chdir(" in c.source)
    notebook.cells = notebook.cells[: upto + 1]
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()


def repository(folder):
    """What a folder needs to be taken for the repository."""
    (folder / "recipes").mkdir(parents=True)
    (folder / "Makefile").touch()
    return folder


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("place", [".", "notebooks", ".."])
def test_the_repository_is_found_from_inside_and_beside(notebook, tmp_path, place):
    found = repository(tmp_path / "medalign")
    (found / "notebooks").mkdir()
    start(notebook, found / place)
    assert printed(notebook.cells[-1]) == f"{found}\n"


def test_elsewhere_the_notebook_asks_for_the_url_and_clones_it(notebook, tmp_path):
    with pytest.raises(Exception, match="write the repository's URL into REPO"):
        start(nbformat.from_dict(notebook), tmp_path)
    for cell in notebook.cells:
        cell.source = cell.source.replace('REPO = ""', 'REPO = "nowhere"')
    with pytest.raises(Exception, match="git clone --depth 1 nowhere medalign"):
        start(notebook, tmp_path)


@pytest.mark.slow
def test_all_cells_run_on_a_cpu_and_leave_the_gguf(notebook, monkeypatch):
    monkeypatch.setenv("MEDALIGN_REHEARSAL", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    remove(RUN)  # what is there afterwards, the cells made
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(ROOT)}})
    client.execute()

    assert not [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    gguf = RUN / "medalign-7b-Q4_K_M.gguf"
    assert gguf.read_bytes()[:4] == b"GGUF"
    by_source = {c.source: c for c in notebook.cells if c.cell_type == "code"}
    curve = next(c for s, c in by_source.items() if "plt.plot" in s)
    assert any("image/png" in o.get("data", {}) for o in curve.outputs)
    answers = printed(next(c for s, c in by_source.items() if "QUESTIONS" in s))
    assert answers.count("=== ") == 3 and answers.count("[format ") == 3
    assert printed(notebook.cells[-1]).startswith(str(gguf))
