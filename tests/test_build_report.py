"""The report: what it refuses, that its figures are those of the JSON, that it stands alone."""

import html
import json
import re
import time
from pathlib import Path

import pytest

from medalign import build_report, evaluate_format
from medalign.artifacts import StepError, manifest, manifest_path, write_json
from medalign.gguf_model import Answer
from medalign.sections import render
from medalign.suite import kept

SETTINGS = {"system_prompt": "You teach.", "temperature": 0.0, "max_tokens": 512}
GOOD = render("A fever is heat.", "Heat & chills.", "Look for a cause.")
HOSTILE = '<script>alert("x")</script><img src="http://evil.example/x.png">\n\n  {{ 7 * 7 }}'
ROWS = {
    "test": [
        {"id": f"mt-{i}", "category": category, "term": "Fever", "prompt": f"{category} {i}?"}
        for i in range(4)
        for category in ("medical_terminology", "abbreviations")
    ],
    "frozen": [
        {"id": f"phr-{i}", "category": "anatomy_physiology", "term": "Heart", "seen": i < 2,
         "style": "situation", "prompt": f"heart <{i}>?"}
        for i in range(5)
    ],
}  # fmt: skip


def evaluation(model: Path, rows: dict, answer) -> dict:
    """What evaluate_format.py writes; `answer(row, n)` → (text, finish reason)."""
    items = []
    for name, of in rows.items():
        for n, row in enumerate(of):
            text, reason = answer(row, n)
            items.append(
                kept(name, row, Answer(text, reason, 60, 200, 2.5), evaluate_format.scored)
            )
    prompts = {name: model.parent / f"{name}.jsonl" for name in rows}
    return {
        **manifest("format evaluation", {"model": model, **prompts}, time.monotonic()),
        "settings": SETTINGS,
        "template_sha256": "ab" * 32,
        "scores": {s: evaluate_format.score([i for i in items if i["set"] == s]) for s in rows},
        "items": items,
    }


def make_run(
    run: Path, rows: dict, base_answer, tuned_answer, steps: list[dict], name: str = "medalign-135m"
) -> Path:
    """Write a run folder as the steps of the pipeline leave it."""
    for folder in ("adapter", "merged", "eval"):
        (run / folder).mkdir(parents=True)
    (run / "inputs").mkdir()
    for role in ("base.gguf", "recipe.yaml", *(f"{s}.jsonl" for s in rows)):
        (run / "inputs" / role).write_text(role)
    gguf = run / f"{name}-Q4_K_M.gguf"
    gguf.write_text("GGUF")
    recipe = {"recipe": run / "inputs/recipe.yaml"}

    def facts(kind: str, **known):
        return manifest(kind, known.pop("inputs", {}), time.monotonic(), **known)

    log = {"global_step": len(steps), "epoch": 1.0, "final_loss": steps[-1]["loss"]}
    log |= {"train_loss": 2.3456, "train_seconds": 1874.2, "tokens": 288123}
    log |= {"trainable_parameters": 9768960, "dtype": "bf16", "steps": steps}
    write_json(run / "adapter/training.json", log)
    size = 134_515_008 if name == "medalign-135m" else 7_248_023_552
    adapter = facts("adapter", inputs=recipe, name=name, parameters=size, seed=42, overrides={})
    write_json(run / "adapter/manifest.json", adapter)
    write_json(run / "merged/manifest.json", facts("merged", name=name))
    sizes = {"f16": 270_000_000, "Q4_K_M": 105_400_000}
    write_json(manifest_path(gguf), facts("gguf", quantization="Q4_K_M", bytes=sizes))
    (run / "Modelfile").write_text(f"FROM ./{gguf.name}\n")
    base = evaluation(run / "inputs/base.gguf", rows, base_answer)
    gguf_copy = run / "inputs" / gguf.name
    gguf_copy.write_text("GGUF")
    tuned = evaluation(gguf_copy, rows, tuned_answer)
    write_json(run / "eval/base.json", base)
    write_json(run / "eval/tuned.json", tuned)
    return run


