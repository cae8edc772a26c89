"""A release: complete, told in advance, one commit a repository; and what stops it."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys

import pytest
from fake_hub import TOKEN, FakeHub
from huggingface_hub import HfApi, ModelCard, ModelCardData, metadata_load

from medalign import model_card, publish_hub, release, release_files, released_run
from medalign.artifacts import ROOT, StepError, sha256
from medalign.publish_hub import publish
from medalign.recipe import model, system_prompt
from medalign.release import KINDS, repositories
from medalign.release_files import matches
from medalign.released_run import Source, check_terms
from medalign.write_modelfile import render

FAMILY = model("smollm2-135m")
ACCESS = "hf_" + "a1B2" * 9
MERGED = "someone/medalign-135m"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def tensors(seed):
    head = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return len(head).to_bytes(8, "little") + head + seed.to_bytes(4, "little")


def rated(k, n):
    return {"k": k, "n": n, "rate": k / n, "low": 0.1, "high": 0.9}


def seal(run, base="build/models/smollm2-135m-instruct", rows="build/data/education/train.jsonl"):
    """Give a run the manifests that fit its files, as training, merge and export would."""
    before = ROOT if base.startswith("build/") else released_run.ROOT
    basics = {"name": FAMILY.name, "base": {"id": base, "revision": None}}
    made_of = {
        "recipe": {"path": f"recipes/smollm2-135m/{run.name}.yaml", "sha256": "0" * 64},
        "datasets[0].path": {"path": rows, "sha256": "1" * 64},
    }
    if before != ROOT:
        made_of["base_model"] = {"path": base, "sha256": sha256(before / base)}
    facts = {"steps": 225, "epochs": 1.0, "tokens": 280832.0, "train_seconds": 976.5, "seed": 42}
    machine = {"cpu": "a processor", "cores": 2, "gpus": []}
    known = {rows.rpartition("/")[2]: {"rows": {"train": 900}, "license": "apache-2.0"}}
    adapter = {"final_loss": 0.8, "dtype": "bf16", "hardware": machine, "data": known}
    write(run / "adapter/manifest.json", {**basics, "inputs": made_of, **facts, **adapter})
    inputs = {"adapter": {"path": "adapter", "sha256": sha256(run / "adapter")}}
    write(run / "merged/manifest.json", {**basics, "inputs": inputs})
    for gguf in run.glob("*.gguf"):
        inputs = {"model": {"path": "merged", "sha256": sha256(run / "merged")}}
        loss = {"tokens": 2052, "kl_mean": 0.11, "top1": 0.84}
        said = {"quantization": "Q4_K_M", "quantization_loss": loss, "bytes": {"Q4_K_M": 8}}
        write(
            gguf.with_name(gguf.name + ".manifest.json"),
            {"inputs": inputs, "sha256": sha256(gguf), **said},
        )
    for path in run.glob("eval/*.json"):
        facts = json.loads(path.read_text())
        facts["inputs"] = {"model": {"path": "x.gguf", "sha256": sha256(next(run.glob("*.gguf")))}}
        write(path, facts)


def a_run(run, seed=1, base="build/models/smollm2-135m-instruct"):
    """A finished run of a few bytes, with the paths of another machine in its settings."""
    write(run / "adapter/adapter_config.json", {"base_model_name_or_path": base, "r": 32})
    write(run / "adapter/adapter_model.safetensors", tensors(seed + 100))
    recipe = "adapter: lora\nlora_r: 32\nlora_alpha: 32\n"
    write(run / "adapter/recipe.yaml", recipe + f"output_dir: /tmp/x.y/runs/{run.name}/adapter\n")
    write(run / "adapter/debug.log", f"wrote {run}")
    write(run / "adapter/checkpoint-9/optimizer.pt", pickle.dumps([1]))
    write(run / "merged/config.json", {"model_type": "llama"})
    write(run / "merged/tokenizer_config.json", {"is_local": True, "eos_token": "<|im_end|>"})
    write(run / "merged/tokenizer.json", {"vocab": {"/tmp/x": 1}})
    write(run / "merged/model.safetensors", tensors(seed))
    write(run / "medalign-135m-Q4_K_M.gguf", b"GGUF" + bytes([seed]) * 4)
    write(run / "Modelfile", render(FAMILY, "./medalign-135m-Q4_K_M.gguf"))
    scores = {"test": {"strict": rated(49, 50)}, "frozen": {"strict": rated(70, 70)}}
    settings = {"temperature": 0.0, "max_tokens": 512, "system_prompt": "s"}
    write(run / "eval/tuned.json", {"scores": scores, "settings": settings})
    seal(run, base)
    return run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run in a repository of its own."""
    for module in (released_run, release, model_card):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    write(tmp_path / "data/sources.yaml", "sources: {}\nrefusals: {}\n")
    files = {p.stem: {"sha256": sha256(p)} for p in (ROOT / "data/education").glob("*.jsonl")}
    counts = {"rows": {"train": 900}, "examples": {"train": 150}, "license": "apache-2.0"}
    write(tmp_path / "build/data/education/manifest.json", {"inputs": files, **counts})
    return a_run(tmp_path / "runs/smollm2-135m/sft-lora-cpu")


