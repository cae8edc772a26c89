"""The supervised child: restarted when it dies, given up if it never came up, its file watched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, script

from medalign.artifacts import StepError, sha256, write_json
from medalign.serve import checked, family_of_file, local_only
from medalign.worker import Remote, Worker, answers, free_port

# Stands in for llama-server: takes its options, wants its key, answers one token.
CHILD = """#!{python}
import http.server, json, os, sys
options = dict(zip(sys.argv[1::1], sys.argv[2::1]))
if open(options["--model"]).read() == "broken":
    sys.exit("cannot load it")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        good = self.headers["Authorization"] == "Bearer " + os.environ["LLAMA_API_KEY"]
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(json.dumps({{"choices": [{{"text": "a"}}]}}).encode())
    def log_message(self, *_): pass
http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    program, model = tmp_path / "llama-server", tmp_path / "medalign-135m-Q4_K_M.gguf"
    program.write_text(CHILD.format(python=sys.executable))
    program.chmod(0o700)
    model.write_text("weights")
    more = {"file_check_seconds": 0.01, "probe_seconds": 0.05}
    return Worker(
        program, model, slots=2, context=64, threads=1, log=tmp_path / "log/worker.log", **more
    )


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def supervised(worker: Worker, what) -> None:
    async def both() -> None:
        running = asyncio.create_task(worker.run())
        try:
            await what()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(both())


def test_killed_worker_comes_back_on_another_port(worker):
    async def kill() -> None:
        assert worker.fault == "the model is being loaded"
        await until(lambda: worker.fault is None)
        pid, url = worker.pid, worker.url
        os.kill(pid, signal.SIGKILL)
        await until(lambda: worker.restarts == 1 and worker.fault is None)
        assert worker.pid != pid and worker.url != url

    supervised(worker, kill)
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)  # gone with its supervisor


def test_nobody_without_its_key_may_ask_the_worker(worker):
    async def ask() -> None:
        await until(lambda: worker.fault is None)
        async with httpx.AsyncClient() as client:
            assert await answers(client, worker)
            stranger = Remote(worker.url, worker.model, "guess", 5)
            assert not await answers(client, stranger)

    supervised(worker, ask)
    assert worker.key not in " ".join(worker.command(1))


def test_worker_that_never_comes_up_is_given_up(worker):
    worker.file.write_text("broken")
    worker.loaded = (worker.file.stat().st_ino, 6, worker.file.stat().st_mtime_ns)
    with pytest.raises(StepError, match="cannot load it"):
        asyncio.run(worker.run())


@pytest.mark.parametrize("change", ["truncated", "replaced", "removed"])
def test_changed_file_turns_health_red(worker, change):
    async def alter() -> None:
        await until(lambda: worker.fault is None)
        if change == "truncated":
            os.truncate(worker.file, 3)
        elif change == "replaced":
            other = worker.file.with_name("other")
            other.write_text("weights")
            other.replace(worker.file)
        else:
            worker.file.unlink()
        assert "changed or removed" in worker.fault
        os.kill(worker.pid, signal.SIGKILL)  # what nobody checked is not loaded
        await until(lambda: worker.restarts == 1)
        await asyncio.sleep(0)
        assert "changed or removed" in worker.fault

    supervised(worker, alter)


def test_remote_that_answers_and_one_that_does_not(worker):
    async def ask() -> None:
        await until(lambda: worker.fault is None)
        for url, well in ((worker.url + "/v1/", True), ("http://127.0.0.1:9", False)):
            remote = Remote(url, "m", worker.key, 0.05)
            running = asyncio.create_task(remote.run())
            await until(lambda remote=remote: remote.fault != "the endpoint has not answered yet")
            assert (remote.fault is None) == well
            running.cancel()

    supervised(worker, ask)


def test_file_must_be_what_its_manifest_says(tmp_path, capsys):
    gguf = tmp_path / "medalign-135m-Q4_K_M.gguf"
    gguf.write_text("weights")
    checked(gguf)
    assert "no manifest" in capsys.readouterr().err
    write_json(gguf.with_name(gguf.name + ".manifest.json"), {"sha256": sha256(gguf)})
    checked(gguf)
    gguf.write_text("others")
    with pytest.raises(StepError, match="make gguf again"):
        checked(gguf)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "missing.gguf"], "does not exist"),
        (["--model", __file__, "--host", "0.0.0.0"], "set MEDALIGN_API_KEY"),
        (["--upstream", "http://127.0.0.1:9"], "needs --name"),
        (["--model", __file__, "--settings", __file__], "test_worker.py"),
    ],
)
def test_serve_says_what_is_wrong(arguments, words, monkeypatch):
    monkeypatch.delenv("MEDALIGN_API_KEY", raising=False)
    done = script("serve.py", *arguments)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_container_contract_of_vertex(base_gguf):
    """What Vertex AI sets, honoured by the real server: port, health and predict routes, no key."""
    assert subprocess.run(["make", "build/llama-server/llama-server"], cwd=ROOT).returncode == 0
    port = free_port()
    environment = {**os.environ, "AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": str(port)}
    environment |= {"AIP_HEALTH_ROUTE": "/ping", "AIP_PREDICT_ROUTE": "/predict"}
    environment.pop("MEDALIGN_API_KEY", None)
    command = [sys.executable, "scripts/serve.py", "--model", base_gguf, "--host", "0.0.0.0"]
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert child.poll() is None
        try:
            return httpx.get(url + "/ping").status_code == 200
        except httpx.TransportError:
            return False

    try:
        asyncio.run(until(healthy, 120))
        chat = {"messages": [{"role": "user", "content": "Hello"}]}
        body = {"instances": [chat, {"prompt": "Fever is"}], "parameters": {"max_tokens": 4}}
        predictions = httpx.post(url + "/predict", json=body, timeout=120).json()["predictions"]
        assert predictions[0]["choices"][0]["message"]["content"]
        assert predictions[1]["usage"]["completion_tokens"] == 4
    finally:
        child.terminate()
        assert child.wait(30) in (0, 143)