def made(folder: Path) -> Path:
    """A small run: the base never keeps the format, the tuned model misses each first prompt."""
    steps = [
        {"loss": 3.0 - n / 10, "ppl": 20.0, "grad_norm": 0.3, "learning_rate": 3e-4, "step": n}
        for n in range(1, 9)
    ]

    def base(row, n):
        return HOSTILE, "length"

    def tuned(row, n):
        return (GOOD, "stop") if n else (HOSTILE, "stop")

    return make_run(folder, ROWS, base, tuned, steps)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made(tmp_path / "run")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A run with its report, to look at and leave as it is."""
    run = made(tmp_path_factory.mktemp("built") / "run")
    build_report.build(run)
    return run


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def words(page: str) -> str:
    """The page's text: no tags, one space between words."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("adapter/training.json", "make sft"),
        ("adapter/manifest.json", "make sft"),
        ("merged/manifest.json", "make merge"),
        ("medalign-135m-Q4_K_M.gguf", "make gguf"),
        ("medalign-135m-Q4_K_M.gguf.manifest.json", "make gguf"),
        ("Modelfile", "make gguf"),
        ("eval/base.json", "make eval"),
        ("eval/tuned.json", "make eval"),
    ],
)
def test_a_missing_input_is_named_with_its_target(run, file, target):
    (run / file).unlink()
    with pytest.raises(StepError, match=f"{re.escape(Path(file).suffix)}.*{target}"):
        build_report.build(run)
    assert not (run / "report.html").exists() and not (run / "manifest.json").exists()


def test_a_second_gguf_and_a_broken_file_are_refused(run):
    (run / "eval/base.json").write_text('{"cut')
    with pytest.raises(StepError, match=r"base\.json: not JSON .* make eval"):
        build_report.build(run)
    (run / "medalign-135m-Q8_0.gguf").write_text("GGUF")
    with pytest.raises(StepError, match=r"Q4_K_M\.gguf, medalign-135m-Q8_0\.gguf"):
        build_report.build(run)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("settings", lambda e: e["settings"].update(max_tokens=256)),
        ("template_sha256", lambda e: e.update(template_sha256="cd" * 32)),
        ("inputs", lambda e: e["inputs"]["frozen"].update(sha256="00")),
        ("prompts", lambda e: e["items"].pop()),
    ],
)
def test_unlike_measurements_are_refused(run, what, change):
    edit(run / "eval/base.json", change)
    with pytest.raises(StepError, match=f"differ in {what}.*make eval"):
        build_report.build(run)


def test_an_evaluation_of_another_model_or_without_a_set_is_refused(run):
    (run / "medalign-135m-Q4_K_M.gguf").write_text("GGUF of another training")
    with pytest.raises(StepError, match="measured another model than medalign-135m-Q4_K_M"):
        build_report.build(run)
    edit(run / "eval/tuned.json", lambda e: e["scores"].pop("frozen"))
    with pytest.raises(StepError, match="not asked: frozen"):
        build_report.build(run)


def test_the_manifest_holds_the_steps_and_compact_results(built):
    facts = json.loads((built / "manifest.json").read_text())
    assert facts["name"] == "medalign-135m"
    assert facts["recipe"]["path"] == "recipe.yaml"
    assert list(facts["steps"]) == [
        "adapter",
        "merged",
        "gguf",
        "base evaluation",
        "tuned evaluation",
    ]
    for step in facts["steps"].values():
        assert {"made", "wall_seconds", "versions", "hardware"} <= step.keys()
        assert not {"items", "scores"} & step.keys()
    scores = json.loads((built / "eval/tuned.json").read_text())["scores"]
    assert facts["results"]["tuned"]["frozen"]["strict"] == scores["frozen"]["strict"]
    assert facts["results"]["tuned"]["frozen"]["by_term_in_training"].keys() == {"seen", "unseen"}
    assert "by_style" not in facts["results"]["tuned"]["frozen"]