@pytest.fixture
def staged(run, tmp_path):
    """The release, staged, by hub id."""

    def stage(*kinds, folder=run, accept_research=False):
        where = tmp_path / "stage"
        shutil.rmtree(where, ignore_errors=True)
        kinds = kinds or KINDS
        return {r.id: r for r in repositories(folder, "someone", kinds, where, accept_research)}

    return stage


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield fake
    fake.close()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=TOKEN)


def text_of(repository, name):
    return next(i for i in repository.items if i.name == name).source.read_text()


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["publish_hub.py", *map(str, arguments)])
    publish_hub.main()


def test_a_dry_run_shows_everything_and_asks_nobody(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    command(monkeypatch, "--run", run, "--namespace", "someone")
    shown = capsys.readouterr().out
    for name in ("", "-lora", "-GGUF"):
        assert f"model someone/medalign-135m{name} (private)" in shown
    assert "dataset someone/medalign-education (private)" in shown
    weights = run / "merged/model.safetensors"
    line = next(x for x in shown.splitlines() if " model.safetensors" in x)
    assert line.split()[:2] == [str(weights.stat().st_size), sha256(weights)]
    assert "adapter_config.json  [rewritten]" in shown and "README.md  [generated]" in shown
    assert "licence apache-2.0" in shown and f"weights {sha256(run / 'merged')[:12]}" in shown
    assert "debug.log" not in shown and "optimizer" not in shown
    assert "a dry run" in shown and hub.requests == []


def test_what_is_published_is_what_was_shown(staged, hub, api):
    for repository in staged().values():
        assert publish(api, repository, private=True).startswith("committed ")
        there = hub.repos[repository.type, repository.id]
        assert there.private and len(there.commits) == 2
        assert there.commits[1][1]["summary"] == repository.message
        assert there.commits[1][1]["parentCommit"] == there.commits[0][0]
        sent = {n: hashlib.sha256(c).hexdigest() for n, c in there.files.items()}
        assert sent.pop(".gitattributes")
        assert sent == {item.name: item.sha256 for item in repository.items}


def test_what_is_there_is_not_committed_again(staged, hub, api):
    for repository in staged("gguf", "dataset").values():
        publish(api, repository, private=True)
    before = len(hub.asked("PUT|commit"))
    for repository in staged("gguf", "dataset").values():
        assert publish(api, repository, private=True).startswith("up to date")
    assert len(hub.asked("PUT|commit")) == before


def test_a_changed_card_is_one_more_commit_and_no_upload(run, staged, hub, api):
    publish(api, staged("merged")[MERGED], private=True)
    uploads = len(hub.asked("PUT"))
    facts = json.loads((run / "eval/tuned.json").read_text())
    facts["scores"]["test"]["strict"] = rated(40, 50)
    write(run / "eval/tuned.json", facts)
    publish(api, staged("merged")[MERGED], private=True)
    assert len(hub.repos["model", MERGED].commits) == 3
    assert len(hub.asked("PUT")) == uploads
    assert b"80.0% (40/50" in hub.repos["model", MERGED].files["README.md"]


@pytest.mark.parametrize(
    "request_", ["POST /api/repos/create", "GET .*/tree/", "preupload", "batch", "PUT", "commit"]
)
def test_a_fault_that_passes_is_outlasted(staged, hub, api, request_):
    hub.fail(request_, 503)
    assert publish(api, staged("merged")[MERGED], private=True).startswith("committed")
    assert len(hub.repos["model", MERGED].commits) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(staged, hub, api):
    hub.fail("/commit/", 500, after=True)
    assert publish(api, staged("merged")[MERGED], private=True).startswith("up to date")
    assert len(hub.repos["model", MERGED].commits) == 2


def test_a_broken_upload_commits_nothing_and_is_resumed(staged, hub, api):
    repository = staged("merged")[MERGED]
    weights = next(i for i in repository.items if i.name == "model.safetensors")
    hub.fail(f"PUT /lfs/{weights.sha256}", 400)
    with pytest.raises(StepError, match=r"answered 400 .*it does not take"):
        publish(api, repository, private=True)
    assert len(hub.repos["model", MERGED].commits) == 1
    others = len(hub.asked("PUT")) - 1
    publish(api, staged("merged")[MERGED], private=True)
    assert len(hub.repos["model", MERGED].commits) == 2
    assert len(hub.asked(f"PUT /lfs/{weights.sha256}")) == 2
    assert len(hub.asked("PUT")) == others + 2


def test_a_server_that_stays_broken_ends_in_one_line(staged, hub, api):
    hub.fail("commit", 500, times=99)
    with pytest.raises(
        StepError, match=r"medalign-135m: the hub answered 500 .*run the same again"
    ):
        publish(api, staged("merged")[MERGED], private=True)
    assert len(hub.asked("commit")) == publish_hub.ATTEMPTS


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "HF_TOKEN is not valid"), (403, "may not write"), (409, "someone else committed")],
)
def test_a_refusal_is_told_and_not_tried_again(staged, hub, api, status, message):
    hub.fail("/commit/", status, times=9)
    with pytest.raises(StepError, match=f"answered {status}.*{message}"):
        publish(api, staged("merged")[MERGED], private=True)
    assert len(hub.asked("/commit/")) == 1


