"""What the tests share: the artifacts that make builds, made once, and one short real run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RECIPE = ROOT / "recipes/smollm2-135m/sft-lora-cpu.yaml"


def make(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run make in the repository, as a user would."""
    command = ["make", "-C", str(options.pop("cwd", ROOT)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts, as make does."""
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="session")
def base() -> Path:
    """The embedded base model's folder."""
    done = make("base", "RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build/models/smollm2-135m-instruct"


@pytest.fixture(scope="session")
def base_gguf(base: Path) -> Path:
    """The embedded base model as Q4_K_M."""
    name = "build/models/smollm2-135m-instruct-Q4_K_M.gguf"
    done = make(name, "RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml")
    assert done.returncode == 0, done.stderr
    return ROOT / name


@pytest.fixture(scope="session")
def data() -> Path:
    """The built education data."""
    done = make("data")
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build/data/education"
