"""Run an Axolotl command as a child: its output shown, its failure in one line, no two at once."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medalign.artifacts import ROOT, StepError

QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
# glibc returns each freed activation to the kernel, which must zero it again at the next step.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
TRACEBACK = b"Traceback (most recent call last)"


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock file `path`, yield its descriptor. StepError while another run has it.

    A child that inherits the descriptor keeps the lock even if this process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StepError(f"{path}: this run is being trained; wait or end it") from error
        yield file.fileno()


def reason(tail: bytes) -> str:
    """Why Axolotl failed, of the end of its output: the process that was killed or the last error.

    Of several processes the first to fail counts, not those that lost their connection to it.
    """
    root = tail.rpartition(b"Root Cause")[2]
    if killed := re.search(rb"rank +: (\d+).*\n +exitcode +: -(\d+)", root):
        rank, number = int(killed[1]), int(killed[2])
        return (
            f"process {rank} was ended by {signal.Signals(number).name}, out of memory?"
            " the others were stopped; run the same again, it goes on from the last checkpoint"
        )
    pattern = rb"^(?:\[rank\d+\]: *)?([\w.]*(?:Error|Exception|Interrupt)\b.*)"
    errors = re.findall(pattern, tail, re.MULTILINE)
    own = [e for e in errors if not re.match(rb"[\w.]*(?:ChildFailed|CalledProcess)Error", e)]
    return (own or errors or [b"no message"])[-1].decode(errors="replace")


def run_axolotl(command: list[str], log: Path, lock: int | None = None, processes: int = 1) -> None:
    """Run Axolotl, its output to the terminal up to a traceback, and all of it to `log`.

    processes: how many share this machine's cores. StepError carries the reason. Ctrl-C ends
    the child at once: its checkpoints are whole, and its own handler would save a half-trained
    adapter as if done.
    """
    environment = {**ALLOCATOR, **QUIET, **os.environ}
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    # Axolotl finds its launchers by name, also where the environment is not activated.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[] if lock is None else [lock],
    )
    assert child.stdout is not None
    tail = b""
    failed = False
    try:
        with log.open("ab") as file:
            while chunk := os.read(child.stdout.fileno(), 65536):
                file.write(chunk)
                tail = (tail + chunk)[-20000:]
                if not failed:
                    sys.stdout.buffer.write(chunk.partition(TRACEBACK)[0])
                    sys.stdout.flush()
                    failed = TRACEBACK in tail
        code = child.wait()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code == -signal.SIGKILL:
        raise StepError(f"axolotl was killed, out of memory? lower micro_batch_size ({log})")
    if code:
        raise StepError(f"axolotl ended with {code}: {reason(tail)} ({log})")
