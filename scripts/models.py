"""The models that evaluations ask: one name, one adapter of lm-eval.

runs/…/merged               a model folder, by transformers (likelihoods and answers)
runs/…/x-Q4_K_M.gguf        a GGUF, by llama.cpp (likelihoods and answers)
http://127.0.0.1:8000/v1    an OpenAI-compatible endpoint (answers); #name after it, key in
                            OPENAI_API_KEY
ollama:medalign             a model of Ollama by its own API (answers); OLLAMA_HOST
vllm:runs/…/merged          by vLLM, on a GPU
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign.artifacts import StepError, sha256


@dataclass
class Model:
    """A model to ask. lm: of lm-eval; identity: what its answers hang on, for cache and manifest.

    likelihoods: whether it gives them, so that options can be scored; else answers are read.
    """

    name: str
    lm: Any
    identity: dict[str, Any]
    likelihoods: bool


def folder_digest(path: Path) -> str:
    """SHA-256 over the names and digests of a model folder's weights, tokenizer and settings."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model"):
            digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def of_folder(path: Path, dtype: str | None = None) -> Model:
    """A model folder, by transformers."""
    from medalign.hf_lm import Folder

    if not (path / "config.json").exists():
        raise StepError(f"{path}: no config.json; make merge writes a model folder")
    lm = Folder(path, dtype)
    identity = {"model": str(path), "sha256": folder_digest(path), "dtype": lm.dtype_name}
    return Model(path.name, lm, identity, True)


def of_gguf(path: Path) -> Model:
    """A GGUF."""
    from medalign.gguf_lm import GGUF

    return Model(path.name, GGUF(path), {"model": str(path), "sha256": sha256(path)}, True)


def of_endpoint(where: str) -> Model:
    """An OpenAI-compatible endpoint: base URL, and the model's name after a #."""
    from lm_eval.models.openai_completions import LocalChatCompletion

    class Endpoint(LocalChatCompletion):
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            try:
                return super().generate_until(requests, disable_tqdm)
            except Exception as error:  # whatever aiohttp, tenacity and lm-eval make of it
                raise StepError(f"{url} does not answer as a chat endpoint ({error!r})") from error

    url, _, name = where.partition("#")
    lm = Endpoint(
        base_url=f"{url.rstrip('/')}/chat/completions",
        model=name or "medalign",
        num_concurrent=int(os.environ.get("CONCURRENT", "4")),
        tokenizer_backend=None,
        timeout=600,
    )
    return Model(name or url, lm, {"model": where, "sha256": None}, False)


def of_ollama(name: str) -> Model:
    """A model of Ollama."""
    from medalign.ollama_lm import Ollama

    lm = Ollama(name, os.environ.get("OLLAMA_HOST", "http://127.0.0.1:11434"))
    return Model(name, lm, {"model": f"ollama:{name}", "sha256": lm.digest()}, False)


def of_vllm(path: str) -> Model:
    """A model folder served by vLLM inside this process."""
    from lm_eval.models.vllm_causallms import VLLM

    lm = VLLM(path, dtype="auto", batch_size="auto", max_model_len=4096)
    return Model(path, lm, {"model": f"vllm:{path}", "sha256": folder_digest(Path(path))}, True)


def open_model(where: str) -> Model:
    """The model that `where` names. StepError if there is none such."""
    if where.startswith(("http://", "https://")):
        return of_endpoint(where)
    if where.startswith("ollama:"):
        return of_ollama(where.removeprefix("ollama:"))
    if where.startswith("vllm:"):
        return of_vllm(where.removeprefix("vllm:"))
    path = Path(where)
    if path.is_dir() and (path / "merged").is_dir():
        path = path / "merged"  # a run
    if path.is_dir():
        return of_folder(path)
    if path.suffix == ".gguf" and path.exists():
        return of_gguf(path)
    raise StepError(f"{where}: no run, model folder, GGUF, http://…, ollama:… or vllm:…")
