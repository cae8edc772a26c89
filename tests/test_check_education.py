"""The education set: the real one has no fault, and every way to break it is seen.

The last part looks for leakage between train and test on its own, without the code of
check_education: the two must not share a mistake.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medalign import build_sft, check_education
from medalign.artifacts import ROOT, StepError
from medalign.check_education import check_all
from medalign.sections import SECTIONS, parse, render

FOLDERS = {"education": ROOT / "data/education", "phrasing": ROOT / "evals/education_format"}
FILES = {
    "train": "education/train.jsonl",
    "test": "education/test.jsonl",
    "wordings": "education/wordings.jsonl",
    "tune": "phrasing/phrasing_tune.jsonl",
    "frozen": "phrasing/phrasing_frozen.jsonl",
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class Copy:
    """A copy of the real data, to be broken. Lines count from 1, as in the faults."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, source in FOLDERS.items():
            (root / name).mkdir()
            for file in source.glob("*.jsonl"):
                shutil.copy(file, root / name)

    def path(self, name: str) -> Path:
        return self.root / FILES[name]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read(self.path(name))

    def row(self, name: str, line: int) -> dict[str, Any]:
        return self.rows(name)[line - 1]

    def line(self, name: str, key: str, value: str) -> int:
        """The first line whose `key` is `value`."""
        return next(n for n, row in enumerate(self.rows(name), 1) if row[key] == value)

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.path(name).write_text(text, encoding="utf-8")

    def change(self, name: str, line: int, **fields: Any) -> None:
        """Change fields of one row; None takes the field away."""
        rows = self.rows(name)
        row = rows[line - 1] | fields
        rows[line - 1] = {key: value for key, value in row.items() if value is not None}
        self.write(name, rows)

    def change_bytes(self, name: str, line: int, raw: bytes) -> None:
        lines = self.path(name).read_bytes().split(b"\n")
        lines[line - 1] = raw
        self.path(name).write_bytes(b"\n".join(lines))

    def faults(self) -> list[str]:
        """The faults, the folders left out: `train.jsonl:3: answer: …`."""
        found = check_all(self.root / "education", self.root / "phrasing")
        return [re.sub(r"^\S*/", "", fault) for fault in found]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def remembered() -> Iterator[None]:
    """Nearly the same data is checked again and again: remember what is slow and pure."""
    alike = check_education.process.cdist

    @functools.cache
    def matrix(texts: tuple[str, ...], others: tuple[str, ...], **options: Any) -> Any:
        return alike(texts, others, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_education, "words", functools.cache(check_education.words))
        patch.setattr(check_education, "skeleton", functools.cache(check_education.skeleton))
        patch.setattr(
            check_education.process,
            "cdist",
            lambda texts, others, **options: matrix(tuple(texts), tuple(others), **options),
        )
        yield


def assert_fault(faults: list[str], start: str) -> None:
    """One of the faults begins with `start`: file:line: subject."""
    assert any(fault.startswith(start) for fault in faults), f"no {start!r} among {faults}"


def padded(answer: str, extra: str) -> str:
    """The answer with words added to its Explanation."""
    bodies = [parse(answer).sections[name] for name in SECTIONS[:3]]
    return render(bodies[0], f"{bodies[1]} {extra}", bodies[2])


# ---- the real data


def test_the_real_data_has_no_fault() -> None:
    assert check_all() == []


def test_a_copy_of_the_real_data_has_no_fault(copy: Copy) -> None:
    assert copy.faults() == []


# ---- rows that do not fit the schema


@pytest.mark.parametrize("name", FILES)
def test_a_line_that_is_no_json_is_named(copy: Copy, name: str) -> None:
    copy.change_bytes(name, 3, b'{"id": "mt-003", ')
    assert_fault(copy.faults(), f"{copy.path(name).name}:3: not a line of JSON in UTF-8")


def test_a_line_that_is_no_utf8_is_named(copy: Copy) -> None:
    raw = copy.path("test").read_bytes().split(b"\n")[4]
    copy.change_bytes("test", 5, raw.replace(b"**Definition**: ", b"**Definition**: \xff", 1))
    assert_fault(copy.faults(), "test.jsonl:5: not a line of JSON in UTF-8")


def test_a_line_that_is_no_object_is_named(copy: Copy) -> None:
    copy.change_bytes("train", 3, b'["mt-003"]')
    assert_fault(copy.faults(), "train.jsonl:3: row: ")


