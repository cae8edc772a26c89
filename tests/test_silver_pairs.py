"""Silver pairs: what is chosen is right, what is rejected is wrong, and nothing is lost unseen."""

import json
import re
import sys

import pytest
import yaml

from medalign import silver_pairs, sources
from medalign.artifacts import StepError, read_jsonl
from medalign.silver_answers import asked, cuts
from medalign.silver_choices import argued
from medalign.silver_pairs import build, settings
from medalign.sources import DATA_DIR

QUIZ = {"question": "question", "options": "options", "answer": "answer", "rationale": "why"}
ABSTRACT = {
    "id": "id", "question": "question", "context": "context", "answer": "decision",
    "rationale": "conclusion",
}  # fmt: skip
ASKED = {"question": "question", "answer": "answer"}
LEAKED = {
    "question": "A farmer with a swollen knee has urate crystals in the joint fluid. "
    "Which disease does the patient have?",
    "options": {"A": "Gout", "B": "Lupus", "C": "Psoriasis", "D": "Scurvy"},
    "answer": "A",
    "why": "",
}
QUESTIONS = [
    {
        "question": "A woman is tired and cold, and her thyroid hormone is low. "
        "Which medicine does the patient need?",
        "options": {"A": "Levothyroxine", "B": "Methimazole", "C": "Iodine", "D": "Metoprolol"},
        "answer": "A",
        "why": "Levothyroxine replaces the hormone that the gland no longer makes.",
    },
    {
        "question": "A man has crushing chest pain and a raised troponin in his blood. "
        "What is the most likely diagnosis?",
        "options": {"A": "Pericarditis", "B": "Heartburn", "C": "Heart attack", "D": "Pleurisy"},
        "answer": "C",
        "why": "Pericarditis would hurt less when sitting up; a heart attack raises troponin.",
    },
    {
        "question": "Which of these drugs can harm the kidneys of a patient with dehydration?",
        "options": {"A": "Ibuprofen", "B": "Gentamicin", "C": "Lisinopril", "D": "All of these"},
        "answer": "D",
        "why": "",
    },
    {
        "question": "An x-ray of the chest is shown. Which lobe of the lung has the infection?",
        "options": {"A": "Upper", "B": "Middle", "C": "Lower", "D": "None"},
        "answer": "A",
        "why": "",
    },
    {
        "question": "A child wheezes at night and after running. Which treatment comes first?",
        "options": {
            "A": "Inhaled albuterol",
            "B": "A long stay in the mountains with rest and a diet and daily cold baths and "
            "herbal tea before breakfast for as long as the whole family can bear it",
            "C": "Surgery",
            "D": "Penicillin",
        },
        "answer": "A",
        "why": "",
    },
    LEAKED,
]
ABSTRACTS = [
    {
        "id": n,
        "question": question,
        "context": {"contexts": [context]},
        "decision": decision,
        "conclusion": "The treatment was of use to the patients of this study.",
    }
    for n, (question, context, decision) in enumerate(
        [
            (
                "Does walking lower blood pressure in older patients?",
                "In a trial of 90 patients pressure fell by 8 mm Hg with daily walks.",
                "yes",
            ),
            (
                "Do antibiotics shorten a common cold in children?",
                "Of 200 children with colds, symptoms lasted as long with the drug as without.",
                "no",
            ),
            (
                "Is a warm room of help against chronic pain after surgery?",
                "Half of the 30 patients had less pain, the other half had more of it.",
                "maybe",
            ),
        ]
    )
]
TOPICS = {
    "shingles": (
        "Shingles begins with burning pain on one side of the chest, and a few days later a band "
        "of small blisters appears there.",
        "Shingles is caused by the chickenpox virus, which sleeps in nerve roots for decades and "
        "wakes when immunity wanes.",
        "Shingles is treated with an antiviral tablet such as acyclovir, started within three days "
        "of the rash, and with pain medicine.",
    ),
    "anemia": (
        "Anemia makes a person pale, tired and short of breath on stairs, and the heart may beat "
        "faster than it used to.",
        "Anemia comes from lost blood, too little iron in the food, or a bone marrow that makes "
        "too few red cells.",
        "Anemia from lack of iron is treated with iron tablets for several months, and with a "
        "transfusion where it is severe.",
    ),
    "glaucoma": (
        "Glaucoma takes sight from the edges first, so that many patients notice nothing until "
        "they bump into door frames.",
        "Glaucoma arises when fluid drains badly from the eye and pressure inside it slowly "
        "damages the optic nerve.",
        "Glaucoma is treated with eye drops that lower pressure, with a laser, or by an operation "
        "that opens a new drain.",
    ),
}
FORMS = ("What are the symptoms of {}?", "What causes {}?", "What are the treatments for {}?")
ANSWERS = [
    {"question": form.format(topic), "answer": told}
    for topic, answers in TOPICS.items()
    for form, told in zip(FORMS, answers, strict=True)
]


