"""The models that suites are asked of: real weights, and fakes of what answers over HTTP."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager, get_task_dict

from medalign import gguf_model, gguf_scores, hf_lm
from medalign.artifacts import ROOT, StepError
from medalign.export_gguf import convert
from medalign.models import of_folder, open_model
from medalign.recipe import model as family
from medalign.sources import DATA_DIR

EACH = 50  # items of a task
FEW = 12  # of them where llama.cpp is asked, on one thread
TASKS = ("medalign_medqa", "medalign_pubmedqa", "medalign_medmcqa", "medalign_medication_safety")
SHOTS = ("medalign_mmlu_anatomy",)
PUBLIC = pytest.mark.skipif(
    not os.environ.get(DATA_DIR), reason=f"{DATA_DIR} names no folder with the public sets"
)


@pytest.fixture(scope="module")
def hf(base):
    return of_folder(base, "float32").lm


@pytest.fixture(scope="module")
def requests():
    """The first requests of every task with options, as lm-eval makes them."""
    manager = TaskManager(include_path=str(ROOT / "evals"), include_defaults=False)
    found = {}
    for name, task in get_task_dict([*TASKS, *SHOTS], manager).items():
        task.build_all_requests(limit=EACH, rank=0, world_size=1)
        found[name] = task.instances
    return found


class Direct:
    """Loglikelihoods by the definition, in plain transformers."""

    def __init__(self, base):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.known = ((), None)  # the options of an item differ in their last token

    def logs(self, ids):
        import torch

        if self.known[0] != ids:
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0]
            self.known = (ids, logits.log_softmax(-1))
        return self.known[1]

    def __call__(self, context: str, continuation: str) -> float:
        stripped = context.rstrip()
        ids = self.tokenizer(stripped + context[len(stripped) :] + continuation).input_ids
        shared = len(self.tokenizer(stripped).input_ids)
        logs = self.logs(tuple(ids[:-1]))
        return sum(float(logs[i - 1, ids[i]]) for i in range(shared, len(ids)))


@PUBLIC
@pytest.mark.slow
def test_likelihoods_are_those_of_transformers(hf, requests, base):
    direct = Direct(base)
    for name, asked in requests.items():
        assert len({request.doc_id for request in asked}) == EACH
        scored = hf.loglikelihood(asked, disable_tqdm=True)
        for request, (log, _) in zip(asked, scored, strict=True):
            assert log == pytest.approx(direct(*request.args), abs=2e-3), (name, request.args)


def test_shared_beginnings_and_padding_change_no_likelihood(hf, base, monkeypatch):
    direct = Direct(base)
    shots = "Question: Which organ makes insulin?\nA. Liver\nB. Pancreas\nAnswer: B\n\n" * 5
    asked = [
        (shots + "Question: Where is bile made?\nAnswer:", " A"),
        (shots + "Question: Where is bile made?\nAnswer:", " B"),
        (shots + "Question: Where is urine made, of what, and how much of it?\nAnswer:", " A"),
        ("Question: Is this plan safe?\nAnswer:", " unsafe"),
        ("Question: Is this plan safe?\nAnswer:", " safe"),
        ("Fever", " is a sign"),
    ]
    for most in (4096, 30):
        monkeypatch.setattr(hf_lm, "TOKENS", most)
        scored = hf.loglikelihood(
            [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)],
            disable_tqdm=True,
        )
        for (log, _), pair in zip(scored, asked, strict=True):
            assert log == pytest.approx(direct(*pair), abs=1e-3), pair
    front = [
        shared for shared, _ in hf_lm.begin_alike(sorted(hf_lm.alike(encoded(hf, asked), 2048)))
    ]
    assert len(front) == 2 and front[0] >= hf_lm.SHARED and front[1] == 0


def encoded(lm, pairs):
    return [(pair, *lm._encode_pair(*pair)) for pair in pairs]


@PUBLIC
@pytest.mark.slow
def test_a_ggufs_likelihoods_are_llama_cpps_and_near_transformers(hf, requests, base, tmp_path):
    f16 = tmp_path / "f16.gguf"
    convert(base, f16, "base", family("smollm2-135m"))
    lm = open_model(str(f16)).lm
    every = gguf_model.load(f16, n_ctx=2048, logits_all=True)
    agree = total = 0
    for name, every_item in requests.items():
        asked = [request for request in every_item if request.doc_id < FEW]
        ours = [log for log, _ in lm.loglikelihood(asked, disable_tqdm=True)]
        theirs = [log for log, _ in hf.loglikelihood(asked, disable_tqdm=True)]
        options = len([r for r in asked if r.doc_id == asked[0].doc_id])
        for start in range(0, len(asked), options):
            rows = slice(start, start + options)
            agree += int(np.argmax(ours[rows]) == np.argmax(theirs[rows]))
            total += 1
        for request, log in list(zip(asked, ours, strict=True))[::12]:
            context, continuation = lm._encode_pair(*request.args)
            every.reset()
            every.eval(context + continuation)
            logs = [gguf_scores.log_softmax(row) for row in every.scores[: every.n_tokens]]
            place = len(context) - 1
            expected = sum(logs[place + i][token] for i, token in enumerate(continuation))
            assert log == pytest.approx(float(expected), abs=0.02), (name, request.args)
    assert agree / total > 0.95, f"{agree} of {total} choices are the same"


def opened(path):
    return gguf_model.load(path, n_ctx=1024, n_batch=gguf_scores.BLOCK)


def test_what_was_read_before_changes_nothing(base_gguf):
    llm = opened(base_gguf)
    shots = "Question: Which organ makes insulin? Answer: the pancreas.\n" * 20
    first = gguf_model.tokenize(llm, shots + "Question: Where is bile made?")
    second = gguf_model.tokenize(llm, shots + "Question: Where is urine made, and how much?")
    assert len(second) > gguf_scores.BLOCK * 2
    gguf_scores.read(llm, first)
    after = gguf_scores.read(llm, second)
    fresh = gguf_scores.read(opened(base_gguf), second)
    assert np.array_equal(after, fresh)


def test_continuations_of_several_tokens_add_up(base_gguf):
    lm = open_model(str(base_gguf)).lm
    asked = [
        Instance("loglikelihood", {}, ("Insulin lowers", text), i)
        for i, text in enumerate((" blood glucose", " blood pressure", " it"))
    ]
    scores = [log for log, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    llm = opened(base_gguf)
    for request, log in zip(asked, scores, strict=True):
        context, continuation = lm._encode_pair(*request.args)
        total = 0.0
        for i, token in enumerate(continuation):
            logits = gguf_scores.read(llm, context + continuation[:i])
            total += float(gguf_scores.log_softmax(logits)[token])
        assert log == pytest.approx(total, abs=1e-6)


def test_answers_are_those_of_a_chat_request(base_gguf):
    chat = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is anemia?"},
    ]
    lm = open_model(str(base_gguf)).lm
    settings = {"max_gen_toks": 24, "do_sample": False}
    request = Instance("generate_until", {}, (lm.apply_chat_template(chat), settings), 0)
    expected = gguf_model.ask(gguf_model.load(base_gguf), chat, 24).text
    assert lm.generate_until([request], disable_tqdm=True) == [expected]


# --- over HTTP ----------------------------------------------------------------------------------


class Fake:
    """An HTTP server that keeps what it was asked and answers by `reply`."""

    def __init__(self, reply):
        self.asked: list[dict] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(*reply(self.path, None, fake.asked))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(body)
                self.answer(*reply(self.path, body, fake.asked))

            def answer(self, status, pieces):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def serve():
    started = []

    def start(reply):
        started.append(Fake(reply))
        return started[-1]

    yield start
    for fake in started:
        fake.server.shutdown()


TAGS = json.dumps({"models": [{"name": "medalign:latest", "digest": "abc"}]}).encode()


def streamed(*texts, done=True):
    lines = [{"message": {"content": t}, "done": False} for t in texts]
    if done:
        lines.append({"message": {"content": ""}, "done": True})
    return [json.dumps(line).encode() + b"\n" for line in lines]


def generate(lm, text="What is anemia?"):
    prompt = lm.apply_chat_template([{"role": "user", "content": text}])
    settings = {"max_gen_toks": 32, "do_sample": False, "temperature": 0.0}
    return lm.generate_until([Instance("generate_until", {}, (prompt, settings), 0)])


def ollama(monkeypatch, serve, chat):
    def reply(path, body, asked):
        return (200, [TAGS]) if path == "/api/tags" else chat(body, asked)

    fake = serve(reply)
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    return fake


def test_ollama_is_asked_as_a_chat_and_its_stream_read(monkeypatch, serve):
    fake = ollama(monkeypatch, serve, lambda *_: (200, streamed("Few ", "red cells. é")))
    model = open_model("ollama:medalign")
    assert model.identity["sha256"] == "abc"
    assert not model.likelihoods
    assert generate(model.lm) == ["Few red cells. é"]
    body = fake.asked[0]
    assert body["messages"] == [{"role": "user", "content": "What is anemia?"}]
    assert body["options"]["temperature"] == 0.0
    assert body["options"]["num_predict"] == 32


def test_a_stream_that_breaks_is_asked_again(monkeypatch, serve):
    monkeypatch.setattr("medalign.ollama_lm.Ollama._ask.retry.wait", lambda _: 0)

    def chat(body, asked):
        return 200, streamed("half", done=False) if len(asked) < 3 else streamed("whole")

    fake = ollama(monkeypatch, serve, chat)
    assert generate(open_model("ollama:medalign").lm) == ["whole"]
    assert len(fake.asked) == 3


@pytest.mark.parametrize(
    ("status", "pieces", "message"),
    [
        (404, [b'{"error": "model not found"}'], "404"),
        (200, [b'{"error": "out of memory"}\n'], "out of memory"),
        (200, [b"<html>\n"], "not JSON"),
    ],
)
def test_what_ollama_complains_of_is_told(monkeypatch, serve, status, pieces, message):
    ollama(monkeypatch, serve, lambda *_: (status, pieces))
    with pytest.raises(StepError, match=message):
        generate(open_model("ollama:medalign").lm)


def test_no_ollama_and_no_such_model_are_told(monkeypatch, serve):
    ollama(monkeypatch, serve, lambda *_: (200, streamed("x")))
    with pytest.raises(StepError, match="ollama create other"):
        open_model("ollama:other")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    with pytest.raises(StepError, match="no Ollama there"):
        open_model("ollama:medalign")


def test_an_endpoint_is_asked_as_a_chat(serve):
    answer = {"choices": [{"index": 0, "message": {"content": "B"}}]}
    fake = serve(lambda path, body, asked: (200, [json.dumps(answer).encode()]))
    model = open_model(f"{fake.url}/v1#medalign-135m")
    assert not model.likelihoods
    assert generate(model.lm) == ["B"]
    assert fake.asked[0]["model"] == "medalign-135m"
    assert fake.asked[0]["messages"][-1]["content"] == "What is anemia?"


def test_an_endpoint_that_is_no_chat_is_told(serve, monkeypatch):
    monkeypatch.setattr("lm_eval.models.api_models.TemplateAPI.generate_until", broken)
    with pytest.raises(StepError, match="does not answer as a chat endpoint"):
        generate(open_model("http://127.0.0.1:9/v1").lm)


def broken(*_):
    raise ConnectionError("refused")


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(StepError, match="no run, model folder"):
        open_model(str(tmp_path / "nothing"))
    with pytest.raises(StepError, match=r"no config\.json"):
        open_model(str(tmp_path))