@pytest.mark.parametrize(
    ("name", "key"), [("train", "reference"), ("wordings", "wordings"), ("tune", "seen")]
)
def test_a_missing_field_is_named(copy: Copy, name: str, key: str) -> None:
    copy.change(name, 7, **{key: None})
    assert_fault(copy.faults(), f"{copy.path(name).name}:7: {key}: Field required")


@pytest.mark.parametrize("name", ["test", "wordings", "frozen"])
def test_an_extra_field_is_named(copy: Copy, name: str) -> None:
    copy.change(name, 8, remark="checked")
    assert_fault(copy.faults(), f"{copy.path(name).name}:8: remark: Extra inputs")


@pytest.mark.parametrize("name", ["train", "tune"])
def test_a_category_that_is_none_is_named(copy: Copy, name: str) -> None:
    copy.change(name, 9, category="surgery")
    assert_fault(copy.faults(), f"{copy.path(name).name}:9: category: Input should be")


@pytest.mark.parametrize("count", [0, 2, 7])
def test_too_few_or_too_many_key_facts_are_named(copy: Copy, count: int) -> None:
    copy.change("train", 4, key_facts=[copy.row("train", 4)["key_facts"][0]] * count)
    assert_fault(copy.faults(), "train.jsonl:4: key_facts: List should have at")


# ---- a row by itself


def test_an_answer_out_of_format_is_named_with_the_fault(copy: Copy) -> None:
    answer = copy.row("train", 10)["answer"]
    copy.change("train", 10, answer=answer.replace("**Explanation**:", "## Explanation"))
    faults = copy.faults()
    assert_fault(faults, "train.jsonl:10: answer: missing (Explanation)")
    assert_fault(faults, "train.jsonl:10: answer: text_outside")


def test_an_answer_with_another_disclaimer_is_named(copy: Copy) -> None:
    answer = copy.row("test", 10)["answer"]
    copy.change("test", 10, answer=answer.replace("educational information", "information"))
    (fault,) = copy.faults()
    assert fault.startswith("test.jsonl:10: answer: note_without_disclaimer (Note)")


def test_an_answer_too_short_is_named_with_its_length(copy: Copy) -> None:
    answer = render("A short one.", "It is short.", "Too short.")
    copy.change("train", 11, answer=answer)
    start = f"train.jsonl:11: answer: {len(answer.split())} words, not 90 to 220"
    assert_fault(copy.faults(), start)


def test_an_answer_too_long_is_named_with_its_length(copy: Copy) -> None:
    answer = padded(copy.row("test", 11)["answer"], "and so on " * 50)
    copy.change("test", 11, answer=answer)
    (fault,) = copy.faults()
    assert fault.startswith(f"test.jsonl:11: answer: {len(answer.split())} words, not 90 to 220")


@pytest.mark.parametrize("key", ["prompt", "answer"])
def test_white_space_at_an_end_is_named(copy: Copy, key: str) -> None:
    copy.change("train", 12, **{key: copy.row("train", 12)[key] + "\n"})
    assert copy.faults() == ["train.jsonl:12: prompt or answer: white space at an end"]


def test_a_key_fact_that_is_not_in_the_answer_is_named(copy: Copy) -> None:
    fact = "Penguins breed on Antarctic coasts."
    copy.change("train", 13, key_facts=[*copy.row("train", 13)["key_facts"][:3], fact])
    assert copy.faults() == [f"train.jsonl:13: key_facts: not in the answer: {fact!r}"]


@pytest.mark.parametrize(("split", "have", "want"), [("train", 14, 15), ("test", 6, 7)])
def test_a_row_removed_is_seen_in_the_counts(copy: Copy, split: str, have: int, want: int) -> None:
    copy.write(split, copy.rows(split)[:-1])
    start = f"{split}.jsonl:0: diagnostic_tests: {have} rows, {want} promised"
    assert_fault(copy.faults(), start)


# ---- repetitions


@pytest.mark.parametrize("name", FILES)
def test_an_id_used_twice_is_named_with_both_lines(copy: Copy, name: str) -> None:
    copy.change(name, 2, id=copy.row(name, 1)["id"])
    file = copy.path(name).name
    assert_fault(copy.faults(), f"{file}:2: id also at {file}:1")


def test_a_term_used_twice_is_named_with_both_lines(copy: Copy) -> None:
    copy.change("train", 5, term=copy.row("train", 4)["term"])
    assert_fault(copy.faults(), "train.jsonl:5: term also at train.jsonl:4")


def test_an_answer_nearly_that_of_another_is_named(copy: Copy) -> None:
    bodies = [parse(copy.row("train", 20)["answer"]).sections[name] for name in SECTIONS[:3]]
    changed = (re.sub(r"(?<=\w)(?=[.!?](\s|$))", " indeed", body) for body in bodies)
    copy.change("train", 21, answer=render(*changed))
    faults = copy.faults()
    assert_fault(faults, f"train.jsonl:21: answer: nearly that of {copy.row('train', 20)['id']}")
    assert not [fault for fault in faults if "sentence also" in fault]


