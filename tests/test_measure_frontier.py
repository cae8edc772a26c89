"""The frontier of an adapter: every scale merged once and asked the tuning sets only."""

import json

import pytest

from medalign import measure_frontier as frontier
from medalign.artifacts import StepError
from medalign.suite import rate


@pytest.fixture
def steps(monkeypatch):
    """Merge, export and evaluations that only note what they were asked."""
    asked = []

    def merge(adapter, out, scale):
        asked.append(("merge", scale))
        out.mkdir(parents=True)

    def export(folder, out, quant, family):
        asked.append(("export", out.name))
        out.write_text("gguf")

    def safety(gguf, out, sets):
        asked.append(("safety", sets))
        return {"scores": {"harmful_tune": {"refused": rate(7, 10)}}}

    def form(gguf, out, sets, system, limit):
        asked.append(("form", sets))
        return {"scores": {"tune": {"strict": rate(9, 10)}}}

    monkeypatch.setattr(frontier, "merge", merge)
    monkeypatch.setattr(frontier, "export", export)
    monkeypatch.setattr(frontier.evaluate_safety, "evaluate", safety)
    monkeypatch.setattr(frontier.evaluate_format, "evaluate", form)
    return asked


def run(monkeypatch, tmp_path, *scales):
    adapter = tmp_path / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "manifest.json").write_text("{}")
    arguments = [
        "--adapter",
        str(adapter),
        "--family",
        "smollm2-135m",
        "--out",
        str(tmp_path / "f"),
    ]
    monkeypatch.setattr("sys.argv", ["measure_frontier.py", *arguments, "--scales", *scales])
    frontier.main()
    return json.loads((tmp_path / "f/frontier.json").read_text())["points"]


def test_each_scale_is_made_once_and_asked_the_tuning_sets(steps, monkeypatch, tmp_path, capsys):
    points = run(monkeypatch, tmp_path, "0", "0.5")
    assert [p["scale"] for p in points] == [0, 0.5]
    assert points[1]["harmful_tune"]["rate"] == 0.7 and points[1]["form_tune"]["rate"] == 0.9
    assert [s for s in steps if s[0] == "merge"] == [("merge", 0), ("merge", 0.5)]
    assert {
        s[1] if isinstance(s[1], str) else s[1][0] for s in steps if s[0] in ("safety", "form")
    } == {"tune"}
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| scale | harmful_tune | form_tune |"
    assert table[3].startswith("| 0.5 | 7/10 (70.0%")
    run(monkeypatch, tmp_path, "0", "0.5", "1")
    assert [s[1] for s in steps if s[0] == "merge"] == [0, 0.5, 1]


def test_a_scale_that_means_nothing_is_refused(steps, monkeypatch, tmp_path):
    with pytest.raises(StepError, match="between 0"):
        run(monkeypatch, tmp_path, "-1")
    assert steps == []
