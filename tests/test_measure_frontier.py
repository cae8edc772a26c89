"""The frontier of an adapter: every scale merged once and asked the tuning sets only."""

import json

import pytest

from medalign import measure_frontier as frontier
from medalign.artifacts import StepError
from medalign.suite import rate

REFUSED = {"harmful_tune": 7, "benign_tune": 3}


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
        return {"scores": {n: {"refused": rate(k, 10)} for n, k in REFUSED.items()}}

    def form(gguf, out, sets, system, limit):
        asked.append(("form", sets))
        return {"scores": {"tune": {"strict": rate(9, 10)}}}

    monkeypatch.setattr(frontier, "merge", merge)
    monkeypatch.setattr(frontier, "export", export)
    monkeypatch.setattr(frontier.evaluate_safety, "evaluate", safety)
    monkeypatch.setattr(frontier.evaluate_format, "evaluate", form)
    return asked


def run(monkeypatch, tmp_path, *scales, others=False):
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
    other = tmp_path / "beta-0.3/adapter"
    other.mkdir(parents=True, exist_ok=True)
    (other / "manifest.json").write_text('{"overrides": {"rl_beta": 0.3}}')
    arguments += ["--others", str(other)] if others else []
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
    assert table[0] == "| settings | scale | harmful_tune | benign_tune | form_tune | d_prime |"
    assert table[3].startswith("| the recipe's | 0.5 | 7/10 (70.0%")
    run(monkeypatch, tmp_path, "0", "0.5", "1")
    assert [s[1] for s in steps if s[0] == "merge"] == [0, 0.5, 1]


def test_a_scale_that_means_nothing_is_refused(steps, monkeypatch, tmp_path):
    with pytest.raises(StepError, match="between 0"):
        run(monkeypatch, tmp_path, "-1")
    assert steps == []


def test_adapters_of_other_settings_are_named_by_what_was_set(steps, monkeypatch, tmp_path):
    points = run(monkeypatch, tmp_path, "0", "1", others=True)
    assert [(p["settings"], p["scale"]) for p in points] == [
        ("the recipe's", 0),
        ("the recipe's", 1),
        ("rl_beta 0.3", 1),
    ]
    made = len([s for s in steps if s[0] == "merge"])
    run(monkeypatch, tmp_path, "0", "1", others=True)
    assert len([s for s in steps if s[0] == "merge"]) == made == 3
    (tmp_path / "beta-0.3/adapter/weights").write_text("others")  # trained anew
    run(monkeypatch, tmp_path, "0", "1", others=True)
    assert len([s for s in steps if s[0] == "merge"]) == made + 1
    assert (tmp_path / "f/beta-0.3/medalign-135m-Q4_K_M.gguf").exists()


def test_d_prime_is_the_distance_in_standard_deviations():
    # z(0.9773) - z(0.1587) = 2 + 1, of counts so large that the half answer does not matter
    assert frontier.d_prime(rate(977250, 10**6), rate(158655, 10**6)) == 3.0
    assert frontier.d_prime(rate(5, 10), rate(5, 10)) == 0.0
    assert frontier.d_prime(rate(10, 10), rate(0, 10)) == pytest.approx(3.4, abs=0.1)
    assert frontier.d_prime(None, rate(0, 10)) is None
