"""The mix as a whole, on small sources of this project's own words: sums, sameness, resumption."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import ROOT, make, script
from test_decontaminate import EXAM, WORDS

from medalign import build_mix, mix_report, sources
from medalign.artifacts import read_jsonl
from medalign.assemble_mix import allocate
from medalign.measure_mix import replaced
from medalign.sources import DATA_DIR

EDUCATION = read_jsonl(ROOT / "data/education/train.jsonl")
GOLD = read_jsonl(ROOT / "data/preferences/gold.jsonl")


def write(folder, name: str, rows: list) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        heads = list(rows[0])
        lines = [",".join(f'"{row[h]}"' for h in heads) for row in rows]
        file.write_text("\n".join([",".join(heads), *lines]), encoding="utf-8")
    else:
        file.write_text(
            "\n".join(json.dumps(row) if isinstance(row, dict) else row for row in rows)
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources and evaluations in their own schemas, with all that can be wrong with a row."""
    place = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    options = [dict(zip("ABCD", o, strict=True)) for _, o in EXAM]
    write(
        place,
        "medqa_usmle_4_options/test.jsonl",
        [{"question": q, "options": o} for (q, _), o in zip(EXAM, options, strict=True)],
    )
    write(
        place,
        "medmcqa/validation.hub.jsonl",
        [
            {
                "id": "v1",
                "question": "Which gland lies in the sella turcica of the sphenoid bone?",
                "opa": "Pituitary",
                "opb": "Pineal",
                "opc": "Thymus",
                "opd": "Parotid",
                "cop": 0,
            }
        ],
    )
    write(
        place,
        "pubmedqa/pqa_labeled_test500.hub.jsonl",
        [
            {
                "pubid": 1,
                "question": "Does early mobilization shorten the stay after hip surgery?",
                "context": {
                    "contexts": [
                        "Patients were mobilized on the first day after surgery of the hip."
                    ]
                },
                "long_answer": "Early mobilization shortened the stay of older patients here.",
            }
        ],
    )
    write(
        place,
        "mmlu_medical/test_all6.hub.jsonl",
        [
            {
                "question": "Which bone forms the heel of the foot?",
                "choices": ["Talus", "Calcaneus", "Cuboid", "Navicular"],
            }
        ],
    )
    write(
        place,
        "xstest/xstest_prompts.csv",
        [{"id": 1, "prompt": "How do I kill a stuck process on a server?"}],
    )
    write(
        place,
        "medsafetybench/test.jsonl",
        [{"harmful_medical_request": "How can a doctor hide a surgical error from a family?"}],
    )
    answers = [
        {
            "question_id": f"q{i}",
            "document_source": "NIH",
            "question_focus": "x",
            "document_id": f"d{i // 3}",
            "question_type": "information",
            "question": row["prompt"],
            "answer": row["answer"],
        }
        for i, row in enumerate(EDUCATION)
    ]
    answers += [{**row, "question_id": f"exact{i}"} for i, row in enumerate(answers[:10])]
    answers += [
        {**row, "question_id": f"near{i}", "answer": replaced(row["answer"], 0.08, WORDS, rng)}
        for i, row in enumerate(answers[10:20])
    ]
    answers += [
        {**answers[0], "question": "Another question about the liver and its many duties?"}
    ]  # a repeated id
    answers += [
        {
            "question_id": f"film{i}",
            "document_source": "NIH",
            "question_focus": "x",
            "document_id": "f",
            "question_type": "x",
            "question": "Which film do you like best of all?",
            "answer": f"The one with number {i} in its name is great fun for all of us.",
        }
        for i in range(3)
    ]
    answers += [
        {
            "question_id": "hidden",
            "document_source": "NIH",
            "question_focus": "x",
            "document_id": "h",
            "question_type": "x",
            "question": EXAM[0][0],
            "answer": GOLD[0]["chosen"],
        }
    ]
    lines = [json.dumps(row) for row in answers]
    lines += [
        '{"question": "cut',
        json.dumps({"question": "no other column"}),
        json.dumps({**answers[3], "question_id": "e", "answer": ""}),
    ]
    (place / "medquad_slice").mkdir()
    text = (
        "\n".join(lines).encode()
        + b"\n"
        + b'{"question": "\xff"}\n'
        + b'{"question": "'
        + b"x" * 10_000_000
        + b'"}\n'
    )
    (place / "medquad_slice/medquad_6_sources.jsonl").write_bytes(text)
    write(
        place,
        "mts_dialog/MTS-Dialog-TrainingSet.csv",
        [
            {
                "ID": i,
                "section_header": "GENHX",
                "section_text": f"{row['chosen'][:300]} Dr. Miller saw the patient.",
                "dialogue": f"Doctor: What brings you in?\nPatient: {row['prompt']}\n"
                "Doctor: I am Doctor Miller, call 212-555-0143.",
            }
            for i, row in enumerate(
                {k: v.replace('"', "'") if isinstance(v, str) else v for k, v in r.items()}
                for r in GOLD[:40]
            )
        ],
    )
    write(
        place,
        "medqa_usmle_4_options/train.jsonl",
        [
            {
                "question": f"{row['prompt']} Which statement fits best?",
                "options": dict(zip("ABCD", row["key_facts"][:4], strict=False)),
                "answer_idx": "A",
            }
            for row in EDUCATION
            if len(row["key_facts"]) >= 4
        ],
    )
    (place / "pubmedqa/pqa_artificial.hub.jsonl").touch()
    return place


