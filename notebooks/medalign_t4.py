# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#     provenance: []
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   language_info:
#     name: python
# ---

# %% [markdown]
# # MedAlign on a T4: train Mistral-7B, download the GGUF
#
# Teaches Mistral-7B-Instruct-v0.3 to explain medical terms in four sections (Definition,
# Explanation, Clinical Relevance, Note) and makes of it one file for Ollama. Put the repository's
# URL into the next cell, then Runtime → Run all.
#
# **Not for clinical use.** Answers are made by a language model and may be wrong.
#
# | step | expected on Colab's free T4 |
# |---|---|
# | environment | 15 to 20 minutes |
# | training | 15 to 25 minutes, and the download of 14.5 GB before it |
# | merge, GGUF | not known; about 65 GB of disk by arithmetic, the environment with it |
# | three questions | minutes: llama.cpp runs on the CPU here |
#
# **Not yet run on a GPU.** These are expectations. What has been run is the rehearsal: the same
# cells on a CPU, two steps of the same recipe on a tiny random Mistral.

# %%
import json
import os
import shlex
import shutil
import subprocess
import sys
from codecs import getincrementaldecoder
from pathlib import Path

import matplotlib.pyplot as plt

REPO = ""  # the repository to clone: https://…/medalign.git
RECIPE = "recipes/mistral-7b/sft-lora-t4.yaml"

# %% [markdown]
# ## The repository
#
# A notebook that runs inside the repository uses that one, otherwise `REPO` is cloned.

# %%
# What the kernel sets for itself is not for the environment, which has another Python.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTHONPATH")}
ENVIRONMENT["PYTHONUNBUFFERED"] = "1"


def run(*command):
    """Run a command and show its output as it comes; a failure fails the cell."""
    first, *more = shlex.join(command).splitlines()
    print("$", first, *("…" for _ in more[:1]), flush=True)
    decoder = getincrementaldecoder("utf-8")("replace")
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        while chunk := child.stdout.read1():
            print(decoder.decode(chunk), end="", flush=True)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, shlex.join(command))


def last_word(*command):
    """Run a command that answers one thing and return it; a failure fails the cell."""
    return subprocess.check_output(command, env=ENVIRONMENT, text=True).split()[-1]


here = Path.cwd()
places = [here, here.parent, here / "medalign"]
found = [p for p in places if (p / "Makefile").is_file() and (p / "recipes").is_dir()]
if not found:
    if not REPO:
        raise ValueError('write the repository\'s URL into REPO = "" in the first code cell')
    run("git", "clone", "--depth", "1", REPO, "medalign")
    found = [here / "medalign"]
os.chdir(found[0])
print(Path.cwd())

# %%
PY = ".venv/bin/python"
MAKE = ["make", f"RECIPE={RECIPE}"]
RUN = Path(RECIPE.replace("recipes/", "runs/")).with_suffix("")

# Two steps on a CPU, on a tiny random model: how these cells are tested.
REHEARSAL = os.environ.get("MEDALIGN_REHEARSAL") == "1"
if REHEARSAL:
    MAKE += ["REHEARSAL=1"]
    RUN = "build/rehearsal" / RUN.relative_to("runs")

GGUF = RUN / "medalign-7b-Q4_K_M.gguf"
print(shlex.join(MAKE), "→", RUN)

# %% [markdown]
# ## The GPU
#
# And the recipe that MedAlign would pick for it.

# %%
if shutil.which("nvidia-smi"):
    run("nvidia-smi")
run(sys.executable, "scripts/pick_recipe.py")
picked = last_word(sys.executable, "scripts/pick_recipe.py")
if picked.endswith("-cpu.yaml") and not REHEARSAL:
    raise RuntimeError("no GPU here; choose Runtime → Change runtime type → T4 GPU and run all")
if picked != RECIPE:
    print(f"this notebook trains {RECIPE}")

# %% [markdown]
# ## The environment
#
# MedAlign needs Python 3.11; Colab's own is newer, uv brings it. The environment lies in `.venv`,
# apart from the notebook's.

# %%
if not Path(".venv/.ready").exists():
    python = shutil.which("python3.11")
    if python is None:
        uv = [sys.executable, "-m", "uv", "python"]
        run(sys.executable, "-m", "pip", "install", "--quiet", "uv")
        run(*uv, "install", "3.11")
        python = last_word(*uv, "find", "--system", "3.11")
    run("make", "setup", f"PYTHON={python}")

SHOW_GPU = "import torch; print(torch.__version__, torch.cuda.get_device_name())"
if not REHEARSAL:
    try:
        run(PY, "-c", SHOW_GPU)
    except subprocess.CalledProcessError:
        # PyPI's torch is built with CUDA 13, which NVIDIA's drivers before 580 cannot run.
        torch = last_word(PY, "-c", "import torch; print(torch.__version__.split('+')[0])")
        index = "https://download.pytorch.org/whl/cu126"
        run(PY, "-m", "pip", "install", f"torch=={torch}+cu126", "--extra-index-url", index)
        run(PY, "-c", SHOW_GPU)

# %% [markdown]
# ## Training
#
# Stopped or disconnected? Run the cell again: it goes on from the last checkpoint, as long as Colab
# keeps the machine.

# %%
run(*MAKE, "sft")

# %%
training = json.loads((RUN / "adapter/training.json").read_text())
logged = [step for step in training["steps"] if "loss" in step]
plt.figure(figsize=(7, 3))
plt.plot([step["step"] for step in logged], [step["loss"] for step in logged], marker=".")
plt.xlabel("step")
plt.ylabel("training loss")
plt.show()
print(f"{len(logged)} steps logged, final loss {training['final_loss']:.4f}")

# %% [markdown]
# ## One model, one file
#
# The adapter is merged into its base, the result converted to GGUF and quantized to Q4_K_M.

# %%
run(*MAKE, "merge")

# %%
run(*MAKE, "gguf")

# %% [markdown]
# ## Three questions
#
# Asked of the GGUF, greedily, under the system prompt of training. Whether an answer keeps the
# format is judged as `make eval` does; whether it is true is not.

# %%
QUESTIONS = [
    "Explain the medical term: Hypertension",
    "What does tachycardia mean?",
    "I read the word biopsy in a leaflet. What is it?",
]
ASK = """import sys
from pathlib import Path
from medalign.evaluate_format import MAX_TOKENS
from medalign.gguf_model import ask, load
from medalign.recipe import system_prompt
from medalign.sections import parse

llm = load(Path(sys.argv[1]))
for question in sys.argv[2:]:
    chat = [
        {"role": "system", "content": system_prompt()},
        {"role": "user", "content": question},
    ]
    answer = ask(llm, chat, MAX_TOKENS)
    faults = parse(answer.text, ended=answer.finish_reason == "stop").faults
    kept = "format kept" if not faults else "format broken: " + "; ".join(map(str, faults))
    print(f"\\n=== {question}\\n\\n{answer.text}\\n\\n[{kept}]")
"""
run(PY, "-c", ASK, str(GGUF), *QUESTIONS)

# %% [markdown]
# ## Take it home
#
# The GGUF and its Modelfile belong into one folder. There, with [Ollama](https://ollama.com)
# installed:
#
#     ollama create medalign -f Modelfile
#     ollama run medalign "Explain the medical term: Hypertension"

# %%
print((RUN / "Modelfile").read_text())

# %%
try:
    from google.colab import files
except ImportError:
    print(f"{GGUF.resolve()}\n{(RUN / 'Modelfile').resolve()}")
else:
    files.download(str(RUN / "Modelfile"))
    files.download(str(GGUF))
