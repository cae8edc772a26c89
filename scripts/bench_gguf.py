"""A GGUF file by llama-cpp-python, as MedAlign runs it, beside llama.cpp's own llama-bench.

    python scripts/bench_gguf.py model.gguf 2     # on two threads, JSON

llama-bench is compiled from the source that the installed llama-cpp-python carries, against the
libraries that its wheel put beside it: the same engine, so that what is measured is our way to it.
Both read 512 tokens of prompt and write 128 tokens, three times after a warm-up, on all cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from medalign.artifacts import ROOT, StepError, require_file, scratch
from medalign.fetch_llama_cpp import fetch
from medalign.gguf_model import load

SOURCE = ROOT / "build/bench/llama.cpp"
PROGRAM = ROOT / "build/bench/llama-bench"
PROMPT, GENERATED, REPEATS = 512, 128, 3


def compile_llama_bench() -> Path:
    """The program, compiled once; StepError with the compiler's words."""
    if PROGRAM.exists():
        return PROGRAM
    if not SOURCE.exists():
        fetch(SOURCE, ("tools/llama-bench/", "common/", "include/", "ggml/include/", "vendor/"))
    libraries = Path(sysconfig.get_path("platlib")) / "lib"
    named = ("llama-common", "llama", "ggml", "ggml-cpu", "ggml-base")
    with scratch(PROGRAM) as program:
        parts = ["c++", "-O2", "-std=c++17", "-o", str(program)]
        parts += [
            f"-I{SOURCE / part}" for part in ("", "common", "include", "ggml/include", "vendor")
        ]
        parts += map(str, sorted((SOURCE / "tools/llama-bench").glob("*.cpp")))
        parts += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", *(f"-l{n}" for n in named)]
        done = subprocess.run([*parts, "-pthread"], capture_output=True, text=True)
        if done.returncode:
            raise StepError(f"llama-bench does not compile: {done.stderr[-1500:]}")
        program.replace(PROGRAM)
    return PROGRAM


def by_llama_bench(model: Path, threads: int) -> dict[str, float]:
    """Prompt and generation tokens/s as llama.cpp's own bench measures them."""
    parts = [str(compile_llama_bench()), "-m", str(model), "-o", "json", "-t", str(threads)]
    parts += ["-p", str(PROMPT), "-n", str(GENERATED), "-r", str(REPEATS)]
    done = subprocess.run(parts, capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"llama-bench ended with {done.returncode}: {done.stderr[-1500:]}")
    tests = json.loads(done.stdout)
    return {
        "prompt": next(t["avg_ts"] for t in tests if t["n_prompt"] and not t["n_gen"]),
        "generated": next(t["avg_ts"] for t in tests if t["n_gen"] and not t["n_prompt"]),
    }


def by_medalign(model: Path, threads: int) -> dict[str, float]:
    """The same through gguf_model.load: a prompt evaluated, then tokens generated greedily."""
    context = PROMPT + GENERATED + 8
    llm = load(model, n_ctx=context, n_threads=threads, n_threads_batch=threads)
    prompt = [5 + n % 1000 for n in range(PROMPT)]
    found: dict[str, list[float]] = {"prompt": [], "generated": []}
    for _ in range(1 + REPEATS):  # the first one warms up
        llm.reset()
        began = time.monotonic()
        llm.eval(prompt)
        found["prompt"].append(PROMPT / (time.monotonic() - began))
        llm.reset()
        answer = llm.generate(prompt[:1], temp=0.0)  # llama-bench too begins without a prompt
        next(answer)
        began = time.monotonic()
        for _ in range(GENERATED):
            next(answer)
        found["generated"].append(GENERATED / (time.monotonic() - began))
    return {key: statistics.fmean(rates[1:]) for key, rates in found.items()}


def compare_gguf(model: Path, rounds: int, threads: int) -> list[dict[str, dict[str, float]]]:
    """Tokens/s of both ways, in turns, each in a process of its own."""
    model = require_file(model, "make gguf makes one")
    compile_llama_bench()
    found = []
    for _ in range(rounds):
        parts = [
            sys.executable,
            "-P",
            str(ROOT / "scripts/bench_gguf.py"),
            str(model),
            str(threads),
        ]
        done = subprocess.run(parts, capture_output=True, text=True)
        if done.returncode:
            raise StepError(f"bench_gguf.py: {done.stderr[-1500:]}")
        ours = json.loads(done.stdout.splitlines()[-1])
        found.append({"medalign": ours, "llama-bench": by_llama_bench(model, threads)})
        print(f"GGUF: {found[-1]}", flush=True)
    return found


if __name__ == "__main__":
    print(json.dumps(by_medalign(Path(sys.argv[1]), int(sys.argv[2]))))