@pytest.mark.parametrize(("status", "message"), [(401, "not valid"), (403, "may not write")])
def test_a_namespace_of_others_is_told(staged, hub, api, status, message):
    hub.fail("create", status, times=9)
    with pytest.raises(StepError, match=message):
        publish(api, staged("merged")[MERGED], private=True)
    assert hub.repos == {}


def test_a_wrong_token_is_refused_and_not_shown(staged, hub):
    with pytest.raises(StepError, match="401") as error:
        publish(HfApi(endpoint=hub.url, token=ACCESS), staged("merged")[MERGED], private=True)
    assert ACCESS not in str(error.value)


def test_a_commit_of_someone_else_meanwhile_is_not_overwritten(staged, hub, api):
    def meanwhile():
        hub.repos["model", MERGED].commit({"summary": "theirs"}, {"theirs.md": b"x"}, set())

    hub.before_commit = meanwhile
    with pytest.raises(StepError, match=r"answered 412.*someone else committed"):
        publish(api, staged("merged")[MERGED], private=True)
    assert "README.md" not in hub.repos["model", MERGED].files


def test_the_pin_outlives_a_retry(staged, hub, api):
    hub.fail("/commit/", 503)
    create = hub.create

    def meanwhile(asked):
        done = create(asked)
        if hub.asked("/commit/"):
            hub.repos["model", MERGED].commit({"summary": "theirs"}, {"theirs.md": b"x"}, set())
        return done

    hub.create = meanwhile
    with pytest.raises(StepError, match="412"):
        publish(api, staged("merged")[MERGED], private=True)


def test_weights_of_another_release_are_not_left_beside(staged, hub, api):
    repository = staged("merged")[MERGED]
    publish(api, repository, private=True)
    old = {"model-00001-of-00002.safetensors": b"old"}
    hub.repos["model", MERGED].commit({"summary": "old"}, old, set(old))
    with pytest.raises(StepError, match="model-00001-of-00002"):
        publish(api, repository, private=True)


