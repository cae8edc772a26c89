"""Paired comparison of suite results, and the page made of them."""

import json
import re

import pytest

from medalign import compare_results, publish_results, suite_report
from medalign.artifacts import StepError
from medalign.compare_results import compare, compare_all
from medalign.evaluate import SUITES
from medalign.measures import choice, refusals

PROTOCOL = {
    "asked": "loglikelihood of the options", "prompt": "plain", "system_prompt": None,
    "tasks": {"t": 1.0}, "shots": {"t": 0},
}  # fmt: skip


def result(folder, name, suite, items, protocol=PROTOCOL):
    """A suite result in `folder`/`name`, as evaluate writes it."""
    out = folder / name
    out.mkdir(exist_ok=True)
    content = {
        "kind": "suite result", "suite": suite, "protocol": protocol, "limit": None,
        "n": len(items), "scores": SUITES[suite].figures(items), "items": items,
        "model": {"model": name}, "wall_seconds": 1.0,
    }  # fmt: skip
    (out / f"{suite}.json").write_text(json.dumps(content))
    return out


def asked(right, n=100):
    """n questions, `right` of them (numbers) answered right."""
    return [
        {
            "id": f"q{i}", "subject": "s", "options": ["w", "x", "y", "z"], "gold": i % 4,
            "chosen": i % 4 if i in right else (i + 1) % 4, "prompt": f"question <{i}>",
            "probabilities": [0.25 + 0.5 * (j == i % 4) for j in range(4)],
            "loglikelihoods": [0.0] * 4,
        }
        for i in range(n)
    ]  # fmt: skip


def test_a_gain_is_told_from_chance(tmp_path):
    a = result(tmp_path, "a", "medqa", asked(range(40)))
    better = result(tmp_path, "b", "medqa", asked(range(70)))
    found = compare("medqa", a, better)
    assert found["verdict"] == "better"
    assert (found["gained"], found["lost"]) == (30, 0)
    assert found["difference"] == pytest.approx(0.3)
    assert 0.2 < found["low"] < 0.3 < found["high"] < 0.4
    assert compare("medqa", better, a)["verdict"] == "worse"
    moved = result(tmp_path, "c", "medqa", asked(range(5, 46)))
    assert compare("medqa", a, moved)["verdict"] == "not distinguishable"


def test_mcnemar_is_the_exact_one(tmp_path):
    a = result(tmp_path, "a", "medqa", asked(range(40)))
    b = result(tmp_path, "b", "medqa", asked(range(3, 50)))
    # 10 gained, 3 lost: twice the binomial tail of at most 3 in 13
    assert compare("medqa", a, b)["mcnemar_p"] == pytest.approx(0.09229, abs=1e-5)


def test_what_was_asked_differently_is_not_compared(tmp_path):
    a = result(tmp_path, "a", "medqa", asked(range(40)))
    fewer = result(tmp_path, "b", "medqa", asked(range(40), 90))
    with pytest.raises(StepError, match="differ in 10 items"):
        compare("medqa", a, fewer)
    chat = result(tmp_path, "c", "medqa", asked(range(40)), {**PROTOCOL, "prompt": "chat"})
    with pytest.raises(StepError, match="asked differently: prompt"):
        compare("medqa", a, chat)
    with pytest.raises(StepError, match="make eval MODEL"):
        compare("pubmedqa", a, a)
    (tmp_path / "d").mkdir()
    with pytest.raises(StepError, match="no suite in common"):
        compare_all(a, tmp_path / "d")


def turns(held):
    """20 conversations of 4 turns, those numbered in `held` kept whole."""
    return [
        {
            "id": f"mt-{c}/{t}", "subject": "pressure", "turn": t, "expect": "refuse",
            "prompt": "p", "held": c in held, "stance": None, "consistent": None, "answer": "a",
        }
        for c in range(20)
        for t in range(4)
    ]  # fmt: skip


def test_turns_of_one_conversation_are_drawn_together(tmp_path):
    a = result(tmp_path, "a", "multi_turn", turns(range(6)))
    b = result(tmp_path, "b", "multi_turn", turns(range(10)))
    found = compare("multi_turn", a, b)
    assert found["n"] == 80
    assert found["difference"] == pytest.approx(0.2)
    # of 80 single turns the interval would be about 0.11 to 0.29
    assert found["high"] - found["low"] > 0.3
    assert "mcnemar_p" not in found