def test_a_sentence_shared_between_train_and_test_is_named(copy: Copy) -> None:
    body = parse(copy.row("train", 22)["answer"]).sections["Explanation"]
    sentence = re.split(r"(?<=[.])\s", body)[0]
    copy.change("test", 22, answer=padded(copy.row("test", 22)["answer"], sentence))
    (fault,) = copy.faults()
    assert fault.startswith("test.jsonl:22: sentence also at train.jsonl:22")


# ---- wordings


@pytest.mark.parametrize("change", [str, str.upper, lambda prompt: prompt.strip("?.") + " !"])
def test_a_test_prompt_among_the_wordings_is_named(copy: Copy, change) -> None:
    wordings = [*copy.row("wordings", 6)["wordings"], change(copy.row("test", 6)["prompt"])]
    copy.change("wordings", 6, wordings=wordings)
    assert_fault(copy.faults(), "test.jsonl:6: prompt also at wordings.jsonl:6")


def test_a_wording_that_names_a_test_term_is_named(copy: Copy) -> None:
    term = copy.row("test", 6)["term"]
    copy.change("wordings", 6, wordings=[f"is that like {term.upper()}, or what is it then"])
    (fault,) = copy.faults()
    assert fault.startswith("wordings.jsonl:6: prompt: names the test term")


@pytest.mark.parametrize("name", ["tune", "frozen"])
def test_a_phrasing_among_the_wordings_is_named(copy: Copy, name: str) -> None:
    wordings = [*copy.row("wordings", 6)["wordings"], copy.row(name, 6)["prompt"]]
    copy.change("wordings", 6, wordings=wordings)
    assert_fault(copy.faults(), f"phrasing_{name}.jsonl:6: prompt also at wordings.jsonl:6")


def test_a_wording_given_twice_is_named(copy: Copy) -> None:
    wordings = copy.row("wordings", 6)["wordings"]
    copy.change("wordings", 6, wordings=[*wordings, wordings[0] + "!"])
    (fault,) = copy.faults()
    assert fault.startswith("wordings.jsonl:6: prompt also at wordings.jsonl:6")


@pytest.mark.parametrize("id_", ["mt-999", "mt-051"])  # no row at all, a test row
def test_wordings_for_an_id_that_is_not_trained_are_named(copy: Copy, id_: str) -> None:
    copy.change("wordings", 6, id=id_)
    assert_fault(copy.faults(), f"wordings.jsonl:6: id: {id_!r} is no training row")


# ---- the phrasing sets


@pytest.mark.parametrize("line", range(1, 150, 40))
def test_a_frozen_phrasing_worded_as_a_training_wording_is_named(copy: Copy, line: int) -> None:
    """A wording of training, asked about another term, is no fresh wording."""
    training = copy.row("train", line)
    frozen = copy.row("frozen", 1)["term"]
    asked = re.compile(rf"\b{re.escape(training['term'])}\b", re.IGNORECASE)
    wording = next(w for w in copy.row("wordings", line)["wordings"] if asked.search(w))
    copy.change("frozen", 1, prompt=asked.sub(frozen, wording))
    (fault,) = copy.faults()
    assert fault.startswith("phrasing_frozen.jsonl:1: prompt: worded as ")


@pytest.mark.parametrize("name", ["tune", "frozen"])
@pytest.mark.parametrize("seen", [True, False])
def test_a_wrong_seen_flag_is_named(copy: Copy, name: str, seen: bool) -> None:
    line = next(n for n, row in enumerate(copy.rows(name), 1) if row["seen"] == seen)
    copy.change(name, line, seen=not seen)
    term = copy.row(name, line)["term"]
    start = f"phrasing_{name}.jsonl:{line}: seen: {not seen}, but {term!r} in train: {seen}"
    assert copy.faults() == [start]


@pytest.mark.parametrize("name", ["tune", "frozen"])
def test_a_phrasing_about_a_test_term_is_named(copy: Copy, name: str) -> None:
    copy.change(name, 3, term="fistulas", seen=False)
    assert_fault(copy.faults(), f"phrasing_{name}.jsonl:3: term: 'fistulas' is a test term")


# ---- a term of one split in the other, under another form


