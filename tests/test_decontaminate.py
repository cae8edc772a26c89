"""Hidden evaluation rows are found in every disguise; other rows of the same field are not."""

import json
import random

import pytest

from medalign.artifacts import ROOT, StepError, read_jsonl
from medalign.convert_rows import turn
from medalign.decontaminate import Evaluations, read_items
from medalign.measure_mix import replaced
from medalign.mix_stages import settings
from medalign.sources import Dataset, own_evaluations

EXAM = [
    ("A 63-year-old man with long-standing heavy smoking coughs up blood and "
     "has a serum calcium of 13 mg/dL. "
     "Which tumor most likely explains both findings?",
     ["Squamous cell carcinoma of the lung", "Small cell carcinoma",
      "Bronchial carcinoid", "Mesothelioma"]),
    ("Which of the following is true about gout?",
     ["Urate crystals bend light positively", "Urate crystals are needle shaped", 
      "It spares the big toe", "Allopurinol ends an attack"]),
    ("A newborn turns blue while feeding and pink while crying. Which malformation is the cause?",
     ["Choanal atresia", "Tracheomalacia", "Cleft palate", "Laryngomalacia"]),
    ("The nerve most at risk in a fracture of the surgical neck of the humerus is the",
     ["Axillary nerve", "Radial nerve", "Ulnar nerve", "Median nerve"]),
    ("Which vitamin deficiency gives a megaloblastic anemia with loss of vibration sense?",
     ["Vitamin B12", "Folate", "Vitamin B6", "Vitamin C"]),
]  # fmt: skip
HOSTS = [row["answer"] for row in read_jsonl(ROOT / "data/education/train.jsonl")]
WORDS = sorted({w for text in HOSTS for w in text.split() if w.isalpha()})


@pytest.fixture(scope="module")
def exam(tmp_path_factory) -> Dataset:
    file = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    file.write_text("\n".join(json.dumps({"q": q, "o": o}) for q, o in EXAM))
    return Dataset(
        name="exam", path=str(file), license="mit", columns={"question": "q", "options": "o"}
    )


@pytest.fixture(scope="module")
def found(exam) -> Evaluations:
    s = settings().decontamination
    items = read_items([exam, *own_evaluations()])
    return Evaluations(*items, s.coverage, s.least_information, s.similarity)


def place(found: Evaluations, question: str, answer: str = HOSTS[0]) -> str | None:
    (hit,) = found.hits([{"messages": turn(question, answer)}])
    return hit and hit.place


def written(question: str, options: list[str]) -> str:
    return "\n".join(
        [question, *(f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=True))]
    )


@pytest.mark.parametrize("number", range(len(EXAM)))
@pytest.mark.parametrize(
    "disguise", ["verbatim", "lower", "upper", "shuffled", "edited", "inside", "in the answer"]
)
def test_a_hidden_question_is_found(found, number, disguise):
    rng = random.Random(number)
    question, options = EXAM[number]
    text = written(question, options)
    if disguise == "shuffled":
        text = written(question, rng.sample(options, 4))
    if disguise == "edited":
        text = replaced(text, 0.1, WORDS, rng)
    text = {"lower": text.lower(), "upper": text.upper()}.get(disguise, text)
    if disguise == "inside":
        text = f"{HOSTS[3]}\n{text}\n{HOSTS[4]}"
    asked, answer = (
        ("Tell me.", f"{HOSTS[1]} {text}") if disguise == "in the answer" else (text, HOSTS[0])
    )
    assert (place(found, asked, answer) or "").startswith(f"exam: exam.jsonl:{number + 1}")


def test_a_long_question_without_its_options_is_found(found):
    assert place(found, EXAM[0][0]) is not None


@pytest.mark.parametrize(
    "question",
    [
        "Which of the following is true about goiter?\nA. It is always cancer\n"
        "B. Iodine lack can cause it\nC. It spares the thyroid\nD. Surgery always cures it",
        "A 63-year-old man with long-standing heavy smoking has a cough. Which test is next?",
        "Which vitamin deficiency gives night blindness?\n"
        "A. Vitamin A\nB. Folate\nC. Vitamin K\nD. Vitamin C",
        "What is gout?",
        "The nerve most at risk in a fracture of the shaft of the humerus is the\n"
        "A. Tibial nerve\nB. Femoral nerve\nC. Sural nerve\nD. Vagus nerve",
    ],
)
def test_another_question_of_the_same_field_is_not(found, question):
    assert place(found, question) is None