def dataset(local: str, columns: dict, task: str | None = None, **more) -> dict:
    facts = {"hub": None, "local": local, "license": "cc0-1.0", "columns": columns}
    return facts | ({"terms": "open", "task": task} if task else {}) | more


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Sources and an evaluation of this file's rows."""
    files = {
        "quiz.jsonl": [*QUESTIONS, QUESTIONS[0]],
        "abstracts.jsonl": ABSTRACTS,
        "answers.jsonl": [*ANSWERS, {"question": "What helps?"}],
        "shared.jsonl": [{**row, "question": row["question"] + " Tell me."} for row in ANSWERS],
        "test.jsonl": [LEAKED],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    declared = {
        "sources": {
            "quiz": dataset("quiz.jsonl", QUIZ, "multiple_choice"),
            "abstracts": dataset("abstracts.jsonl", ABSTRACT, "abstract_question"),
            "answers": dataset("answers.jsonl", ASKED, "question_answer"),
            "shared": dataset("shared.jsonl", ASKED, "question_answer", terms="share-alike"),
        },
        "evaluations": {
            "exam": dataset("test.jsonl", {"question": "question", "options": "options"})
        },
    }
    file = tmp_path / "sources.yaml"
    file.write_text(yaml.safe_dump(declared))
    load = sources.load
    monkeypatch.setattr(sources, "load", lambda path=file: load(path))
    monkeypatch.setattr(sources, "SOURCES", file)
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    raw = yaml.safe_load(silver_pairs.SILVER.read_text())
    raw["rows"] = dict.fromkeys(declared["sources"], 100)
    silver = tmp_path / "silver.yaml"
    silver.write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(silver_pairs, "SILVER", silver)
    return tmp_path


def of(pairs: list[dict], kind: str) -> list[dict]:
    return [pair for pair in pairs if pair["kind"] == kind]


def test_a_right_option_stands_against_each_wrong_one_in_one_form(place):
    pairs, _ = build(settings(silver_pairs.SILVER), set())
    first = [pair for pair in of(pairs, "multiple_choice") if pair["id"].startswith("quiz:0:")]
    assert [pair["id"][-1] for pair in first] == ["B", "C", "D"]
    for pair, wrong in zip(first, ("Methimazole", "Iodine", "Metoprolol"), strict=True):
        assert "A: Levothyroxine" in pair["chosen"] and wrong not in pair["chosen"]
        assert f"{pair['id'][-1]}: {wrong}" in pair["rejected"].replace("D is the right one", "D")
        assert "Levothyroxine" not in pair["rejected"]
    keys = "id category kind source place prompt chosen rejected license".split()
    assert list(first[0]) == keys
    assert first[0]["place"] == "quiz.jsonl:1" and first[0]["license"] == "cc0-1.0"


def test_a_rationale_is_swapped_or_left_out_on_both_sides(place):
    pairs, _ = build(settings(silver_pairs.SILVER), set())
    by_id = {pair["id"]: pair for pair in pairs}
    assert by_id["quiz:0:B"]["chosen"].endswith(QUESTIONS[0]["why"])
    assert "Methimazole replaces the hormone" in by_id["quiz:0:B"]["rejected"]
    assert "the hormone" not in by_id["quiz:0:C"]["chosen"] + by_id["quiz:0:C"]["rejected"]
    for letter in "ABD":  # the rationale names another option
        pair = by_id[f"quiz:1:{letter}"]
        assert "troponin" not in pair["chosen"] + pair["rejected"]


@pytest.mark.parametrize(
    ("rationale", "right", "wrong"),
    [
        ("The answer is B, since aspirin thins the blood.", "aspirin", "codeine"),
        ("Aspirin thins the blood; codeine does not.", "aspirin", "codeine"),
        ("Aspirin thins the blood, as paracetamol does not.", "aspirin", "codeine"),
        ("An aspirin a day thins the blood.", "aspirin", "codeine"),
        ("Blood tests show low platelets.", "platelets", "iron"),
        ("It thins the blood.", "aspirin", "indomethacin"),
        ("Low-dose aspirin thins the blood. Low doses suffice.", "low-dose aspirin", "codeine"),
    ],
)
def test_a_rationale_that_would_not_read_right_is_not_swapped(rationale, right, wrong):
    assert argued(rationale, right, wrong, ["paracetamol"]) is None


def test_questions_without_one_clear_answer_are_dropped_and_counted(place):
    pairs, funnel = build(settings(silver_pairs.SILVER), set())
    assert not {pair["id"][:6] for pair in pairs} & {"quiz:2", "quiz:3"}
    dropped = funnel["quiz"]["dropped"]
    assert dropped["right option stands for others"] == 1
    assert dropped["needs what is not in the text"] == 1
    assert funnel["quiz"]["pairs_dropped"] == {"lengths differ": 1}


def test_no_row_of_an_evaluation_survives(place):
    pairs, funnel = build(settings(silver_pairs.SILVER), set())
    assert "urate crystals" not in json.dumps(pairs)
    assert funnel["quiz"]["dropped"]["holds an evaluation row"] == 1
    assert funnel["quiz"]["held"] == {"exam: test.jsonl:1": 1}


def test_a_prompt_stands_once(place):
    pairs, funnel = build(settings(silver_pairs.SILVER), {"share-alike"})
    assert funnel["quiz"]["dropped"]["repeated prompt"] == 1
    assert funnel["shared"]["dropped"]["near duplicate"] == len(ANSWERS)
    assert len({(pair["prompt"], pair["rejected"]) for pair in pairs}) == len(pairs)


def test_decisions_are_opposite_and_the_conclusion_is_on_neither_side(place):
    pairs, _ = build(settings(silver_pairs.SILVER), set())
    sides = []
    for pair in of(pairs, "abstract_question"):
        assert "of use" not in pair["chosen"] + pair["rejected"]
        both = [re.findall(r"\b(yes|no|maybe)\b", pair[key].lower()) for key in pair][-3:-1]
        sides.append((both[0][0], both[1][0]))
        assert pair["chosen"].lower().replace(both[0][0], both[1][0]) == pair["rejected"].lower()
    assert sides[:2] == [("yes", "no"), ("no", "yes")]
    assert sides[2] in {("maybe", "yes"), ("maybe", "no")}


def test_a_rejected_answer_is_the_answer_to_another_question(place):
    pairs, funnel = build(settings(silver_pairs.SILVER), set())
    told = {row["question"]: row["answer"] for row in ANSWERS}
    pairs = of(pairs, "question_answer")
    assert len(pairs) >= 6
    for pair in pairs:
        assert pair["chosen"] == told[pair["prompt"]]
        other = ANSWERS[int(pair["id"].split(":")[-1])]
        assert pair["rejected"] == other["answer"] != pair["chosen"]
        (aspect, subject), (aspect2, subject2) = asked(pair["prompt"]), asked(other["question"])
        assert (aspect == aspect2) != (subject == subject2)
    assert funnel["answers"]["dropped"]["missing column"] == 1


@pytest.mark.parametrize(
    ("question", "aspect", "subject"),
    [
        ("What is (are) Gout?", "meaning", {"gout"}),
        ("What is the outlook for Gout?", "outlook", {"gout"}),
        ("What to expect if I have Gout (Outlook/Prognosis)?", "outlook", {"gout"}),
        ("When to seek urgent medical care when I have Gout?", "care", {"gout"}),
        ("Who is at highest risk for Gout?", "cause", {"gout"}),
    ],
)
def test_what_is_asked_of_what(question, aspect, subject):
    assert asked(question) == (aspect, subject)


def test_answers_are_cut_at_a_sentence_and_without_boilerplate():
    rules = settings().question_answer.model_copy(update={"answer_words": (5, 12)})
    answer = (
        "Overview\nGout is a disease of the joints, e.g. The big toe. Watch the video on gout. "
        "It comes from urate (a salt). A third sentence is too long for what is wanted here."
    )
    assert cuts(answer, rules) == ["Gout is a disease of the joints, e.g. The big toe."]
    listed = cuts("The signs of gout are these:\n- pain\n- heat\nIt ends soon.", rules)
    assert listed[-1] == "The signs of gout are these:\n- pain\n- heat"
    for told, why in [
        ("Signs are\nStomach pain Vomiting blood Weakness", "list without marks"),
        ("- Gout hurts a lot, every day.\n- It ends.", "begins with a list"),
        ("Too short.", "no answer of the wanted length"),
    ]:
        with pytest.raises(silver_pairs.Unusable, match=why):
            cuts(told, rules)


def test_ratios_hold_and_the_funnel_adds_up(place):
    s = settings(silver_pairs.SILVER)
    pairs, funnel = build(s, {"share-alike"})
    for pair in pairs:
        ratio = len(pair["chosen"].split()) / len(pair["rejected"].split())
        assert s.ratio[0] <= ratio <= s.ratio[1]
    for name, line in funnel.items():
        lines = (place / f"{name}.jsonl").read_text().splitlines()
        assert line["rows"] == len(lines) == line["used"] + sum(line["dropped"].values())
        assert line["tried"] == line["pairs"] + sum(line["pairs_dropped"].values())
        assert line["pairs"] == sum(pair["source"] == name for pair in pairs)
    assert len({pair["id"] for pair in pairs}) == len(pairs)


def test_the_same_seed_gives_the_same_pairs(place):
    s = settings(silver_pairs.SILVER)
    one = s.multiple_choice.model_copy(update={"wrong_options": 1})
    s = s.model_copy(update={"multiple_choice": one})
    first, other = build(s, set()), build(s.model_copy(update={"seed": 1}), set())
    assert first == build(s, set())
    assert first[0] != other[0]
    assert sum(pair["id"].startswith("quiz:0:") for pair in first[0]) == 1


def test_fewer_rows_are_drawn_where_fewer_are_wanted(place):
    s = settings(silver_pairs.SILVER)
    _, funnel = build(s.model_copy(update={"rows": {"quiz": 2}}), set())
    assert list(funnel) == ["quiz"]
    assert funnel["quiz"]["dropped"]["not drawn"] == len(QUESTIONS) - 1


def test_terms_other_than_open_need_to_be_accepted(place):
    s = settings(silver_pairs.SILVER)
    assert "shared" not in build(s, set())[1]
    assert "shared" in build(s, {"share-alike"})[1]
    assert "make mix ACCEPT=share-alike" in silver_pairs.choose_sources(s, set())[1]["shared"]
    with pytest.raises(StepError, match="free: no source has such terms"):
        build(s, {"free"})


def test_evaluations_that_cannot_be_read_stop_it(place):
    (place / "test.jsonl").unlink()
    with pytest.raises(StepError, match=r"exam: no test\.jsonl"):
        build(settings(silver_pairs.SILVER), set())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sead": 1}, "sead: Extra inputs"),
        ({"seed": "x"}, "seed: "),
        ({"multiple_choice": {"frames": ["{letter}"]}}, "multiple_choice.frames.*letter, option"),
        ({"question_answer": {"skip": ["("]}}, "question_answer.skip.0: .*regular expression"),
        ({"question_answer": {"alike": {"any": 0.5}}}, "question_answer.alike.any"),
        ({"ratio": [0.7]}, "ratio"),
    ],
)
def test_a_bad_setting_is_named(tmp_path, change, said):
    raw = yaml.safe_load(silver_pairs.SILVER.read_text())
    for key, value in change.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    (tmp_path / "silver.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(StepError, match=said):
        settings(tmp_path / "silver.yaml")


def test_an_unknown_source_in_the_settings_is_named(place):
    s = settings(silver_pairs.SILVER).model_copy(update={"rows": {"nowhere": 5}})
    with pytest.raises(StepError, match="nowhere: no such source"):
        build(s, set())


def test_the_settings_name_sources_that_are_declared():
    silver_pairs.choose_sources(settings(), set())


def run(monkeypatch, out, *more: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["silver_pairs.py", "--out", str(out), *more])
    silver_pairs.main()
    return json.loads(out.with_suffix(".manifest.json").read_text())


def test_rows_and_their_manifest_are_written(place, monkeypatch, capsys):
    out = place / "out/silver.jsonl"
    facts = run(monkeypatch, out, "--accept", "share-alike")
    rows = read_jsonl(out)
    assert facts["rows"] == len(rows) == sum(line["pairs"] for line in facts["funnel"].values())
    assert facts["accept"] == ["share-alike"] and "quiz" in facts["inputs"]
    assert set(facts["mean_ratio"]) == {row["kind"] for row in rows}
    assert sorted(p.name for p in out.parent.iterdir()) == ["silver.jsonl", "silver.manifest.json"]
    said = capsys.readouterr().out
    assert "Silver pairs" in said and f"{len(rows):,} silver pairs" in said


def test_without_sources_an_empty_file_says_so(place, monkeypatch, capsys):
    for name in ("quiz", "abstracts", "answers"):
        (place / f"{name}.jsonl").unlink()
    out = place / "out/silver.jsonl"
    facts = run(monkeypatch, out)
    assert out.read_bytes() == b"" and facts["rows"] == 0 and facts["funnel"] == {}
    assert "no quiz.jsonl" in facts["left_out"]["quiz"]
    said = capsys.readouterr().out.strip()
    assert said.startswith("no source can be used here") and "\n" not in said