def run(*arguments):
    from conftest import script

    return script("compare_results.py", *arguments)


def test_the_gate_fails_until_a_drop_is_accepted_by_name(tmp_path):
    a = result(tmp_path, "a", "medqa", asked(range(70)))
    b = result(tmp_path, "b", "medqa", asked(range(40)))
    assert run(a, b).returncode == 0
    failed = run(a, b, "--gate")
    assert failed.returncode == 1
    assert "worse on medqa" in failed.stderr
    accepted = run(a, b, "--gate", "--accept", "medqa", "--out", tmp_path / "c.json")
    assert accepted.returncode == 0
    assert json.loads((tmp_path / "c.json").read_text())["suites"]["medqa"]["verdict"] == "worse"
    assert "no suite nonsense" in run(a, b, "--accept", "nonsense").stderr


def test_the_page_shows_stages_changes_and_worst_answers(tmp_path):
    a = result(tmp_path, "a", "medqa", asked(range(70)))
    b = result(tmp_path, "b", "medqa", asked(range(40)))
    out = tmp_path / "report.html"
    red = suite_report.build({"base": a, "tuned": b}, out, set())
    page = out.read_text()
    assert red == ["medqa"]
    assert "Worse, and not accepted by name" in page
    assert 'class="worse">worse' in page
    assert "question &lt;40&gt;" in page  # escaped, and the first of the surest wrong ones
    assert 'href="b/medqa.json"' in page
    assert re.search(r'aria-label="medqa, accuracy: base 0.7, tuned 0.4"', page)
    assert "Calibration, tuned" in page
    assert suite_report.build({"base": a, "tuned": b}, out, {"medqa"}) == []
    assert "Drops accepted by name: medqa" in out.read_text()


def test_refusals_are_shown_by_set(tmp_path):
    items = [
        {
            "id": f"{name}{i}", "subject": name, "category": "c", "prompt": "p", "answer": "x",
            "gold": int(name == "harmful"), "chosen": int(i < k),
        }
        for name, k in (("harmful", 15), ("xstest_safe", 2), ("benign_medical", 0))
        for i in range(20)
    ]  # fmt: skip
    scores = refusals(items)
    assert scores["harmful_refused"]["k"] == 15
    assert scores["xstest_safe_refused"]["k"] == 2
    assert scores["balanced_accuracy"]["value"] == pytest.approx((15 / 20 + 38 / 40) / 2)
    folder = result(tmp_path, "a", "refusal", items)
    out = tmp_path / "report.html"
    suite_report.build({"only": folder}, out, set())
    assert "harmful refused" in out.read_text()


def test_the_table_of_readme_comes_from_the_results(tmp_path):
    a = result(tmp_path, "a", "medqa", asked(range(70)))
    b = result(tmp_path, "b", "medqa", asked(range(40)))
    for folder in (a, b):
        path = folder / "medqa.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"made": "2026-11-22"}))
    published = publish_results.suites({"base": a, "SFT": b})
    table = publish_results.suites_markdown(published)
    assert "| suite | figure | base | SFT |" in table
    assert "[medqa](evals/medqa) | accuracy | 70.0% (70/100;" in table
    path.write_text(json.dumps(json.loads(path.read_text()) | {"limit": 5}))
    with pytest.raises(StepError, match="only the first 5"):
        publish_results.suites({"SFT": b})


def test_no_results_are_told(tmp_path):
    with pytest.raises(StepError, match="no stage has a suite result"):
        suite_report.build({"a": tmp_path}, tmp_path / "r.html", set())
    with pytest.raises(StepError, match="LABEL=FOLDER"):
        suite_report.stage("nothing")


def test_a_headline_exists_for_every_suite():
    assert suite_report.HEADLINES.keys() == suite_report.KEPT_APART.keys() == SUITES.keys()
    scores = choice(asked(range(50)))
    assert scores["calibration"]["expected_calibration_error"]["value"] == pytest.approx(0.25)
    assert compare_results.good("medqa", asked([0])[0]) == 1.0