@pytest.mark.parametrize("form", ["Fistula", "Fistulas", "FISTULA", "fistula "])
def test_a_test_term_trained_under_another_spelling_is_named(copy: Copy, form: str) -> None:
    copy.change("train", 30, term=form)
    line = copy.line("test", "term", "Fistula")
    assert_fault(copy.faults(), f"test.jsonl:{line}: term also at train.jsonl:30")


# What each abbreviation stands for, or is called in plain words, as its Definition says.
OTHER_NAMES = {
    "train": {
        "BP": "Blood pressure",
        "HR": "Heart rate",
        "NPO": "Nothing by mouth",
        "PRN": "As needed",
        "BID": "Twice a day",
        "TID": "Three times a day",
        "STAT": "Immediately",
        "IV": "Intravenous",
        "IM": "Intramuscular",
        "PO": "By mouth",
        "SpO2": "Peripheral oxygen saturation",
        "COPD": "Chronic obstructive pulmonary disease",
        "CHF": "Congestive heart failure",
        "CAD": "Coronary artery disease",
        "DVT": "Deep vein thrombosis",
        "PE": "Pulmonary embolism",
        "UTI": "Urinary tract infection",
        "GERD": "Gastroesophageal reflux disease",
        "T2DM": "Type 2 diabetes mellitus",
        "CKD": "Chronic kidney disease",
        "AKI": "Acute kidney injury",
        "TIA": "Transient ischemic attack",
        "CVA": "Cerebrovascular accident",
        "ICU": "Intensive care unit",
        "DNR": "Do not resuscitate",
        "SOB": "Shortness of breath",
        "ADL": "Activity of daily living",
        "ROM": "Range of motion",
        "BMI": "Body mass index",
        "NSAID": "Nonsteroidal anti-inflammatory drug",
        "SSRI": "Selective serotonin reuptake inhibitor",
        "ACEi": "Angiotensin-converting enzyme inhibitor",
        "RA": "Rheumatoid arthritis",
        "MS": "Multiple sclerosis",
        "HIV": "Human immunodeficiency virus",
        "TB": "Tuberculosis",
        "GCS": "Glasgow Coma Scale",
        "eGFR": "Estimated glomerular filtration rate",
        "LOC": "Level of consciousness",
        "PEG": "Percutaneous endoscopic gastrostomy",
        "Electrocardiogram": "ECG",
        "Glycated hemoglobin test": "HbA1c",
        "Complete blood count": "CBC",
        "Magnetic resonance imaging": "MRI",
        "Computed tomography": "CT",
        "Arterial blood gas": "ABG",
    },
    "test": {
        "QID": "Four times a day",
        "SC": "Subcutaneous",
        "NKDA": "No known drug allergies",
        "TPN": "Total parenteral nutrition",
        "PCA": "Patient-controlled analgesia",
        "BPH": "Benign prostatic hyperplasia",
        "IBS": "Irritable bowel syndrome",
        "PTSD": "Post-traumatic stress disorder",
        "ARDS": "Acute respiratory distress syndrome",
        "DKA": "Diabetic ketoacidosis",
        "PID": "Pelvic inflammatory disease",
        "SLE": "Systemic lupus erythematosus",
        "CPAP": "Continuous positive airway pressure",
        "OTC": "Over the counter",
        "NGT": "Nasogastric tube",
        "HRT": "Hormone replacement therapy",
        "Electroencephalogram": "EEG",
        "Thyroid-stimulating hormone test": "TSH test",
    },
}
OTHER_SPLIT = {"train": "test", "test": "train"}


@pytest.fixture(scope="module")
def leaked(tmp_path_factory, remembered: None) -> dict[str, tuple[Copy, list[str]]]:
    """Split → the data with its terms put into the other split by another name; the faults."""
    result = {}
    for split, other in OTHER_SPLIT.items():
        copy = Copy(tmp_path_factory.mktemp(f"leaked_{split}"))
        rows = copy.rows(other)
        for row, name in zip(rows, OTHER_NAMES[split].values(), strict=False):
            row["term"] = name
        copy.write(other, rows)
        result[split] = copy, copy.faults()
    return result


def test_every_abbreviation_has_another_name_here() -> None:
    for split, names in OTHER_NAMES.items():
        rows = read(FOLDERS["education"] / f"{split}.jsonl")
        abbreviations = {row["term"] for row in rows if row["category"] == "abbreviations"}
        assert abbreviations <= set(names)
        assert set(names) <= {row["term"] for row in rows}


