"""Serve a model over the OpenAI API, on this machine only unless told otherwise.

    make serve                                        # the aligned model of make dpo
    MEDALIGN_API_KEY=… python scripts/serve.py --model runs/…/medalign-135m-Q4_K_M.gguf --port 8000
    python scripts/serve.py --upstream http://127.0.0.1:8001 --name medalign-7b    # vLLM or Ollama

The GGUF is compared with its manifest's hash, then served by llama.cpp behind medalign.api.
The keys come from the environment: MEDALIGN_API_KEY is what clients must send, and without it
only loopback is served; MEDALIGN_UPSTREAM_KEY is what an upstream wants. On Vertex AI the port
and the routes come from AIP_HTTP_PORT, AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE; who may ask is
decided before the container there (AIP_MODE says so): it wants no key of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import sys
from pathlib import Path

import uvicorn

from medalign.admission import Limits
from medalign.api import create_app
from medalign.artifacts import ROOT, StepError, manifest_path, require_file, run_step, sha256
from medalign.gateway import Served
from medalign.recipe import MODELS, model, read_yaml, system_prompt
from medalign.retrieval import load
from medalign.settings import declared
from medalign.worker import Backend, Remote, Worker

PROGRAM = ROOT / "build/llama-server/llama-server"


def checked(gguf: Path) -> None:
    """Raise StepError unless `gguf` is what its manifest says; one without is let pass, aloud."""
    beside = manifest_path(gguf)
    if not beside.exists():
        print(f"{gguf.name} has no manifest: nobody knows what it was made from", file=sys.stderr)
    elif json.loads(beside.read_text()).get("sha256") != sha256(gguf):
        raise StepError(f"{gguf} is not the file that {beside.name} describes; make gguf again")


def family_of_file(gguf: Path) -> str | None:
    """The family of recipes/models.yaml whose name the file's name begins with."""
    names = {family: model(family).name for family in read_yaml(MODELS)}
    return next((f for f, name in names.items() if gguf.name.startswith(name + "-")), None)


def local_only(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="a GGUF")
    what.add_argument("--upstream", help="an OpenAI-compatible endpoint that runs already")
    parser.add_argument("--name", help="the model's name for clients")
    parser.add_argument("--upstream-model", help="its name at the upstream (default: --name)")
    parser.add_argument("--alias", action="append", default=[], help="another name, repeatable")
    parser.add_argument("--retrieval", type=Path, help="passages to cite: JSONL or a built index")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("AIP_HTTP_PORT", "8000")))
    parser.add_argument("--settings", type=Path, default=ROOT / "deploy/serve.yaml")
    parser.add_argument("--slots", type=int, help="overrides the settings")
    parser.add_argument("--context", type=int, help="overrides the settings")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="llama.cpp's server")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    limits = declared(arguments.settings, Limits)
    limits.slots = arguments.slots or limits.slots
    limits.context = arguments.context or limits.context
    key = os.environ.get("MEDALIGN_API_KEY") or None
    on_vertex = os.environ.get("AIP_MODE") == "PREDICTION"
    if key is None and not local_only(arguments.host) and not on_vertex:
        raise StepError(f"{arguments.host} is not loopback: set MEDALIGN_API_KEY first")

    served = Served(arguments.name or "", arguments.alias, system_prompt(), key)
    backend: Backend
    if arguments.upstream:
        if not arguments.name:
            raise StepError("--upstream needs --name, the model's name for clients")
        backend = Remote(
            arguments.upstream,
            arguments.upstream_model or arguments.name,
            os.environ.get("MEDALIGN_UPSTREAM_KEY"),
            limits.probe_seconds,
        )
        served.context = limits.context or 8192
    else:
        gguf = require_file(arguments.model, "make gguf makes one")
        checked(gguf)
        family = family_of_file(gguf)
        served.name = arguments.name or (model(family).name if family else gguf.stem)
        served.context = limits.context or (model(family).num_ctx if family else 4096)
        served.made = int(gguf.stat().st_mtime)
        backend = Worker(
            arguments.program,
            gguf,
            slots=limits.slots,
            context=served.context,
            threads=limits.threads or os.cpu_count() or 1,
            log=ROOT / "build/serve/llama-server.log",
            file_check_seconds=limits.file_check_seconds,
            probe_seconds=limits.probe_seconds,
        )
    if arguments.retrieval:
        served.index = load(arguments.retrieval)
    if served.name != "medalign":
        served.aliases.append("medalign")
    served.health_route = os.environ.get("AIP_HEALTH_ROUTE", "/health")
    served.predict_route = os.environ.get("AIP_PREDICT_ROUTE")

    app = create_app(backend, served, limits)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            arguments.host,
            arguments.port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=10,
            server_header=False,
        )
    )
    failures: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            failures.append(error)
            server.should_exit = True

    app.state.ended = ended
    where = f"http://{arguments.host}:{arguments.port}/v1"
    print(f"{served.name} on {where}" + ("" if key else ", without a key"), flush=True)
    server.run()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    run_step(main)