def test_names_of_files_and_hosts():
    assert family_of_file(Path("medalign-135m-Q4_K_M.gguf")) == "smollm2-135m"
    assert family_of_file(Path("medalign-7b-Q8_0.gguf")) == "mistral-7b"
    assert family_of_file(Path("other.gguf")) is None
    assert local_only("127.0.0.1") and local_only("::1") and local_only("localhost")
    assert not local_only("0.0.0.0") and not local_only("10.0.0.1")


@contextmanager
def llama_server(gguf: Path, slots: int, context: int) -> Iterator[tuple[Worker, str]]:
    """The API before llama.cpp's own server, compiled if need be; its worker and address."""
    from fake_model import running

    from medalign.admission import Limits
    from medalign.api import create_app
    from medalign.gateway import Served

    made = subprocess.run(["make", "build/llama-server/llama-server"], cwd=ROOT)
    assert made.returncode == 0
    program = ROOT / "build/llama-server/llama-server"
    log = ROOT / "build/serve/test.log"
    worker = Worker(program, gguf, slots=slots, context=context, threads=2, log=log)
    limits = Limits(slots=slots, queue=16)
    with running(create_app(worker, Served("medalign", context=context), limits)) as url:
        asyncio.run(until(lambda: httpx.get(url + "/health").status_code == 200))
        yield worker, url


@pytest.mark.slow
def test_kills_under_the_load_of_64_clients_lose_no_request(base_gguf):
    """Clients ask again on 429 and 503 until answered; nothing else comes, and nobody hangs."""
    requests, kill_at = 200, [40, 100]
    errors: Counter[tuple[int, str]] = Counter()
    done: list[int] = []

    async def one(client: httpx.AsyncClient, body: dict) -> int:
        while True:
            reply = await client.post("/v1/completions", json=body)
            if reply.status_code == 200:
                return reply.json()["usage"]["completion_tokens"]
            errors[reply.status_code, reply.json()["error"]["code"]] += 1
            assert reply.status_code in (429, 503), reply.text
            await asyncio.sleep(float(reply.headers["Retry-After"]) / 10)

    async def load(worker: Worker, url: str) -> None:
        numbers = iter(range(requests))
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

            async def ask() -> None:
                for n in numbers:
                    body = {"model": "medalign", "prompt": f"{n}. Fever", "max_tokens": 16}
                    done.append(await one(client, body))
                    if kill_at and len(done) >= kill_at[0]:
                        kill_at.pop(0)
                        os.kill(worker.pid, signal.SIGKILL)

            await asyncio.gather(*(ask() for _ in range(64)))

    with llama_server(base_gguf, slots=8, context=128) as (worker, url):
        asyncio.run(load(worker, url))
        assert httpx.get(url + "/health").status_code == 200
        assert worker.restarts == 2 and not kill_at
    assert len(done) == requests and all(done)
    assert errors[503, "worker_died"] > 0
    assert {code for _, code in errors} <= {"worker_died", "model_not_ready", "rate_limit_exceeded"}


@pytest.mark.slow
def test_llama_server_answers_in_sections_or_refuses_and_survives_a_kill(base_gguf):
    """The real worker on the untouched base: form by grammar, restart, clean errors."""
    from medalign.sections import parse

    with (
        llama_server(base_gguf, slots=2, context=1024) as (worker, url),
        httpx.Client(base_url=url, timeout=300) as client,
    ):

        def ask(text: str, **more) -> httpx.Response:
            body = {"model": "medalign", "messages": [{"role": "user", "content": text}]}
            body |= {"temperature": 0, "max_tokens": 700, **more}
            return client.post("/v1/chat/completions", json=body)

        def started_again() -> bool:  # /health alone may still speak of the child just killed
            return worker.restarts == 1 and client.get("/health").status_code == 200

        free = ask("What is anemia?", max_tokens=60).json()["choices"][0]["message"]["content"]
        assert not parse(free).ok
        form = {"type": "four_sections"}
        held = ask("What is anemia?", response_format=form).json()["choices"][0]
        assert held["finish_reason"] == "stop"
        assert parse(held["message"]["content"]).ok, held
        assert ask("word " * 3000).json()["error"]["code"] == "context_length_exceeded"

        with client.stream(
            "POST",
            "/v1/chat/completions",
            json={
                "model": "medalign",
                "messages": [{"role": "user", "content": "Tell me a long story."}],
                "stream": True,
                "max_tokens": 900,
            },
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(worker.pid, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert '"worker_died"' in rest[-1]
        asyncio.run(until(started_again))
        assert ask("Hello", max_tokens=4).status_code == 200
