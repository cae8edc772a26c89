"""Artifacts: written whole or not at all, each with a manifest, errors in one line.

Every step of the pipeline writes under a temporary name and renames at the end, so that
a name that exists is finished. Every artifact has a manifest that says what it was made
from (hashes), with what (versions, hardware) and when.
"""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["torch", "transformers", "peft", "trl", "axolotl", "accelerate", "bitsandbytes"]
PACKAGES += ["datasets", "llama-cpp-python", "huggingface_hub", "lm_eval"]


class StepError(Exception):
    """What a user did or has that stops a step: the message names it and what to do."""


def run_step(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main and exit: 0, 1 with one clear line, or 130 on Ctrl-C."""
    # A terminated step must unwind, so that it removes what it had begun to write.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        sys.exit(main())
    except StepError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is kept, run the same again", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = "free space and run again" if full else "make it writable or choose another place"
        message = f"{error.filename or 'writing'}: {error.strerror}; {step}"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def require_space(where: Path, gib: float) -> None:
    """Raise StepError unless the disk under `where` has `gib` GiB free."""
    where = where.absolute()
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free / 2**30
    if free < gib:
        raise StepError(f"{where}: {free:.1f} GiB free, this step needs about {gib:.1f} GiB")


def require_file(path: Path, hint: str) -> Path:
    """Return `path`, or raise StepError with the next step to take."""
    if not path.exists():
        raise StepError(f"{path} does not exist; {hint}")
    return path


def partial(path: Path) -> Path:
    """The temporary name under which `path` is written."""
    return path.with_name(path.name + ".partial")


def remove(path: Path) -> None:
    """Remove a file or a folder, if there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` for an intermediate; it is removed in the end."""
    temporary = partial(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name for the file or folder `path`; rename it when all went well.

    What stood at `path` stays until then. On any error the temporary is removed.
    """
    with scratch(path) as temporary:
        yield temporary
        replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of `path`; a folder that stood there is removed."""
    if path.is_dir():
        old = path.with_name(path.name + ".old")
        remove(old)
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
        remove(old)
    else:
        temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, whole or not at all."""
    with written_whole(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON object. StepError names the file and `made_by`, the command that makes it."""
    try:
        content = json.loads(require_file(path, f"{made_by} writes it").read_text(encoding="utf-8"))
    except ValueError as error:
        raise StepError(f"{path}: not JSON ({error}); remove it and run {made_by}") from error
    if not isinstance(content, dict):
        raise StepError(f"{path}: not an object; remove it and run {made_by}")
    return content


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file of objects. StepError names file and line of the first bad one."""
    require_file(path, "make data writes build/data, git checkout brings data/ back")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise StepError(f"{path}:{number}: not a line of JSON in UTF-8 ({error})") from error
        if not isinstance(row, dict):
            raise StepError(f"{path}:{number}: a row is an object, not {type(row).__name__}")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSONL, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder: of the sorted names and hashes of its files."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
        lines = [f"{sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(gguf: Path) -> Path:
    """The manifest beside a GGUF file."""
    return gguf.with_name(gguf.name + ".manifest.json")


def shown(path: Path) -> str:
    """`path` relative to the repository where it lies inside, for manifests."""
    path = path.absolute()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and GPUs of this machine."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus: list[str] = []
    if "torch" in sys.modules:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpus": gpus}


def versions() -> dict[str, str]:
    """Python and the packages that decide a result, with their versions."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def manifest(kind: str, inputs: dict[str, Path], began: float, **facts: Any) -> dict[str, Any]:
    """What an artifact was made from and with.

    kind: the step's name. inputs: role → file or folder, recorded by SHA-256.
    began: time.monotonic() at the start, for the wall time in seconds.
    facts: whatever else the step knows (counts, settings, seed).
    """
    return {
        "kind": kind,
        "made": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - began, 1),
        "inputs": {
            role: {"path": shown(path), "sha256": sha256(path)} for role, path in inputs.items()
        },
        **facts,
        "versions": versions(),
        "hardware": hardware(),
    }