@pytest.mark.parametrize(
    ("split", "term"), [(split, term) for split in OTHER_NAMES for term in OTHER_NAMES[split]]
)
def test_a_term_in_the_other_split_by_another_name_is_named(leaked, split: str, term: str) -> None:
    copy, faults = leaked[split]
    own = f"{split}.jsonl:{copy.line(split, 'term', term)}"
    other = OTHER_SPLIT[split]
    there = f"{other}.jsonl:{copy.line(other, 'term', OTHER_NAMES[split][term])}"
    named = [f for f in faults if f"{own}:" in f and f"{there}:" in f and ": term" in f]
    assert named, f"{OTHER_NAMES[split][term]!r} at {there} is {term!r} at {own}"


# ---- the command


def test_the_command_lists_the_faults_and_fails(monkeypatch, capsys) -> None:
    monkeypatch.setattr(check_education, "check_all", lambda: ["a.jsonl:1: x", "a.jsonl:2: y"])
    with pytest.raises(StepError, match="2 faults in the education set"):
        check_education.main()
    assert capsys.readouterr().out == "a.jsonl:1: x\na.jsonl:2: y\n"


def test_the_command_says_that_all_is_well(monkeypatch, capsys) -> None:
    monkeypatch.setattr(check_education, "check_all", list)
    check_education.main()
    assert capsys.readouterr().out == "education set: 200 rows, no fault\n"


def test_a_file_that_is_not_there_is_named(copy: Copy) -> None:
    copy.path("frozen").unlink()
    with pytest.raises(StepError, match=r"phrasing_frozen\.jsonl does not exist"):
        copy.faults()


# ---- leakage, looked for independently of check_education

# Test and train answers may share fixed phrases and values, the longest being the 11 words
# "about 2 to 3 mg dL 34 to 51 μmol L" (bilirubin, dt-022 and mt-011): no run of 12.
SHARED_RUN = 12


def plain(text: str) -> str:
    """Case-folded, punctuation dropped, one space between words."""
    return " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())


def runs(answer: str) -> set[tuple[str, ...]]:
    """All runs of SHARED_RUN words of an answer, its Note left out."""
    found = re.findall(r"\w+", answer.split("**Note**")[0].casefold())
    return {tuple(found[i : i + SHARED_RUN]) for i in range(len(found) - SHARED_RUN + 1)}


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return read(FOLDERS["education"] / "train.jsonl")


@pytest.fixture(scope="module")
def test_rows() -> list[dict[str, Any]]:
    return read(FOLDERS["education"] / "test.jsonl")


@pytest.fixture(scope="module")
def asked_in_training(train, tmp_path_factory) -> set[str]:
    """Every prompt that training sees: of the sources and of the rows built from them."""
    out = tmp_path_factory.mktemp("leakage") / "education"
    build_sft.build(out)
    prompts = [row["prompt"] for row in train]
    for row in read(FOLDERS["education"] / "wordings.jsonl"):
        prompts += row["wordings"]
    for row in read(out / "train.jsonl"):
        prompts += [m["content"] for m in row["messages"] if m["role"] == "user"]
    return {plain(prompt) for prompt in prompts}


@pytest.mark.parametrize("name", ["test", "tune", "frozen"])
def test_no_prompt_of_an_evaluation_is_trained_on(asked_in_training: set[str], name: str) -> None:
    folder, file = FILES[name].split("/")
    prompts = [plain(row["prompt"]) for row in read(FOLDERS[folder] / file)]
    assert len(prompts) >= 50
    together = f" {' | '.join(sorted(asked_in_training))} "
    assert [prompt for prompt in prompts if f" {prompt} " in together] == []


def test_no_test_term_is_a_train_term(train, test_rows) -> None:
    trained = {plain(row["term"]) for row in train}
    assert [row["term"] for row in test_rows if plain(row["term"]) in trained] == []


def test_no_row_is_in_both_splits(train, test_rows) -> None:
    for key in ("id", "prompt", "answer"):
        assert {row[key] for row in train} & {row[key] for row in test_rows} == set()


def test_no_long_run_of_words_of_a_test_answer_is_trained_on(train, test_rows) -> None:
    trained: set[tuple[str, ...]] = set().union(*(runs(row["answer"]) for row in train))
    shared = {row["id"]: runs(row["answer"]) & trained for row in test_rows}
    assert {id_: [" ".join(run) for run in found] for id_, found in shared.items() if found} == {}


def test_unseen_phrasings_are_about_terms_that_are_in_no_split(train, test_rows) -> None:
    trained = {plain(row["term"]) for row in train}
    known = trained | {plain(row["term"]) for row in test_rows}
    for name in ("tune", "frozen"):
        for row in read(FOLDERS["phrasing"] / f"phrasing_{name}.jsonl"):
            assert plain(row["term"]) in trained if row["seen"] else plain(row["term"]) not in known
