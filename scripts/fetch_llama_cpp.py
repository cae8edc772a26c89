"""Unpack llama.cpp's converter and server from the source distribution of llama-cpp-python.

    python scripts/fetch_llama_cpp.py --out build/llama.cpp

Both must be of the very llama.cpp that runs the model, and the source distribution of the
installed llama-cpp-python carries just that one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from medalign.artifacts import StepError, require_space, run_step, written_whole

PACKAGE = "llama-cpp-python"
CONVERTER = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/")
SERVER = ("tools/server/", "tools/ui/ui.", "tools/mtmd/", "common/", "include/", "ggml/include/")
WANTED = (*CONVERTER, *SERVER, "vendor/", "LICENSE")
LEFT_OUT = ("tools/server/tests/", "tools/server/bench/")


def fetch(out: Path, wanted: tuple[str, ...] = WANTED) -> None:
    """Download the source distribution with pip and unpack what is wanted into `out`.

    wanted: how the names begin of what is unpacked, relative to llama.cpp's folder.
    """
    version = importlib.metadata.version(PACKAGE)
    require_space(out, 0.5)
    with tempfile.TemporaryDirectory() as temporary, written_whole(out) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--dest", temporary, f"{PACKAGE}=={version}"]
        if subprocess.run(command).returncode:
            raise StepError(f"pip could not download {PACKAGE} {version}: see its words above")
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            for member in archive:
                _, found, name = member.name.partition("/vendor/llama.cpp/")
                if found and name.startswith(wanted) and not name.startswith(LEFT_OUT):
                    archive.extract(member.replace(name=name), folder, filter="data")
        (folder / "VERSION").write_text(f"{PACKAGE} {version}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    fetch(parser.parse_args().out)


if __name__ == "__main__":
    run_step(main)
