"""The server's API against a scripted model: clients, keys, limits, the queue, errors, counts."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from fake_model import ANSWER, FakeModel, running
from hypothesis import HealthCheck, settings

from medalign.admission import Limits
from medalign.api import create_app
from medalign.gateway import Served
from medalign.passages import Passage
from medalign.refusal import is_refusal
from medalign.retrieval import Index
from medalign.section_grammar import OPENING_TOKENS
from medalign.sections import parse, render
from medalign.settings import declared

KEY = "a-key-of-tests"
AUTH = {"Authorization": f"Bearer {KEY}"}
SERVED = Served("medalign-135m", ["medalign"], "Be MedAlign.", KEY, context=512)
FORM = render("A fever is heat.", "The body warms.", "It shows infection.")


@dataclass
class Running:
    url: str
    model: FakeModel
    client: httpx.Client
    openai: openai.OpenAI

    def chat(self, text: str = "hello", **more: Any) -> httpx.Response:
        body = {"model": "medalign", "messages": [{"role": "user", "content": text}], **more}
        return self.client.post("/v1/chat/completions", json=body)


def run(served: Served = SERVED, **limits: Any) -> Iterator[Running]:
    model = FakeModel()
    model.answers["sections"] = FORM
    with running(model.app) as model.url:
        app = create_app(model, served, Limits(**limits))
        with running(app) as url, httpx.Client(base_url=url, headers=AUTH, timeout=20) as client:
            own = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=20)
            yield Running(url, model, client, own)
            model.release.set()


@pytest.fixture(scope="module")
def api() -> Iterator[Running]:
    yield from run()


@pytest.fixture
def own_api(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server with limits of its own."""
    yield from run(**getattr(request, "param", {}))


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def wait_for(event: threading.Event) -> None:
    assert event.wait(20)


HEAD = f"""POST /v1/chat/completions HTTP/1.1\r
Host: x\r
Authorization: Bearer {KEY}\r
Content-Type: application/json\r
"""

# clients


@pytest.mark.parametrize("name", ["medalign", "medalign-135m"])
def test_openai_client_whole_and_streamed_say_the_same(api, name):
    messages = [{"role": "user", "content": "What is fever?"}]
    whole = api.openai.chat.completions.create(model=name, messages=messages)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop" and whole.model == "medalign-135m"
    assert whole.usage.prompt_tokens == 5 and whole.usage.completion_tokens == 6
    stream = api.openai.chat.completions.create(
        model=name, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == 6 and not chunks[-1].choices


def test_openai_client_completes_and_lists_models(api):
    whole = api.openai.completions.create(model="medalign", prompt="Fever is")
    assert whole.choices[0].text == ANSWER
    stream = api.openai.completions.create(model="medalign", prompt=["Fever is"], stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices) == ANSWER
    assert [m.id for m in api.openai.models.list()] == ["medalign-135m", "medalign"]
    assert api.client.get("/models").json() == api.client.get("/v1/models").json()


def test_stream_without_usage_has_none(api):
    with api.client.stream("POST", "/v1/completions", json={
        "model": "medalign", "prompt": "x", "stream": True
    }) as reply:  # fmt: skip
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        chunk = json.loads(line.removeprefix("data: "))
        assert chunk["choices"] and "usage" not in chunk and "timings" not in chunk


def test_curl(api):
    body = json.dumps({"model": "medalign", "messages": [{"role": "user", "content": "hi"}]})
    command = ["curl", "-sS", "--fail", api.url + "/v1/chat/completions", "-d", body]
    command += ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_llm_command_line(api, tmp_path, options):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: served\n  model_name: medalign\n  api_base: {api.url}/v1\n  api_key_name: k\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"k": KEY}))
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "served", "-n", *options, "What is fever?"],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.strip() == ANSWER, done.stderr


# what the model is asked


def test_system_prompt_where_the_client_sends_none(api):
    api.chat("one")
    assert api.model.asked[-1]["messages"][0] == {"role": "system", "content": "Be MedAlign."}
    own = [{"role": "developer", "content": "Mine."}, {"role": "user", "content": "two"}]
    api.chat(messages=own)
    assert api.model.asked[-1]["messages"][0] == {"role": "system", "content": "Mine."}


