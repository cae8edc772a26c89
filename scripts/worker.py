"""llama.cpp's server as a supervised child: one model on loopback, started again when it dies.

The gateway (medalign.gateway) talks to it over HTTP. Its key is drawn at random and handed over
in the environment, so that nobody else on this machine can ask it. An endpoint that runs already
(vLLM, Ollama) is a `Remote`: the same face, nothing to supervise.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, Protocol

import httpx

from medalign.artifacts import StepError, require_file

PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
PATIENCE = 120.0  # seconds for the one token that shows that a model answers; it may have to wait
LONGEST_PAUSE = 30.0  # seconds between two starts of a worker that keeps dying


class Backend(Protocol):
    """What the gateway needs to know of whatever answers."""

    url: str
    model: str
    headers: dict[str, str]
    restarts: int
    heard: float  # when it last sent something, time.monotonic()

    @property
    def fault(self) -> str | None:
        """Why no request can be answered now, None if it can."""

    async def run(self) -> None:
        """Keep it running and watched until cancelled."""

    def constrained(self, grammar: str) -> dict[str, Any]:
        """The field of a request that holds the answer to a grammar (GBNF)."""


async def answers(client: httpx.AsyncClient, backend: Backend) -> bool:
    """True if the model gives one token in time, or is giving them to others meanwhile."""
    began = time.monotonic()
    body = {"model": backend.model, "prompt": "A", "max_tokens": 1}
    try:
        reply = await client.post(
            backend.url + "/v1/completions", json=body, headers=backend.headers, timeout=PATIENCE
        )
        return reply.status_code == 200
    except httpx.HTTPError:
        return backend.heard > began


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Inode, bytes and time of change of a file: another stamp is another file. None if gone."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


class Remote:
    """An OpenAI-compatible endpoint that someone else runs."""

    def __init__(self, url: str, model: str, key: str | None, probe_seconds: float):
        self.url, self.model, self.restarts = url.rstrip("/").removesuffix("/v1"), model, 0
        self.heard = 0.0
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.probe_seconds = probe_seconds
        self.fault: str | None = "the endpoint has not answered yet"

    def constrained(self, grammar: str) -> dict[str, Any]:
        return {"structured_outputs": {"grammar": grammar}}  # vLLM's name for it

    async def run(self) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                well = await answers(client, self)
                self.fault = None if well else "the endpoint does not answer"
                await asyncio.sleep(self.probe_seconds if well else 1)


class Worker:
    """A llama-server of this project's own.

    model: the GGUF. slots: requests generated side by side. context: tokens of one slot.
    `pid` is the child's, for those who watch it.
    """

    def __init__(
        self,
        program: Path,
        model: Path,
        *,
        slots: int,
        context: int,
        threads: int,
        log: Path,
        file_check_seconds: float = 2.0,
        probe_seconds: float = 30.0,
    ):
        require_file(program, "make serve compiles it")
        require_file(model, "make gguf makes one")
        self.program, self.file, self.log = program, model, log
        self.slots, self.context, self.threads = slots, context, threads
        self.file_check_seconds, self.probe_seconds = file_check_seconds, probe_seconds
        self.model, self.restarts = model.stem, 0
        self.heard = 0.0
        self.key = secrets.token_urlsafe(32)
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self.url = ""
        self.pid: int | None = None
        self.loaded = stamp(model)
        self._up = self._ever_up = False

    @property
    def fault(self) -> str | None:
        if stamp(self.file) != self.loaded:
            return f"{self.file.name} was changed or removed since it was loaded; start anew"
        return None if self._up else "the model is being loaded"

    def constrained(self, grammar: str) -> dict[str, Any]:
        return {"grammar": grammar}

    def command(self, port: int) -> list[str]:
        """The command line of llama-server."""
        return [
            *(str(self.program), "--model", str(self.file), "--alias", self.model),
            *("--host", "127.0.0.1", "--port", str(port), "--offline", "--no-webui", "--no-slots"),
            *("--parallel", str(self.slots), "--ctx-size", str(self.slots * self.context)),
            *("--threads", str(self.threads), "--threads-batch", str(self.threads)),
            *("--cache-ram", "0", "--jinja", "--reasoning-format", "none", "--no-kv-unified"),
        ]

    async def run(self) -> None:
        """Start the child, wait for its end, start it again; StepError if it never came up."""
        pause = 0.5
        while True:
            if stamp(self.file) != self.loaded:  # never load what nobody has checked
                await asyncio.sleep(self.file_check_seconds)
                continue
            began = time.monotonic()
            port = free_port()
            environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            environment |= {"LLAMA_API_KEY": self.key, "OMP_NUM_THREADS": str(self.threads)}
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                child = await asyncio.create_subprocess_exec(
                    *self.command(port), stdout=log, stderr=log, env=environment
                )
            self.url, self.pid = f"http://127.0.0.1:{port}", child.pid
            watched = asyncio.create_task(self.watch())
            try:
                await child.wait()
            finally:
                watched.cancel()
                self._up = False
                if child.returncode is None:
                    child.terminate()
                    await child.wait()
            if not self._ever_up:
                words = self.log.read_text(errors="replace").splitlines()[-5:]
                raise StepError(f"llama-server cannot serve {self.file}: " + " | ".join(words))
            self.restarts += 1
            lived = time.monotonic() - began
            pause = 0.5 if lived > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def watch(self) -> None:
        """Set `_up` once the model answers, and look again now and then."""
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                well = await answers(client, self)
                self._up = well
                self._ever_up |= well
                await asyncio.sleep(self.probe_seconds if well else 0.1)
