"""Every suite against models whose scores are known beforehand: constant, random, oracle."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from medalign import benchmarks, dialogues, measures
from medalign.artifacts import ROOT, StepError
from medalign.evaluate import BENCHMARKS, SUITES, evaluate, place_of
from medalign.models import Model
from medalign.sections import render
from medalign.sources import DATA_DIR

HERE = os.environ.get(DATA_DIR)
OUTSIDE = {*BENCHMARKS, "refusal"}  # suites whose rows, or most of them, are not in this repository
PUBLIC = pytest.mark.skipif(not HERE, reason=f"{DATA_DIR} names no folder with the public sets")
FORM = render("It is a thing.", "It works like this.", "It matters.")
REFUSAL = "I can't help with that."
HELP = "Here is what you can do."


class Scripted(LM):
    """Answers by rule; sees the document, which no honest model does."""

    def likelihood(self, request) -> float:
        raise NotImplementedError

    def written(self, request) -> str:
        raise NotImplementedError

    def loglikelihood(self, requests):
        return [(self.likelihood(r), False) for r in requests]

    def generate_until(self, requests):
        return [self.written(r) for r in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return json.dumps(chat_history)

    tokenizer_name = "scripted"


class Constant(Scripted):
    """Always the first option, always a refusal."""

    def likelihood(self, request):
        return -float(request.idx)

    def written(self, request):
        return "A" if "options" in request.doc else REFUSAL


class AlwaysUnsafe(Constant):
    """Always the second option: every plan is unsafe."""

    def likelihood(self, request):
        return -float(request.idx != 1)


class Random(Scripted):
    """By the hash of what is asked."""

    def likelihood(self, request):
        return hashlib.sha256("".join(request.args).encode()).digest()[0] / 256

    def written(self, request):
        return REFUSAL if hashlib.sha256(request.args[0].encode()).digest()[0] % 2 else HELP


class Oracle(Scripted):
    """Knows the right answer."""

    def __init__(self):
        super().__init__()
        self.turns = {turn.id: turn for c in dialogues.conversations() for turn in c.turns}

    def likelihood(self, request):
        return -float(request.idx != request.doc["gold"])

    def written(self, request):
        doc = request.doc
        if "options" in doc:
            letters = doc["options"][0].lower() not in ("yes", "safe")
            return "ABCDE"[doc["gold"]] if letters else doc["options"][doc["gold"]]
        if "key_facts" in doc:
            return doc["answer"] or FORM
        if "subject" in doc:
            return REFUSAL if doc["subject"] == "harmful" else "I am sorry you feel this way."
        turn = self.turns[doc["id"]]
        return {"format": FORM, "refuse": REFUSAL, "fact": turn.example}.get(turn.expect, HELP)


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=str(ROOT / "evals"), include_defaults=False)


@pytest.fixture(scope="module")
def run(manager, tmp_path_factory):
    def asked(kind: type[Scripted], suite: str, likelihoods: bool = True):
        model = Model("scripted", kind(), {"model": kind.__name__, "sha256": None}, likelihoods)
        out = tmp_path_factory.mktemp(suite)
        return evaluate(model, suite, out, manager, None)

    return asked


def suites(*names: str, more: tuple[pytest.MarkDecorator, ...] = ()):
    return [pytest.param(n, marks=(PUBLIC, *more) if n in OUTSIDE else ()) for n in names]


CHOICES = (*BENCHMARKS, "medication_safety")


@pytest.mark.parametrize("suite", suites(*CHOICES))
def test_a_constant_answer_has_its_share_and_chance(run, suite):
    result = run(Constant, suite)
    gold = [item["gold"] for item in result["items"]]
    scores = result["scores"]
    labels = len(set(gold))
    assert scores["accuracy"]["k"] == gold.count(0)
    assert scores["accuracy"]["n"] == len(gold)
    assert scores["balanced_accuracy"]["value"] == pytest.approx(1 / labels, abs=1e-4)
    assert result["n"] == {
        "medqa": 1273, "medmcqa": 4183, "pubmedqa": 500, "mmlu_medical": 1089,
        "medication_safety": 240,
    }[suite]  # fmt: skip


@pytest.mark.parametrize("suite", suites(*CHOICES, more=(pytest.mark.slow,)))
def test_a_random_answer_is_chance(run, suite):
    scores = run(Random, suite)["scores"]
    chance = {"pubmedqa": 1 / 3, "medication_safety": 1 / 2}.get(suite, 1 / 4)
    assert abs(scores["balanced_accuracy"]["value"] - chance) < 0.06
    if suite != "pubmedqa":  # whose labels are not of one size
        assert scores["accuracy"]["low"] < chance < scores["accuracy"]["high"]


@pytest.mark.parametrize("likelihoods", [True, False])
@pytest.mark.parametrize("suite", suites(*CHOICES, more=(pytest.mark.slow,)))
def test_the_oracle_is_right(run, suite, likelihoods):
    scores = run(Oracle, suite, likelihoods)["scores"]
    assert scores["accuracy"]["rate"] == 1.0
    assert scores["balanced_accuracy"]["value"] == 1.0
    if suite == "medication_safety":
        assert scores["f1"]["value"] == 1.0
    else:
        assert scores["macro_f1"]["value"] == 1.0


def test_calling_every_plan_unsafe_wins_nothing(run):
    scores = run(AlwaysUnsafe, "medication_safety")["scores"]
    assert scores["share_unsafe"]["rate"] == 1.0
    assert scores["recall"]["rate"] == 1.0
    assert scores["balanced_accuracy"]["value"] == 0.5
    assert scores["auroc"]["value"] == 0.5


@PUBLIC
def test_refusing_everything_wins_nothing(run):
    scores = run(Constant, "refusal")["scores"]
    assert scores["harmful_refused"] | {"low": 0, "high": 0} == {
        "k": 225, "n": 225, "rate": 1.0, "low": 0, "high": 0,
    }  # fmt: skip
    assert scores["xstest_safe_refused"]["rate"] == 1.0
    assert scores["benign_medical_refused"]["rate"] == 1.0
    assert scores["balanced_accuracy"]["value"] == 0.5


@PUBLIC
def test_the_oracle_refuses_what_it_should(run):
    scores = run(Oracle, "refusal")["scores"]
    assert scores["balanced_accuracy"]["value"] == 1.0
    assert scores["xstest_safe_refused"]["rate"] == 0.0


@PUBLIC
def test_refusing_by_chance_is_chance(run):
    value = run(Random, "refusal")["scores"]["balanced_accuracy"]["value"]
    assert abs(value - 0.5) < 0.08


def test_the_form_of_oracle_constant_and_random(run):
    assert run(Oracle, "education_format")["scores"]["test_strict"]["rate"] == 1.0
    assert run(Oracle, "education_format")["scores"]["fact_recall"]["value"] > 0.9
    for kind in (Constant, Random):
        scores = run(kind, "education_format")["scores"]
        assert scores["test_strict"]["k"] == scores["frozen_strict"]["k"] == 0
        assert scores["fact_recall"]["value"] < 0.1


def test_empty_form_is_told_from_substance(run):
    class Hollow(Oracle):
        def written(self, request):
            return FORM

    scores = run(Hollow, "education_format")["scores"]
    assert scores["test_strict"]["rate"] == 1.0
    assert scores["fact_recall"]["value"] < 0.1


def test_several_turns_of_oracle_and_constant(run):
    assert run(Oracle, "multi_turn")["scores"]["held"]["rate"] == 1.0
    assert run(Oracle, "multi_turn")["scores"]["consistent"]["rate"] == 1.0
    result = run(Constant, "multi_turn")
    checked = [i for i in result["items"] if i["held"] is not None]
    wanted = sum(i["expect"] == "refuse" for i in checked)
    assert result["scores"]["held"]["k"] == wanted < len(checked) / 2
    assert result["scores"]["consistent"]["n"] == 0  # it never took a side


def test_empathy_tells_kind_words_from_none(run):
    kind = run(Oracle, "empathy")["scores"]
    cold = run(Constant, "empathy")["scores"]
    assert kind["empathy_proxy"]["low"] > cold["empathy_proxy"]["high"]
    assert cold["refused"]["rate"] == 1.0


def test_a_result_says_what_was_asked_and_how(run, tmp_path):
    result = run(Oracle, "medication_safety")
    assert result["protocol"]["asked"] == "loglikelihood of the options"
    assert result["protocol"]["tasks"] == {"medalign_medication_safety": 1.0}
    assert result["versions"]["lm_eval"]
    chat = run(Oracle, "medication_safety", likelihoods=False)
    assert chat["protocol"]["prompt"] == "chat template and system prompt"
    assert len({i["prompt_sha256"] for i in result["items"]}) == result["n"]


@PUBLIC
def test_mmlu_has_its_own_five_shots(run, monkeypatch):
    seen = []

    class Looking(Oracle):
        def likelihood(self, request):
            seen.append((request.doc["subject"], request.args[0]))
            return super().likelihood(request)

    run(Looking, "mmlu_medical")
    for subject, prompt in seen:
        assert prompt.startswith("The following are multiple choice questions (with answers) about")
        assert subject.replace("_", " ") in prompt.splitlines()[0]
        assert prompt.count("\nAnswer:") == 6
        assert prompt.count("\nA. ") == 6


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", 1), ("b", 1), ("(C)", 2), ("D.", 3), ("The answer is B.", 1), ("Answer: C", 2),
        ("Option A is right", 0), ("A woman of 40", -1), ("I think so", -1), ("", -1),
        ("B. Measles", 1), ("**B**", 1), ("E", -1),
    ],
)  # fmt: skip
def test_a_letter_is_read_from_an_answer(answer, chosen):
    doc = {"options": ["w", "x", "y", "z"], "gold": 1}
    assert benchmarks.lettered(doc, [answer])["chosen"] == chosen


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("unsafe", 1), ("Safe.", 0), ("It is unsafe because", 1), ("This is safe", 0),
        ("The plan is unsafe", 1), ("Not safe", -1), ("", -1), ("Unsafely", -1),
    ],
)  # fmt: skip
def test_a_word_is_read_from_an_answer(answer, chosen):
    doc = {"options": ["safe", "unsafe"], "gold": 1}
    assert benchmarks.worded(doc, [answer])["chosen"] == chosen


def test_an_evaluation_that_is_not_here_is_told(monkeypatch):
    monkeypatch.delenv(DATA_DIR, raising=False)
    with pytest.raises(StepError, match=r"medqa-test.*MEDALIGN_DATA_DIR"):
        benchmarks.questions("medqa-test")


def test_f1_and_balanced_accuracy_are_sklearns():
    import numpy as np
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    draw = np.random.default_rng(1)
    gold, chosen = draw.integers(0, 4, 300), draw.integers(0, 4, 300)
    table = measures.counts(gold, chosen, 4)
    assert measures.macro_f1(table) == pytest.approx(f1_score(gold, chosen, average="macro"))
    assert measures.balanced_accuracy(table) == pytest.approx(balanced_accuracy_score(gold, chosen))
    two, lean = draw.integers(0, 2, 300), draw.normal(size=300).round(1)
    assert measures.auroc(lean, two) == pytest.approx(roc_auc_score(two, lean))


def test_a_bootstrap_interval_covers_a_mean():
    figure = measures.mean([0.0] * 50 + [1.0] * 50)
    assert figure["value"] == 0.5
    assert 0.38 < figure["low"] < 0.43 < 0.57 < figure["high"] < 0.62
    assert measures.mean([]) == {"n": 0, "value": None, "low": None, "high": None}


def test_every_suite_has_its_folder_and_readme():
    for name in SUITES:
        folder = ROOT / "evals" / name
        text = (folder / "README.md").read_text(encoding="utf-8")
        for heading in ("Protocol", "Source", "Licence"):
            assert heading.lower() in text.lower(), f"{folder}: {heading}"


def test_every_task_has_a_version():
    for path in Path(ROOT / "evals").rglob("*.yaml"):
        assert "version:" in path.read_text() or "include: _mmlu" in path.read_text(), path


def test_a_look_at_the_first_rows_does_not_write_over_a_whole_result(tmp_path):
    (tmp_path / "merged").mkdir()
    assert place_of(str(tmp_path)) == tmp_path / "eval/suites/merged"
    assert place_of(str(tmp_path), 5) == tmp_path / "eval/suites/merged/first-5"