def test_neighbours_of_one_role_become_one_turn(api):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    told = [{"role": "user", "content": parts}, {"role": "user", "content": "c"}]
    assert api.chat(messages=told).status_code == 200
    assert api.model.asked[-1]["messages"][1:] == [{"role": "user", "content": "a\n\nb\n\nc"}]


def test_sampling_and_limits_are_handed_on(api):
    more = {"temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["x"], "max_completion_tokens": 9}
    assert api.chat(**more, user="someone", metadata={"a": 1}).status_code == 200
    asked = api.model.asked[-1]
    assert asked["temperature"] == 0 and asked["top_p"] == 0.5 and asked["seed"] == 3
    assert asked["stop"] == ["x"] and asked["max_tokens"] == 9
    assert "user" not in asked and "metadata" not in asked
    api.chat()
    assert api.model.asked[-1]["max_tokens"] == Limits().answer_tokens


def test_four_sections_are_asked_for_by_grammar(api):
    form = {"type": "four_sections"}
    assert api.chat(response_format=form).status_code == 200
    opening, answer = api.model.asked[-2:]
    assert "grammar" not in opening and opening["max_tokens"] == OPENING_TOKENS
    assert answer["grammar"].startswith('root ::= "**Definition**: " body')
    assert answer["max_tokens"] == Limits().answer_tokens
    refused = api.chat("refuse", response_format=form).json()
    assert is_refusal(refused["choices"][0]["message"]["content"])
    assert "grammar" not in api.model.asked[-1]  # who refuses is let
    schema = {"name": "x", "schema": {"type": "object"}}
    api.chat(response_format={"type": "json_schema", "json_schema": schema})
    assert api.model.asked[-1]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    api.chat(response_format={"type": "text"})
    assert not {"grammar", "response_format"} & set(api.model.asked[-1])


# who may enter


@pytest.mark.parametrize("key", [None, "Bearer wrong", KEY, f"Bearer {KEY}x", "Bearer ключ"])
def test_all_routes_but_health_want_the_key(api, key):
    headers = {} if key is None else {"Authorization": key.encode()}
    routes = [route.path for route in create_app(FakeModel(), SERVED).routes]
    assert {"/metrics", "/models", "/openapi.json", "/v1/chat/completions"} <= set(routes)
    with httpx.Client(base_url=api.url, headers=headers) as client:
        for route in (*routes, "/nowhere"):
            expected = 200 if route.startswith("/health") else 401
            reply = client.get(route)
            assert reply.status_code == expected, route
            if expected == 401:
                assert error_of(reply)["code"] == "invalid_api_key"


def test_without_a_key_nobody_needs_one():
    for api in run(replace(SERVED, key=None)):
        assert httpx.get(api.url + "/models").status_code == 200


BAD = {
    "no JSON": (b"{", "JSON"),
    "no object": (b"[]", ""),
    "nothing": (b"", ""),
    "NaN temperature": (b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}', "temperature"),  # noqa: E501
    "infinite top_p": (b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_p":Infinity}', "top_p"),  # noqa: E501
    "half a surrogate": (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', "unicode"),  # noqa: E501
    "broken UTF-8": (b'{"model":"m","messages":[{"role":"user","content":"\xff\xfe"}]}', ""),
    "deep nesting": (b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", ""),
}  # fmt: skip
BODIES: dict[str, Any] = {
    "no model": {"model": None},
    "number for a model": {"model": 5},
    "no messages": {"messages": []},
    "messages no list": {"messages": "hello"},
    "unknown role": {"messages": [{"role": "tool", "content": "x"}]},
    "content a number": {"messages": [{"role": "user", "content": 5}]},
    "no content": {"messages": [{"role": "user"}]},
    "only a system text": {"messages": [{"role": "system", "content": "x"}]},
    "the assistant last": {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    },
    "1,000 messages": {"messages": [{"role": "user", "content": "x"}] * 1000},
    "negative max_tokens": {"max_tokens": -1},
    "no max_tokens": {"max_tokens": 0},
    "fractional max_tokens": {"max_tokens": 1.5},
    "max_tokens over the context": {"max_tokens": 513},
    "text for a number": {"temperature": "0.5"},
    "truth for a number": {"max_tokens": True},
    "hot": {"temperature": 2.1},
    "two answers": {"n": 2},
    "five stops": {"stop": list("abcde")},
    "an empty stop": {"stop": [""]},
    "tools": {"tools": [{"type": "function"}]},
    "an unknown form": {"response_format": {"type": "xml"}},
    "a form without its schema": {"response_format": {"type": "json_schema"}},
    "the model's context": {"messages": [{"role": "user", "content": "overflow"}]},
    "seed below zero": {"seed": -1},
    "top_logprobs alone": {"top_logprobs": 2},
}


@pytest.mark.parametrize("name", [*BAD, *BODIES])
def test_bad_input_is_a_client_error_and_the_server_stays_healthy(api, name):
    if name in BAD:
        content, words = BAD[name]
        headers = {"Content-Type": "application/json"}
        reply = api.client.post("/v1/chat/completions", content=content, headers=headers)
        assert words in error_of(reply)["message"]
    else:
        reply = api.chat(**BODIES[name])
    assert reply.status_code == 400
    assert error_of(reply)["type"] == "invalid_request_error"
    assert api.client.get("/health").status_code == 200


def test_a_body_must_say_that_it_is_json(api):
    body = json.dumps({"model": "medalign", "prompt": "x"})
    reply = api.client.post("/v1/completions", content=body, headers={"Content-Type": "text/plain"})
    assert reply.status_code == 400 and "application/json" in error_of(reply)["message"]


def test_the_message_of_an_error_does_not_repeat_the_text(api):
    reply = api.chat(messages=[{"role": "user", "content": 5, "name": "SECRET"}])
    assert "SECRET" not in reply.text


def test_unknown_model_and_unknown_route(api):
    assert error_of(api.chat(model="gpt-4"))["code"] == "model_not_found"
    assert api.chat(model="gpt-4").status_code == 404
    assert api.client.get("/v1/nothing").status_code == 404
    reply = api.client.get("/v1/chat/completions")
    assert reply.status_code == 405 and error_of(reply)


def test_large_bodies_are_not_read(api):
    reply = api.chat("x" * 10_000_000)
    assert reply.status_code == 413 and "1048576" in error_of(reply)["message"]

    def pieces() -> Iterator[bytes]:  # without a length that says so at once
        for _ in range(40):
            yield b" " * 65536

    reply = api.client.post("/v1/chat/completions", content=pieces())
    assert reply.status_code == 413
    assert api.chat().status_code == 200


@pytest.mark.parametrize("own_api", [{"body_seconds": 0.1}], indirect=True)
def test_a_body_that_does_not_come_ends_the_request(own_api):
    host, port = own_api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(f"{HEAD}Content-Length: 50\r\n\r\n".encode() + b'{"model"')
        assert b" 408 " in line.recv(4096)
    assert own_api.chat().status_code == 200


# the queue, and clients that leave


def in_thread(work) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def metric(api: Running, name: str) -> float:
    text = api.client.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} ([0-9.e+]+)$", text, re.MULTILINE)
    assert found, f"{name} is not in {text}"
    return float(found[1])


def until(condition) -> None:
    """Ask until it holds; the runs of a server come to rest by themselves."""
    for _ in range(2000):
        if condition():
            return
    raise AssertionError("never came to hold")


@pytest.mark.parametrize("own_api", [{"slots": 1, "queue": 1}], indirect=True)
def test_full_queue_turns_away_with_a_time_to_come_back(own_api):
    first, one = in_thread(lambda: own_api.chat("hold"))
    wait_for(own_api.model.begun)
    second, two = in_thread(lambda: own_api.chat("second"))
    until(lambda: metric(own_api, "medalign_queue_depth") == 1)
    third = own_api.chat("third")
    assert third.status_code == 429 and error_of(third)["type"] == "rate_limit_error"
    assert 1 <= int(third.headers["Retry-After"]) <= 30
    own_api.model.release.set()
    for thread in (first, second):
        thread.join(20)
    assert one[0].status_code == two[0].status_code == 200
    assert metric(own_api, 'medalign_rejected_total{reason="queue_full"}') == 1
    assert metric(own_api, "medalign_queue_depth") == metric(own_api, "medalign_running") == 0


@pytest.mark.parametrize("own_api", [{"slots": 1, "queue_seconds": 0.05}], indirect=True)
def test_waiting_has_an_end(own_api):
    thread, _ = in_thread(lambda: own_api.chat("hold"))
    wait_for(own_api.model.begun)
    assert own_api.chat("second").status_code == 429
    own_api.model.release.set()
    thread.join(20)
    assert own_api.chat("third").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("own_api", [{"slots": 1}], indirect=True)
def test_a_client_that_leaves_stops_the_generation(own_api, stream):
    body = {"model": "medalign", "stream": stream}
    body["messages"] = [{"role": "user", "content": "hold"}]
    text = json.dumps(body).encode()
    host, port = own_api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(f"{HEAD}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        wait_for(own_api.model.begun)
    wait_for(own_api.model.stopped)
    until(lambda: metric(own_api, "medalign_running") == 0)
    assert own_api.chat().status_code == 200  # the only slot is free again


# when the model fails


@pytest.mark.parametrize(("text", "status"), [("die", 503), ("fail", 503)])
def test_a_model_that_fails_is_a_clean_error(api, text, status):
    reply = api.chat(text)
    assert reply.status_code == status and int(reply.headers["Retry-After"]) > 0
    assert "broke on" not in error_of(reply)["message"]
    assert api.chat().status_code == 200


def test_a_stream_that_breaks_says_so_and_ends(api):
    with pytest.raises(openai.APIError, match="stopped in its answer"):
        list(
            api.openai.chat.completions.create(
                model="medalign", messages=[{"role": "user", "content": "die"}], stream=True
            )
        )


@pytest.mark.parametrize("own_api", [{"seconds": 0.2}], indirect=True)
def test_an_answer_has_an_end(own_api):
    reply = own_api.chat("hold")
    assert reply.status_code == 504 and "0.2 seconds" in error_of(reply)["message"]
    wait_for(own_api.model.stopped)


def test_health_is_of_the_model_and_liveness_of_the_server(own_api):
    assert own_api.client.get("/health").json() == {"status": "ok", "model": "medalign-135m"}
    own_api.model.fault = "the model's file was changed"
    reply = own_api.client.get("/health")
    assert reply.status_code == 503 and reply.json()["reason"] == "the model's file was changed"
    assert own_api.client.get("/health/live").status_code == 200
    refused = own_api.chat()
    assert refused.status_code == 503 and error_of(refused)["code"] == "model_not_ready"
    assert metric(own_api, "medalign_up") == 0
    own_api.model.fault = None
    assert own_api.chat().status_code == 200 and metric(own_api, "medalign_up") == 1


# counts, logs, CORS


def test_answers_are_counted_by_kind_and_nothing_of_them_is_kept(own_api, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    # Axolotl, imported by a test before, makes loggers that drop what others say below WARNING.
    for log in map(logging.getLogger, ("medalign.requests", "medalign.api", "medalign.gateway")):
        monkeypatch.setattr(log, "disabled", False)
        monkeypatch.setattr(log, "filters", [])
    for text in ("refuse", "sections", "other SECRETWORD", "other"):
        assert own_api.chat(text).status_code == 200
    counted = {k: metric(own_api, f'medalign_answers_total{{kind="{k}"}}') for k in (
        "refusal", "four_sections", "other", "broken_sections"
    )}  # fmt: skip
    assert counted == {"refusal": 1, "four_sections": 1, "other": 2, "broken_sections": 0}
    assert metric(own_api, 'medalign_tokens_total{kind="prompt"}') == 20
    route = 'route="/v1/chat/completions"'
    until(lambda: metric(own_api, f'medalign_requests_total{{{route},status="200"}}') == 4)
    assert metric(own_api, f"medalign_request_seconds_count{{{route}}}") == 4
    assert metric(own_api, "medalign_first_token_seconds_count") == 4
    logs = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("medalign"))
    assert "/v1/chat/completions 200" in logs
    for secret in ("SECRETWORD", KEY, ANSWER, "Be MedAlign"):
        assert secret not in logs and secret not in own_api.client.get("/metrics").text


def test_other_origins_are_not_invited_unless_named():
    for origins, header in ([], None), (["https://a.example"], "https://a.example"):
        for api in run(allow_origins=origins):
            reply = api.client.get("/models", headers={"Origin": "https://a.example"})
            assert reply.headers.get("access-control-allow-origin") == header


# Vertex AI's envelope


def test_predict_route_of_vertex():
    vertex = replace(SERVED, health_route="/ping", predict_route="/predict")
    for api in run(vertex):
        assert httpx.get(api.url + "/ping").status_code == 200
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        body = {"instances": [chat, {"prompt": "Fever is"}], "parameters": {"max_tokens": 7}}
        first, second = api.client.post("/predict", json=body).json()["predictions"]
        assert first["choices"][0]["message"]["content"] == ANSWER
        assert second["choices"][0]["text"] == ANSWER
        assert [asked["max_tokens"] for asked in api.model.asked] == [7, 7]
        reply = api.client.post("/predict", json={"instances": [chat, {"messages": 5}]})
        assert reply.status_code == 400 and "instances.1" in error_of(reply)["message"]
    for api in run():
        assert api.client.post("/predict", json=body).status_code == 404


# retrieval


def test_passages_are_shown_and_cited_whole_and_streamed():
    passage = Passage(
        id="SYN-9001",
        title="Fever",
        text="Fever raises the set point of the hypothalamus and the body warms.",
        topic="signs",
        source="tests",
    )
    others = [
        Passage(id=f"SYN-90{n}", title=t, text=f"{t} is another matter.", topic="x", source="tests")
        for n, t in ((10, "Asthma"), (11, "Gout"), (12, "Stroke"))
    ]
    served = replace(SERVED, index=Index.build([passage, *others]))
    question = "How does fever raise the set point of the hypothalamus?"
    for api in run(served):
        api.model.answers[question] = render(
            "A fever is heat.",
            "Fever raises the set point of the hypothalamus and the body warms.",
            "It shows infection.",
        )
        text = api.chat(question).json()["choices"][0]["message"]["content"]
        assert "warms [SYN-9001]." in text and parse(text).ok
        told = api.model.asked[-1]["messages"]
        assert told[0]["role"] == "system" and told[0]["content"].startswith("Be MedAlign.\n\n")
        assert "[SYN-9001]" in told[0]["content"] and told[1]["content"] == question
        stream = api.openai.chat.completions.create(
            model="medalign", messages=[{"role": "user", "content": question}], stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in stream) == text
        assert api.chat("hello").json()["choices"][0]["message"]["content"] == ANSWER
        assert api.model.asked[-1]["messages"][0]["content"] == "Be MedAlign."


# everything at once

_app = create_app(FakeModel(), replace(SERVED, predict_route="/predict"))
schema = schemathesis.openapi.from_dict(_app.openapi())


@pytest.fixture(scope="module")
def vertex_api() -> Iterator[Running]:
    yield from run(replace(SERVED, predict_route="/predict"))


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_makes_the_server_fail(vertex_api, case):
    reply = case.call(base_url=vertex_api.url, headers=AUTH)
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        assert reply.json()["error"]["message"]


def test_fuzzing_covers_every_route():
    paths = {str(operation.ok().path) for operation in schema.get_all_operations()}
    assert paths >= {"/v1/chat/completions", "/v1/completions", "/predict", "/health", "/metrics"}


def test_names_in_the_settings_file_are_known():
    file = Path(__file__).resolve().parent.parent / "deploy/serve.yaml"
    assert declared(file, Limits) == Limits(threads=None)