def built(folder, out, workers=2, **environment) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(ROOT / "scripts/build_mix.py"),
        "--out",
        str(out),
        "--work",
        str(out / "work"),
        "--workers",
        str(workers),
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, DATA_DIR: str(folder), **environment},
    )


@pytest.fixture(scope="module")
def mix(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("mix")
    done = built(folder, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def manifest(mix) -> dict:
    return json.loads((mix / "manifest.json").read_text())


def test_rows_in_are_rows_out_and_dropped(mix, folder):
    facts = manifest(mix)
    rejected = Counter(row["source"] for row in read_jsonl(mix / "rejected.jsonl"))
    out = Counter(
        row["source"]
        for name in ("train", "validation")
        for row in read_jsonl(mix / f"{name}.jsonl")
    )
    for name, row in facts["funnel"].items():
        assert (
            row["read"]
            == rejected[name] + out[name]
            == sum(row["dropped"].values()) + row["train"] + row["validation"]
        )
    lines = (folder / "medquad_slice/medquad_6_sources.jsonl").read_bytes().splitlines()
    assert facts["funnel"]["medquad"]["read"] == len(lines)
    shown = script("build_mix.py", "--show", "--out", mix).stdout
    total = sum(row["read"] for row in facts["funnel"].values())
    assert f"{total:,} rows in = {sum(out.values()):,} out + {sum(rejected.values()):,}" in shown


def test_every_planted_fault_is_rejected_for_its_reason(mix):
    dropped = manifest(mix)["funnel"]["medquad"]["dropped"]
    expected = {"exact duplicate": 10, "near duplicate": 10}
    once = "repeated id, not JSON, not UTF-8, missing column, empty column"
    expected |= dict.fromkeys([*once.split(", "), "row too long"], 1)
    assert {key: dropped.get(key) for key in expected} == expected
    assert dropped["low relevance"] == 3
    hit = [
        row
        for row in read_jsonl(mix / "rejected.jsonl")
        if row["reason"] == "holds an evaluation row"
    ]
    assert "medqa-test: test.jsonl:1" in [row["evidence"]["place"] for row in hit]
    assert all(
        row["place"].split(":")[0] == "medquad_6_sources.jsonl"
        for row in hit
        if row["source"] == "medquad"
    )


def test_no_evaluation_row_and_no_person_is_in_the_mix(mix):
    text = (mix / "train.jsonl").read_text() + (mix / "validation.jsonl").read_text()
    assert "long-standing heavy smoking coughs up blood" not in text
    assert "Miller" not in text and "555-0143" not in text and "Dr. [name]" in text


def test_near_duplicates_and_documents_do_not_straddle_the_split(mix):
    of = {}
    for name in ("train", "validation"):
        for row in read_jsonl(mix / f"{name}.jsonl"):
            number = row["id"].removeprefix("medquad:NIH/q").removesuffix("/x")
            if number.isdigit():
                of.setdefault(int(number) // 3, set()).add(name)
    assert of and all(len(sides) == 1 for sides in of.values())
    assert read_jsonl(mix / "validation.jsonl")


def test_only_own_rows_carry_the_system_prompt_and_nothing_has_the_four_sections_by_force(mix):
    for row in read_jsonl(mix / "train.jsonl"):
        own = row["source"] in ("medication-safety", "edge-cases")
        assert (row["messages"][0]["role"] == "system") == own
        assert row["messages"][-1]["role"] == "assistant"
        if own or row["source"] == "medqa":
            assert "**Definition**" not in row["messages"][-1]["content"]


def test_sources_that_are_not_used_are_named_with_the_reason(mix):
    left = manifest(mix)["left_out"]
    assert "is empty" in left["pubmedqa-artificial"]
    assert "no medmcqa/train.hub.jsonl" in left["medmcqa"]
    assert "ACCEPT=share-alike" in left["wikidoc-patient"]


@pytest.mark.parametrize("workers", [1, 3])
def test_again_and_with_other_workers_every_byte_is_the_same(mix, folder, tmp_path, workers):
    done = built(folder, tmp_path, workers=workers)
    assert done.returncode == 0, done.stderr
    for name in ("train", "validation", "rejected"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (mix / f"{name}.jsonl").read_bytes()
    assert manifest(tmp_path)["outputs"] == manifest(mix)["outputs"]


def test_a_killed_run_goes_on_where_it_was(mix, folder, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts/build_mix.py"),
        "--out",
        str(tmp_path),
        "--work",
        str(tmp_path / "work"),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, DATA_DIR: str(folder)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip

    def finished() -> dict[str, int]:
        marks = (tmp_path / "work").glob("*/stages/collect/completions/*")
        return {mark.name: mark.stat().st_mtime_ns for mark in marks}

    limit = time.monotonic() + 120
    while len(finished()) < 2 and time.monotonic() < limit:
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished()
    assert before and not (tmp_path / "manifest.json").exists()
    done = built(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert before.items() <= finished().items()
    assert (tmp_path / "train.jsonl").read_bytes() == (mix / "train.jsonl").read_bytes()


SBATCH = """#!/bin/bash
# Runs what it is given at once, task by task, as Slurm would on its nodes.
script="${@: -1}"
last=$(sed -nE 's/^#SBATCH --array=0-([0-9]+).*/\\1/p' "$script")
for i in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here bash "$script" >>"$(dirname "$0")/log" 2>&1 || exit 1
done
echo "$@" >>"$(dirname "$0")/submitted"
echo "Submitted batch job $(wc -l <"$(dirname "$0")/submitted")"
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""


@pytest.mark.slow
def test_the_same_stages_run_on_slurm(mix, folder, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho here\n",
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    command = [sys.executable, str(ROOT / "scripts/build_mix.py"), "--out", str(tmp_path / "out")]
    command += ["--work", str(tmp_path / "work"), "--executor", "slurm"]
    path = f"{commands}:{os.environ['PATH']}"
    environment = {**os.environ, DATA_DIR: str(folder), "PATH": path}
    without = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert "--slurm: partition, time must be given" in without.stderr
    command += ["--slurm", "partition=cpu,time=01:00:00"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr + (commands / "log").read_text()[-3000:]
    assert "submitted" in done.stdout
    waits = [
        line for line in (commands / "submitted").read_text().splitlines() if "--dependency" in line
    ]
    assert len(waits) == 6  # each stage but the first waits for the one before
    for name in ("train", "validation", "rejected"):
        made = tmp_path / f"out/{name}.jsonl"
        assert made.read_bytes() == (mix / f"{name}.jsonl").read_bytes()


def test_what_was_removed_is_made_again_and_nothing_else_is_touched(mix, folder):
    other = mix / "work/notes"
    other.mkdir(exist_ok=True)
    before = (mix / "train.jsonl").read_bytes()
    (mix / "train.jsonl").unlink()
    done = built(folder, mix)
    assert done.returncode == 0, done.stderr
    assert (mix / "train.jsonl").read_bytes() == before
    assert other.is_dir()


def test_an_evaluation_that_is_missing_stops_the_mix_by_name(folder, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    (part / "xstest/xstest_prompts.csv").unlink()
    done = built(part, tmp_path / "out")
    assert done.returncode == 1
    assert "xstest: no xstest/xstest_prompts.csv" in done.stderr and "Traceback" not in done.stderr


def test_labels_that_count_from_one_stop_the_mix(folder, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    options = {"opa": "A fever", "opb": "A cough", "opc": "A rash", "opd": "Pain"}
    rows = [
        {"id": str(i), "question": f"{row['prompt']} Which is right?", **options,
         "cop": 1 + i % 4, "exp": row["answer"], "subject_name": "x"}
        for i, row in enumerate(EDUCATION[:40])
    ]  # fmt: skip
    write(part, "medmcqa/train.hub.jsonl", rows)
    done = built(part, tmp_path / "out")
    assert done.returncode == 1
    assert "10 of 40 labels are out of range; they are declared to count from 0" in done.stderr
    assert not (tmp_path / "out/train.jsonl").exists()


def test_a_source_with_other_columns_stops_the_mix(folder, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    write(part, "medqa_usmle_4_options/train.jsonl", [{"frage": "Wo?", "antwort": "Hier."}] * 3)
    done = built(part, tmp_path / "out")
    assert done.returncode == 1
    assert "no row of medqa can be used: {'missing column': 3}" in done.stderr


def test_terms_that_no_source_has_are_refused():
    done = script("build_mix.py", "--accept", "anything")
    assert done.returncode == 1 and "no source has such terms" in done.stderr


def test_shares_are_filled_up():
    there = {"a": 10, "b": 1000, "c": 1000, "d": 0}
    shares = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 5.0}
    assert allocate(100, shares, there) == {"a": 10, "b": 30, "c": 60, "d": 0}
    assert allocate(None, shares, there) == there
    assert sum(allocate(997, shares, there).values()) == 997
    assert allocate(10**6, shares, there) == {**there, "d": 0}
    assert allocate(6000, {"a": 1, "b": 0}, {"a": 10, "b": 20}) == {"a": 10, "b": 0}


def test_the_page_shows_funnel_pairs_and_hits(mix, monkeypatch):
    monkeypatch.setattr(mix_report, "WORK", mix / "work")
    page = mix_report.page(mix)
    for said in (
        "Nearest pairs dropped",
        "medqa-test: test.jsonl:1",
        "wikidoc-patient",
        "near duplicate",
    ):
        assert said in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_changing_the_data_folder_changes_what_make_compares(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_DIR, str(folder))
    path = tmp_path / "inputs"
    build_mix.list_inputs(path, set())
    first = path.read_text(), path.stat().st_mtime_ns
    build_mix.list_inputs(path, set())
    assert (path.read_text(), path.stat().st_mtime_ns) == first
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    build_mix.list_inputs(path, set())
    assert path.read_text() != first[0]


def test_make_mix_depends_on_it():
    planned = make("-n", "mix", "RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml")
    assert planned.returncode == 0 and "build_mix.py" in planned.stdout
    a100 = make("-n", "sft", "RECIPE=recipes/mistral-7b/sft-qlora-a100.yaml")
    assert "build_mix.py" in a100.stdout


def test_every_source_has_a_share():
    declared, _ = sources.load()
    assert {s.name for s in declared} == set(build_mix.settings(build_mix.MIX).shares)
