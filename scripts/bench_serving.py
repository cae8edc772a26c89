"""Load on loopback: MedAlign's server beside llama_cpp.server and llama.cpp's own, in one run.

    python scripts/bench_serving.py --model runs/…/medalign-135m-Q4_K_M.gguf \\
        --out docs/results/bench-serving.json

Each server is started alone, warmed up, asked by one client, then by 64 at once; a client that
gets 429 or 503 waits as long as Retry-After says and asks again, so that every request is
answered. All serve the same file with the same context, threads and greedy decoding, and all
answers have the same length. The rounds go A B C, A B C; the table holds medians and ratios to
the first. Figures of a machine, not a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    require_file,
    run_step,
    write_json,
    written_whole,
)
from medalign.worker import free_port

PROGRAM = ROOT / "build/llama-server/llama-server"
# What llama_cpp.server wants besides what is installed; its extra does not fit beside Axolotl.
EXTRAS = ["sse-starlette==3.7.0", "starlette-context==0.5.1", "pydantic-settings==2.16.3"]
BESIDE = ROOT / "build/bench/llama_cpp_server"
TOPICS = "fever cough anemia asthma gout stroke sepsis eczema migraine jaundice".split()
SLOTS, CONTEXT = 8, 512


def commands(model: Path, port: int) -> dict[str, list[str]]:
    """How each server is started on `port`."""
    threads = str(os.cpu_count() or 1)
    python = sys.executable
    return {
        "medalign": [
            *(python, str(ROOT / "scripts/serve.py"), "--model", str(model)),
            *("--port", str(port), "--name", "m", "--slots", str(SLOTS)),
            *("--context", str(CONTEXT)),
        ],
        "llama_cpp.server": [
            *(python, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "m"),
            *("--port", str(port), "--n_ctx", str(CONTEXT), "--n_threads", threads),
            *("--n_threads_batch", threads, "--verbose", "false"),
        ],
        "llama-server": [
            *(str(PROGRAM), "--model", str(model), "--alias", "m", "--port", str(port)),
            *("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT), "--no-webui"),
            *("--threads", threads, "--threads-batch", threads, "--cache-ram", "0"),
        ],
    }


def install_extras() -> None:
    """Put EXTRAS into a folder of their own."""
    if not BESIDE.exists():
        with written_whole(BESIDE) as folder:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*command, "--target", str(folder), *EXTRAS], check=True)


@contextmanager
def server(name: str, model: Path) -> Iterator[str]:
    """One of the servers, answering; yields its address."""
    port = free_port()
    environment = {**os.environ, "MEDALIGN_API_KEY": "", "PYTHONPATH": str(BESIDE)}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            commands(model, port)[name], stdout=log, stderr=log, env=environment
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                if child.poll() is not None:
                    log.seek(0)
                    raise StepError(f"{name} ended: {log.read()[-500:].decode(errors='replace')}")
                try:
                    if httpx.post(
                        url + "/v1/completions", json=body("A", 1), timeout=60
                    ).is_success:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
            yield url
        finally:
            child.terminate()
            child.wait(30)


def body(text: str, tokens: int) -> dict[str, Any]:
    """A greedy completion that does not end by itself before `tokens`."""
    return {"model": "m", "prompt": text, "max_tokens": tokens, "temperature": 0}


async def ask(client: httpx.AsyncClient, url: str, text: str, tokens: int) -> dict[str, float]:
    """One request until it is answered: seconds, tokens, tries."""
    began, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            reply = await client.post(url + "/v1/completions", json=body(text, tokens))
        except httpx.TransportError:
            await asyncio.sleep(0.2)
            continue
        if reply.status_code in (429, 503):
            await asyncio.sleep(float(reply.headers.get("Retry-After", 1)))
            continue
        reply.raise_for_status()
        got = reply.json()["usage"]["completion_tokens"]
        return {"seconds": time.monotonic() - began, "tokens": got, "tries": tries}


async def load(url: str, clients: int, requests: int, tokens: int) -> dict[str, float]:
    """`requests` requests by `clients` at once."""
    texts = iter(
        f"Question {n}: what should a nurse know about {TOPICS[n % len(TOPICS)]}? Answer:"
        for n in range(requests)
    )
    done: list[dict[str, float]] = []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:

        async def one() -> None:
            for text in texts:
                done.append(await ask(client, url, text, tokens))

        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(clients)))
        wall = time.monotonic() - began
    seconds = sorted(d["seconds"] for d in done)
    return {
        "clients": clients,
        "requests": requests,
        "completed": len(done),
        "tries": sum(d["tries"] for d in done),
        "wall_seconds": wall,
        "requests_per_second": len(done) / wall,
        "tokens_per_second": sum(d["tokens"] for d in done) / wall,
        "p50_seconds": statistics.median(seconds),
        "p95_seconds": seconds[int(0.95 * (len(seconds) - 1))],
    }


def table(runs: list[dict[str, Any]], names: list[str]) -> str:
    """Medians of the rounds, and the ratio of requests/s to the first server's."""
    rows = ["| clients | server | requests | requests/s | p50 s | p95 s | tokens/s | MedAlign is |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for clients in sorted({r["clients"] for r in runs}):
        middle: dict[str, dict[str, float]] = {}
        for name in names:
            mine = [r for r in runs if (r["server"], r["clients"]) == (name, clients)]
            keys = ("completed", "requests_per_second", "p50_seconds", "p95_seconds")
            middle[name] = {
                key: statistics.median(r[key] for r in mine) for key in (*keys, "tokens_per_second")
            }
        for name in names:
            m = middle[name]
            ratio = middle[names[0]]["requests_per_second"] / m["requests_per_second"]
            rows.append(
                f"| {clients} | {name} | {m['completed']:.0f} | {m['requests_per_second']:.2f} "
                f"| {m['p50_seconds']:.2f} | {m['p95_seconds']:.2f} "
                f"| {m['tokens_per_second']:.0f} | {ratio:.2f} × as fast |"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--servers", default="medalign,llama_cpp.server,llama-server")
    arguments = parser.parse_args()
    model = require_file(arguments.model, "make gguf makes one")
    began, names, runs = time.monotonic(), arguments.servers.split(","), []
    if "llama_cpp.server" in names:
        install_extras()
    for number in range(arguments.rounds):
        for name in names:
            with server(name, model) as url:
                for clients, requests in ((1, 20), (arguments.clients, arguments.requests)):
                    got = asyncio.run(load(url, clients, requests, arguments.tokens))
                    runs.append({"server": name, "round": number, **got})
                    print(f"{name}: {runs[-1]}", flush=True)
    print(table(runs, names))
    settings: dict[str, Any] = {k: str(v) for k, v in vars(arguments).items()}
    settings |= {"slots": SLOTS, "context": CONTEXT}
    write_json(
        arguments.out,
        manifest("serving bench", {"model": model}, began, settings=settings, runs=runs),
    )


if __name__ == "__main__":
    run_step(main)