def test_every_prompt_of_the_education_test_is_found_verbatim_and_in_lower_case(found):
    rows = read_jsonl(ROOT / "data/education/test.jsonl")
    for row in rows:
        for prompt in (row["prompt"], row["prompt"].lower()):
            hit = place(found, prompt, HOSTS[0])
            assert hit is not None, prompt


def test_the_education_training_rows_are_clean(found):
    rows = read_jsonl(ROOT / "data/education/train.jsonl")
    hits = found.hits([{"messages": turn(r["prompt"], r["answer"])} for r in rows])
    assert sum(hit is not None for hit in hits) <= 0.01 * len(rows), [h for h in hits if h]


def test_what_is_written_for_the_mix_is_clean(found):
    for file in sorted((ROOT / "data/safety").glob("*.jsonl")):
        rows = read_jsonl(file)
        hits = [h for h in found.hits(rows) if h is not None]
        assert not hits, (file.name, hits)


def test_a_context_and_a_long_answer_are_kept_out_too(tmp_path):
    context, answer = HOSTS[5], HOSTS[6]
    file = tmp_path / "abstracts.jsonl"
    file.write_text(json.dumps({"q": "Does it help?", "c": {"contexts": [context]}, "a": answer}))
    columns = {"question": "q", "context": "c", "answer": "a"}
    abstracts = Dataset(name="abstracts", path=str(file), license="mit", columns=columns)
    s = settings().decontamination
    items = read_items([abstracts, *own_evaluations()])
    found = Evaluations(*items, s.coverage, s.least_information, s.similarity)
    assert place(found, f"Read this. {context}", "Well.") == "abstracts: abstracts.jsonl:1"
    assert place(found, "Say it.", answer) == "abstracts: abstracts.jsonl:1"
    assert place(found, "Does it help?", "Well.") == "abstracts: abstracts.jsonl:1"
    assert place(found, HOSTS[9], HOSTS[8]) is None


def test_an_evaluation_that_cannot_be_read_whole_stops(tmp_path):
    file = tmp_path / "broken.jsonl"
    file.write_text('{"q": "Fine?"}\n{"q": ')
    broken = Dataset(name="broken", path=str(file), license="mit", columns={"question": "q"})
    with pytest.raises(StepError, match=r"broken: broken\.jsonl:2: not JSON"):
        read_items([broken])
    file.write_text('{"x": "Fine?"}')
    with pytest.raises(StepError, match=r"broken\.jsonl:1: no column 'q'"):
        read_items([broken])


def test_a_near_miss_does_not_hide_a_hit(exam):
    """With a margin for the report, what is found without it is found all the same."""
    s = settings().decontamination
    items = read_items([exam, *own_evaluations()])
    plain = Evaluations(*items, s.coverage, s.least_information, s.similarity)
    with_margin = Evaluations(*items, s.coverage, s.least_information, s.similarity, 0.1)
    rows = []
    for item in items[0]:
        parts = item.question.replace("? ", "?|").replace(". ", ".|").split("|")
        rows.append({"messages": turn(" ".join(reversed(parts)), HOSTS[0])})
    found = plain.hits(rows)
    told = with_margin.hits(rows)
    assert sum(hit is not None for hit in found) > 100
    missed = [f for f, t in zip(found, told, strict=True) if f and not (t and t.over)]
    assert missed == []


def test_short_questions_and_later_turns_are_looked_at(tmp_path):
    file = tmp_path / "short.jsonl"
    file.write_text(json.dumps({"q": "OSA = ?"}))
    short = Dataset(name="short", path=str(file), license="mit", columns={"question": "q"})
    found = Evaluations(*read_items([short]), 0.7, 18, 0.9)
    later = {"messages": [*turn("Hello.", "Hello."), *turn("osa =?", "Sleep apnea.")]}
    (hit,) = found.hits([later])
    assert hit is not None and hit.method == "the question itself"


def test_a_column_that_is_declared_and_not_there_stops(tmp_path):
    file = tmp_path / "abstracts.jsonl"
    file.write_text(json.dumps({"q": "Does it help?"}))
    columns = {"question": "q", "context": "c"}
    broken = Dataset(name="abstracts", path=str(file), license="mit", columns=columns)
    with pytest.raises(StepError, match="no column 'c'"):
        read_items([broken])