def test_a_public_repository_is_not_taken_for_a_private_one(staged, hub, api):
    repository = staged("dataset")["someone/medalign-education"]
    publish(api, repository, private=False)
    assert not hub.repos["dataset", repository.id].private
    with pytest.raises(StepError, match="is public on the hub"):
        publish(api, repository, private=True)


def test_a_file_that_changed_after_the_plan_is_not_published(run, staged, hub, api):
    repository = staged("merged")[MERGED]
    (run / "merged/model.safetensors").write_bytes(tensors(7))
    with pytest.raises(StepError, match="changed meanwhile"):
        publish(api, repository, private=True)
    assert len(hub.repos["model", MERGED].commits) == 1


def test_the_command_publishes_with_yes_and_a_token_only(run, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    arguments = ("--run", run, "--namespace", "someone", "--only", "merged", "--yes")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(StepError, match="HF_TOKEN is not set"):
        command(monkeypatch, *arguments)
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(publish_hub, "HfApi", lambda token: HfApi(endpoint=hub.url, token=token))
    command(monkeypatch, *arguments)
    shown = capsys.readouterr()
    assert f"{MERGED}: committed" in shown.out and TOKEN not in shown.out + shown.err
    assert list(hub.repos) == [("model", MERGED)]


def test_settings_name_the_hub_and_no_machine(run, staged, tmp_path):
    found = staged()
    adapter = found["someone/medalign-135m-lora"]
    assert json.loads(text_of(adapter, "adapter_config.json")) == {
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": 32,
    }
    assert "output_dir: runs/sft-lora-cpu/adapter" in text_of(adapter, "recipe.yaml")
    assert "is_local" not in text_of(found[MERGED], "tokenizer_config.json")
    for repository in found.values():
        for item in repository.items:
            assert str(tmp_path).encode() not in item.source.read_bytes()


def test_the_gguf_repository_says_to_ollama_what_the_modelfile_says(staged):
    gguf = staged("gguf")["someone/medalign-135m-GGUF"]
    template = (ROOT / FAMILY.ollama_template).read_text().removesuffix("\n")
    assert text_of(gguf, "template") == template
    assert text_of(gguf, "system") == system_prompt()
    params = json.loads(text_of(gguf, "params"))
    assert params == {"stop": FAMILY.stop, "num_ctx": FAMILY.num_ctx, "temperature": 0.0}


@pytest.mark.parametrize(
    ("id", "relation", "base", "library"),
    [
        (MERGED, "finetune", FAMILY.hub_id, "transformers"),
        (f"{MERGED}-lora", "adapter", FAMILY.hub_id, "peft"),
        (f"{MERGED}-GGUF", "quantized", MERGED, "llama.cpp"),
    ],
)
def test_model_cards_have_metadata_that_loads(staged, id, relation, base, library):
    card = next(i for i in staged()[id].items if i.name == "README.md").source
    said = metadata_load(card)
    assert said["license"] == "apache-2.0" and said["language"] == "en"
    assert (said["base_model"], said["base_model_relation"]) == (base, relation)
    assert (said["library_name"], said["pipeline_tag"]) == (library, "text-generation")
    assert said["datasets"] == ["someone/medalign-education"]
    results = ModelCardData(**said).eval_results
    assert [(r.metric_value, r.metric_args["n"]) for r in results] == [(0.98, 50), (1.0, 70)]
    text = ModelCard.load(card).text
    assert "Not for clinical use" in text and "98.0% (49/50; 10.0%–90.0%)" in text
    assert text.count("not measured |") == len(
        [f for f in release_files.rules()["figures"] if f.get("safety")]
    )
    assert "225 | 1.0 | 280832 | 16.3" in text and "No clinician has reviewed" in text


def test_safety_figures_and_the_untuned_model_stand_in_the_card(run, staged):
    settings = {"temperature": 0.0, "max_tokens": 96, "system_prompt": "s"}
    scores = {"harmful": {"refused": rated(164, 225)}}
    write(run / "eval/safety.json", {"scores": scores, "settings": settings})
    seal(run)
    base = json.loads((run / "eval/tuned.json").read_text())
    base["scores"]["test"]["strict"] = rated(0, 50)
    base["inputs"]["model"]["sha256"] = "9" * 64
    write(run / "eval/base.json", base)
    text = text_of(staged("merged")[MERGED], "README.md")
    assert "72.9% (164/225; 10.0%–90.0%)" in text and "up to 96 tokens" in text
    assert "98.0% (49/50; 10.0%–90.0%) | 0.0% (0/50" in text


def test_the_dataset_card_counts_the_rows(staged):
    repository = staged("dataset")["someone/medalign-education"]
    card = next(i for i in repository.items if i.name == "README.md").source
    said = metadata_load(card)
    assert said["license"] == "apache-2.0" and said["size_categories"] == "n<1K"
    assert [c["config_name"] for c in said["configs"]] == ["default", "wordings"]
    rows = (ROOT / "data/education/train.jsonl").read_text().splitlines()
    assert f"| train.jsonl | {len(rows)} |" in card.read_text()
    assert "No clinician has reviewed" in card.read_text()


def later(run, name="dpo-lora-cpu"):
    """A stage trained on the run's merged model."""
    base = run.relative_to(released_run.ROOT).as_posix() + "/merged"
    after = a_run(run.with_name(name), seed=2, base=base)
    seal(after, base, "build/pairs/train.jsonl")
    return after


def test_the_adapter_of_a_later_stage_brings_the_model_it_was_trained_on(run, staged):
    found = staged("adapter", folder=later(run))
    assert list(found) == [f"{MERGED}-sft-lora-cpu", f"{MERGED}-lora"]
    said = json.loads(text_of(found[f"{MERGED}-lora"], "adapter_config.json"))
    assert said["base_model_name_or_path"] == f"{MERGED}-sft-lora-cpu"
    before = {i.name: i.sha256 for i in found[f"{MERGED}-sft-lora-cpu"].items}
    assert before["model.safetensors"] == sha256(run / "merged/model.safetensors")
    card = text_of(found[f"{MERGED}-lora"], "README.md")
    assert "| sft-lora-cpu | sft-lora-cpu.yaml |" in card
    assert "| dpo-lora-cpu | build/pairs/train.jsonl | apache-2.0 |" in card


def test_a_stage_whose_base_was_trained_anew_is_refused(run, staged):
    after = later(run)
    write(run / "merged/model.safetensors", tensors(9))
    with pytest.raises(StepError, match=r"sft-lora-cpu/merged is not what"):
        staged("merged", folder=after)


def break_link(run):
    (run / "merged/config.json").unlink()
    (run / "merged/config.json").symlink_to(ROOT / "LICENSE")


def set_key(path, *keys, to):
    facts = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    write(path, facts)


def hidden_key(run):
    write(run / "merged/generation_config.json", {"note": f"token {ACCESS}"})


BROKEN = {
    "a Hugging Face token": (hidden_key, r"generation_config.json:1: holds a Hugging Face token"),
    "an OpenAI key": (
        lambda run: write(run / "merged/config.json", {"k": "sk-" + "a" * 24}),
        "an API key",
    ),
    "an AWS key": (
        lambda run: write(run / "adapter/training.json", {"k": "AKIA" + "A" * 16}),
        "an AWS key id",
    ),
    "a private key": (
        lambda run: write(
            run / "merged/chat_template.jinja", "x\n-----BEGIN RSA PRIVATE " + "KEY-----"
        ),
        r"chat_template.jinja:2: holds a private key",
    ),
    "the environment's key": (
        lambda run: write(run / "merged/config.json", {"k": "of-the-environment"}),
        "the value of SOME_API_KEY",
    ),
    "a token in the GGUF's metadata": (
        lambda run: write(run / "medalign-135m-Q4_K_M.gguf", b"GGUF url \x00 " + ACCESS.encode()),
        "holds a Hugging Face token",
    ),
    "a local path": (
        lambda run: write(run / "merged/config.json", {"cache": "/home/anna/cache"}),
        "names a local path, /home/anna",
    ),
    "a pickle by name": (
        lambda run: write(run / "merged/pytorch_model.bin", b"x"),
        "may be a pickle",
    ),
    "a pickle by content": (
        lambda run: write(run / "merged/tokenizer.model", pickle.dumps({"a": 1})),
        "is a pickle, whatever its name",
    ),
    "no safetensors": (
        lambda run: write(run / "merged/model.safetensors", pickle.dumps([1])[:-1] + b"x" * 9),
        "is no safetensors file",
    ),
    "no GGUF": (
        lambda run: write(run / "medalign-135m-Q4_K_M.gguf", b"nothing"),
        "is no GGUF file",
    ),
    "a file that is not known": (
        lambda run: write(run / "merged/notes.txt", "x"),
        r"notes.txt is no file of a release",
    ),
    "a link that leads out": (break_link, "is a link that leads out"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_must_not_leave_the_machine_stops_it(run, staged, monkeypatch, name):
    monkeypatch.setenv("SOME_API_KEY", "of-the-environment")
    spoil, message = BROKEN[name]
    spoil(run)
    seal(run)
    with pytest.raises(StepError, match=message) as error:
        staged("merged", "adapter", "gguf")
    assert ACCESS not in str(error.value) and "of-the-environment" not in str(error.value)


GGUF_FACTS = "medalign-135m-Q4_K_M.gguf.manifest.json"
UNSOUND = {
    "the GGUF changed": (
        lambda run: write(run / "medalign-135m-Q4_K_M.gguf", b"GGUF other"),
        r"Q4_K_M.gguf is not what .*gguf.manifest.json names",
    ),
    "the merged folder changed": (
        lambda run: write(run / "merged/config.json", {}),
        "merged is not what",
    ),
    "the adapter changed": (
        lambda run: write(run / "adapter/adapter_config.json", {}),
        "adapter is not what",
    ),
    "no manifest of the GGUF": (
        lambda run: (run / GGUF_FACTS).unlink(),
        r"manifest.json does not exist; make gguf",
    ),
    "no manifest of the adapter": (
        lambda run: (run / "adapter/manifest.json").unlink(),
        "make sft writes it",
    ),
    "no GGUF": (
        lambda run: (run / "medalign-135m-Q4_K_M.gguf").unlink(),
        "has no GGUF",
    ),
    "results of another model": (
        lambda run: set_key(run / "eval/tuned.json", "inputs", "model", "sha256", to="f" * 64),
        r"tuned.json is of another model",
    ),
    "results that name no model": (
        lambda run: set_key(run / "eval/tuned.json", "inputs", to={}),
        r"tuned.json is of another model",
    ),
    "published results of another model": (
        lambda run: write(
            released_run.ROOT / "docs/results/suites.json",
            {"stages": {"SFT": {"model": f"runs/smollm2-135m/{run.name}/x", "sha256": "0" * 64}}},
        ),
        r"suites.json: runs/smollm2-135m/sft-lora-cpu/x was another model",
    ),
    "no licence of the data": (
        lambda run: set_key(
            run / "adapter/manifest.json", "data", "train.jsonl", "license", to=None
        ),
        "its licence is unknown",
    ),
    "a licence that nobody knows": (
        lambda run: set_key(
            run / "adapter/manifest.json", "data", "train.jsonl", "license", to="mine"
        ),
        "its licence is mine",
    ),
    "a stand-in for the base": (
        lambda run: set_key(
            run / "adapter/manifest.json", "base", "id", to="build/models/tiny-mistral"
        ),
        "which is not medalign-135m's base",
    ),
    "another model's name": (
        lambda run: set_key(run / "merged/manifest.json", "name", to="other"),
        "its manifests say",
    ),
    "a Modelfile of another template": (
        lambda run: write(
            run / "Modelfile",
            (run / "Modelfile").read_text().replace("num_ctx 4096", "num_ctx 2048"),
        ),
        "Modelfile is not what the recipe's family says",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_a_run_whose_parts_do_not_belong_together_is_refused(run, staged, name):
    spoil, message = UNSOUND[name]
    spoil(run)
    with pytest.raises(StepError, match=message):
        staged("merged", "gguf")


def mixed(run, **sources):
    """Let the run be trained on a mix of such sources."""
    rows = released_run.ROOT / "build/data/train.jsonl"
    write(rows, "{}")
    funnel = {
        n: {"read": 10, "dropped": {"holds an evaluation row": 2}, "train": 8} for n in sources
    }
    said = {"kind": "training mix", "funnel": funnel, "sources": sources}
    write(rows.with_name("manifest.json"), {**said, "outputs": {"train.jsonl": sha256(rows)}})
    seal(run, rows="build/data/train.jsonl")
    path = run / "adapter/manifest.json"
    set_key(path, "inputs", "datasets[0].path", "sha256", to=sha256(rows))
    set_key(path, "data", to={"train.jsonl": {"license": None}})


def test_research_data_need_a_word_and_are_told_in_the_card(run, staged):
    mixed(run, theirs={"license": "cc-by-nc-4.0", "terms": "non-commercial", "hub": "a/b"})
    with pytest.raises(StepError, match=r"theirs \(cc-by-nc-4.0, .*--accept-research"):
        staged("merged")
    found = staged("merged", accept_research=True)[MERGED]
    said = metadata_load(next(i for i in found.items if i.name == "README.md").source)
    assert (said["license"], said["license_name"]) == ("other", "research-only")
    assert said["datasets"] == ["a/b"]
    card = text_of(found, "README.md")
    assert "**For research only**: theirs" in card
    assert "2 of 10 rows read were dropped: they hold an evaluation's row." in card


@pytest.mark.parametrize("made_anew", [False, True])
def test_refusals_for_research_are_told_even_when_the_pairs_were_made_anew(run, made_anew):
    """What an adapter learnt is in its own manifest: later pairs without them change nothing."""
    theirs = {"license": "mit", "terms": "research"}
    rows = released_run.ROOT / "build/pairs/chosen.jsonl"
    write(rows, "{}")
    said = {
        "kind": "preference pairs",
        "funnel": {"theirs": {"train": 8}},
        "sources": {"theirs": theirs},
    }
    digest = "0" * 64 if made_anew else sha256(rows)
    write(rows.with_name("manifest.json"), {**said, "outputs": {rows.name: sha256(rows)}})
    data = {
        rows.name: {
            "license": "apache-2.0, silver.jsonl as its sources say",
            "sources": {"theirs": theirs},
        }
    }
    inputs = {"datasets[0].path": {"path": "build/pairs/chosen.jsonl", "sha256": digest}}
    found, _ = released_run.sources({"inputs": inputs, "data": data})
    assert Source("theirs", "mit", "research") in found
    assert len(check_terms(found, accept_research=True)) == 1
    with pytest.raises(StepError, match="--accept-research"):
        check_terms(found, accept_research=False)


def test_data_without_clear_terms_are_not_released_at_all():
    for source in (Source("x", "unknown", "unclear"), Source("x", "mit", "unclear")):
        with pytest.raises(StepError, match="train without it"):
            check_terms([source], accept_research=True)


def test_a_missing_licence_text_stops_it(staged, monkeypatch, tmp_path):
    monkeypatch.setattr(release, "LICENSE", tmp_path / "LICENSE")
    with pytest.raises(StepError, match="LICENSE does not exist"):
        staged("merged")
    write(tmp_path / "LICENSE", "All rights reserved.")
    with pytest.raises(StepError, match=r"is not the text of apache-2\.0"):
        staged("merged")


def test_education_rows_that_changed_since_make_data_are_refused(run, staged):
    path = released_run.ROOT / "build/data/education/manifest.json"
    set_key(path, "inputs", "test", "sha256", to="0" * 64)
    with pytest.raises(StepError, match=r"test.jsonl is not what"):
        staged("dataset")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "everything"], "there are dataset"), (["--namespace", "a b"], "--namespace")],
)
def test_a_wrong_argument_is_told(run, monkeypatch, arguments, message):
    with pytest.raises(StepError, match=message):
        command(monkeypatch, "--run", run, "--namespace", "someone", *arguments)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("model-00001-of-00002.safetensors", "model*.safetensors", True),
        ("deep/model.safetensors", "model*.safetensors", False),
        ("deep/model.safetensors", "*.safetensors", False),
        ("checkpoint-9/optimizer.pt", "checkpoint-*/**", True),
        ("configxjson", "config.json", False),
    ],
)
def test_a_star_stays_in_its_folder(name, pattern, expected):
    assert matches(name, pattern) is expected