def test_the_page_says_the_figures_of_the_json(built):
    facts = json.loads((built / "manifest.json").read_text())
    text = words((built / "report.html").read_text())
    for of in facts["results"].values():
        for scores in of.values():
            groups = [scores["sections"], scores["by_category"]]
            groups.append(scores.get("by_term_in_training", {}))
            for r in (scores["strict"], *(rate for group in groups for rate in group.values())):
                bounds = f"{r['low']:.1%}–{r['high']:.1%}"
                assert re.search(rf"{r['rate']:.1%} {r['k']}/{r['n']} {bounds}", text), r
    strict = facts["results"]["tuned"]["test"]["strict"]
    assert (strict["k"], strict["n"]) == (7, 8)
    assert "8 test prompts 0.0% → 87.5%" in text
    assert "tuned 7/8 (52.9%–97.8%)" in text
    assert "Last loss 2.2000, mean 2.3456" in text
    assert "9,768,960 trainable parameters in bf16, 8 steps" in text
    assert "cut at the token limit (length) 8 0 5 0" in text
    assert "31 min 14 s" in text


def test_answers_are_shown_escaped_one_for_each_category(built):
    page = (built / "report.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert html.escape(HOSTILE, quote=False)[:30] in page.replace("&#34;", '"')
    assert "{{ 7 * 7 }}" in page
    assert page.count('<article class="answer base">') == 2
    assert "medical_terminology 0?" in page and "medical_terminology 1?" not in page
    assert "<strong>Definition</strong>: A fever is heat." in page
    assert "Heat &amp; chills." in page


def test_the_page_loads_nothing_and_every_id_is_unique(built):
    page = (built / "report.html").read_text()
    tags = re.findall(r"<[a-z][^>]*>", page)
    loads = [v for tag in tags for v in re.findall(r'(?:src|href|action|data)="([^"]*)"', tag)]
    assert loads and all(value.startswith("#") for value in loads)
    assert "@import" not in page
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page))
    ids = re.findall(r'\sid="([^"]*)"', " ".join(tags))
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in loads} <= set(ids)
    charts = re.findall(r"<svg [^>]*>", page)
    assert len(charts) == 5 and all('role="img" aria-label="' in chart for chart in charts)
    assert "#0102" not in page


def test_the_same_inputs_give_the_same_page(built):
    first = (built / "report.html").read_bytes()
    build_report.build(built)
    assert (built / "report.html").read_bytes() == first


def test_the_warning_depends_on_the_size_of_the_model(run, built):
    text = words((built / "report.html").read_text())
    assert "learns form, not medicine" in text and "Nothing here is for clinical use" in text
    edit(run / "adapter/manifest.json", lambda facts: facts.update(parameters=7_248_023_552))
    build_report.build(run)
    text = words((run / "report.html").read_text())
    assert "learns form, not medicine" not in text and "Not for clinical use." in text


def test_a_sparse_log_is_drawn_by_epoch(run):
    def change(log):
        log.update(tokens=None, train_loss=None)
        log["steps"] = [{"loss": 2.0, "epoch": 0.5}, {"loss": 1.0, "epoch": 1.0}]

    edit(run / "adapter/training.json", change)
    build_report.build(run)
    assert "loss by epoch, from 2 to 1" in (run / "report.html").read_text()


def test_main_prints_the_table_and_show_writes_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build_report.py", "--run", str(run), "--show"])
    with pytest.raises(StepError, match=r"report\.html does not exist; make report"):
        build_report.main()
    monkeypatch.setattr("sys.argv", ["build_report.py", "--run", str(run)])
    build_report.main()
    printed = capsys.readouterr().out
    assert "7/8  87.5% (52.9%-97.8%)" in printed
    assert "seen terms" in printed and "unseen terms" in printed
    assert printed.splitlines()[-1] == str(run / "report.html")
    before = (run / "report.html").stat().st_mtime_ns
    monkeypatch.setattr("sys.argv", ["build_report.py", "--run", str(run), "--show"])
    build_report.main()
    assert capsys.readouterr().out == printed
    assert (run / "report.html").stat().st_mtime_ns == before
