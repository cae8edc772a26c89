"""Build the training mix: sources → cleaned, deduplicated, decontaminated conversations.

    python scripts/build_mix.py --out build/data                       (make mix)
    python scripts/build_mix.py --out build/data --executor slurm \\
        --slurm partition=cpu,time=04:00:00

data/sources.yaml says from what, data/mix.yaml how. One machine does millions of rows; the same
stages run on Slurm or Ray through datatrove, with `build/mix` on a disk that all nodes see.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from medalign import sources
from medalign.artifacts import (
    ROOT,
    StepError,
    remove,
    require_space,
    run_step,
    sha256,
    written_whole,
)
from medalign.assemble_mix import assemble
from medalign.mix_stages import (
    MIX,
    Job,
    collect,
    decontaminate,
    duplicates,
    embed,
    meanings,
    prepare,
    settings,
)  # fmt: skip

WORK = ROOT / "build/mix"
CODE = """
    artifacts recipe sources convert_rows clean_text deidentify score_rows near_duplicates
    semantic_duplicates decontaminate mix_stages assemble_mix build_mix
""".split()
PACKAGES = """
    faiss-cpu ftfy lxml presidio-analyzer rapidfuzz rensa spacy wordllama
""".split()
TABLES = ("terminology.yaml", "clinical_words.yaml", "system_prompt.txt")


def usable(accept: set[str]) -> tuple[list[sources.Source], dict[str, str]]:
    """The sources to use here, and the others with the reason why not."""
    declared, _ = sources.load()
    terms = {s.terms for s in declared} | {s.terms for s in sources.refusals()}
    if unknown := accept - terms:
        raise StepError(f"ACCEPT={','.join(sorted(unknown))}: no source has such terms")
    used, left_out = [], {}
    for source in declared:
        why = sources.missing(source)
        if source.terms != "open" and source.terms not in accept:
            why = f"terms are {source.terms} ({source.license}): make mix ACCEPT={source.terms}"
        if why is None:
            used.append(source)
        else:
            left_out[source.name] = why
    # What was written for this project stays where another source has the like.
    return sorted(used, key=lambda source: source.path is None), left_out


def evaluations() -> list[sources.Dataset]:
    """All evaluations. StepError names those that cannot be read: a mix is not made without."""
    found = sources.evaluations()
    lacking = [f"{e.name}: {why}" for e in found if (why := sources.missing(e)) is not None]
    if lacking:
        raise StepError(
            "the mix must be kept apart from every evaluation, but\n  " + "\n  ".join(lacking)
        )
    return found


def inputs(used: list[sources.Source], held: list[sources.Dataset]) -> dict[str, str]:
    """What decides the mix besides its settings: file → SHA-256, hub dataset → revision."""
    files = [ROOT / "scripts" / f"{name}.py" for name in CODE]
    files += [ROOT / "data" / name for name in TABLES]
    found = {file.name: sha256(file) for file in files}
    found |= {package: importlib.metadata.version(package) for package in PACKAGES}
    for dataset in (*used, *held):
        file = dataset.file()
        found[dataset.name] = f"{dataset.model_dump_json()} {sha256(file) if file else ''}"
    return found


@contextlib.contextmanager
def watched(folder: Path, name: str, tasks: int) -> Iterator[None]:
    """Progress from the marks of finished pieces; datatrove's own log goes to the folder."""
    bar = tqdm(total=tasks, desc=f"{name:14}", unit="piece", file=sys.stdout, disable=None)
    done, began = threading.Event(), time.monotonic()

    def look() -> None:
        while not done.wait(0.5):
            bar.n = sum(1 for _ in (folder / "completions").glob("*"))
            bar.refresh()

    sys.stdout.flush()
    sys.stderr.flush()
    screen = os.dup(2)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        os.dup2(log.fileno(), 2)
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
        said = f"{name:14} {tasks:3} pieces {time.monotonic() - began:7.1f} s"
    finally:
        done.set()
        watcher.join()
        bar.close()
        os.dup2(screen, 2)
        os.close(screen)
    if bar.disable:
        print(said, flush=True)


def executor(kind: str, workers: int, options: dict[str, str]) -> Callable[..., Any]:
    """What makes datatrove's executor of a stage."""
    if kind == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        known = {"venv_path": str(Path(sys.prefix) / "bin/activate"), **options}
        if lacking := {"partition", "time"} - known.keys():
            raise StepError(f"--slurm: {', '.join(sorted(lacking))} must be given")
        return partial(SlurmPipelineExecutor, workers=workers, **known)
    if kind == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return partial(RayPipelineExecutor, workers=workers)
    from datatrove.executor.local import LocalPipelineExecutor

    return partial(LocalPipelineExecutor, workers=workers)


def run_stages(job: Job, out: Path, left_out: dict[str, str], make: Callable[..., Any]) -> None:
    """Run all stages in order; finished pieces of an earlier run are left as they are."""
    stages: list[tuple[Callable[..., None], int]] = [
        (collect, job.settings.pieces),
        (duplicates, 1),
        (embed, job.settings.pieces),
        (meanings, 1),
        (prepare, 1),
        (decontaminate, job.settings.pieces),
        (partial(assemble, out=out, left_out=left_out), 1),
    ]
    before = None
    for stage, tasks in stages:
        name = getattr(stage, "func", stage).__name__
        logs = job.folder / "stages" / name
        named = {"job_name": f"mix-{name}"} if "partition" in getattr(make, "keywords", {}) else {}
        step = make(
            pipeline=[partial(stage, job=job)],
            tasks=tasks,
            logging_dir=str(logs),
            depends=before,
            skip_completed=name != "assemble",  # what it writes lies elsewhere and may be gone
            **named,
        )
        if named:  # Slurm: the jobs wait for each other, nothing is to be watched here
            before = step
            continue
        with watched(logs, name, tasks):
            step.run()
    if before is not None:
        before.run()


def show(facts: dict[str, Any]) -> None:
    """Print the funnel."""
    table = Table(
        "source", "read", "train", "validation", "dropped, by reason", title="Training mix"
    )
    for name, row in facts["funnel"].items():
        reasons = ", ".join(
            f"{k} {n:,}" for k, n in sorted(row["dropped"].items(), key=lambda x: -x[1])
        )
        table.add_row(
            name, f"{row['read']:,}", f"{row['train']:,}", f"{row['validation']:,}", reasons
        )
    rows = facts["funnel"].values()
    total = {key: sum(row[key] for row in rows) for key in ("read", "train", "validation")}
    gone = sum(sum(row["dropped"].values()) for row in rows)
    table.add_section()
    table.add_row("all", *(f"{n:,}" for n in total.values()), f"{gone:,}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for name, why in facts["left_out"].items():
        console.print(f"left out: {name}: {why}", highlight=False, soft_wrap=True)
    if not facts["compared_by_meaning"]:
        print(
            "not compared by meaning: more rows than semantic_duplicates.largest in data/mix.yaml"
        )
    out = total["train"] + total["validation"]
    print(f"{total['read']:,} rows in = {out:,} out + {gone:,} dropped")


def list_inputs(path: Path, accept: set[str]) -> None:
    """Write what decides the mix to a file, which is left alone where nothing has changed.

    Files of the sources count with size and time here, for make; the mix itself hashes them.
    """
    used, left_out = usable(accept)
    files = [ROOT / "scripts" / f"{name}.py" for name in CODE]
    files += [ROOT / "data" / name for name in TABLES] + [MIX, sources.SOURCES]
    read = [d.file() for d in (*used, *sources.evaluations())]
    files += [file for file in read if file is not None and file.exists()]
    lines = [f"{file} {(stat := file.stat()).st_size} {stat.st_mtime_ns}" for file in files]
    text = "\n".join([*lines, *(f"{name}: {why}" for name, why in left_out.items()), ""])
    if not path.exists() or path.read_text() != text:
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def build(out: Path, work: Path, workers: int, accept: set[str], make: Callable[..., Any]) -> Job:
    """Build the mix into `out`, working below `work`; returns the job."""
    used, left_out = usable(accept)
    if not used:
        raise StepError(f"no source can be used: {left_out}")
    held = evaluations()
    s = settings(MIX)
    if lacking := [source.name for source in used if source.name not in s.shares]:
        raise StepError(f"{MIX}: no share for {', '.join(lacking)}")
    found = {"settings": s.model_dump_json(), **inputs(used, held)}
    key = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    job = Job(work / key, s, used, held)
    job.folder.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for source in used if (file := source.file()) is not None)
    require_space(job.folder, 1 + 4 * size / 2**30)
    run_stages(job, out, left_out, make)
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/data")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--accept", default="", help="terms to use besides open ones")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--slurm", default="", help="partition=…,time=…,… for datatrove")
    parser.add_argument("--show", action="store_true", help="print the funnel of --out and end")
    parser.add_argument("--list-inputs", type=Path, help="write what decides the mix, if changed")
    args = parser.parse_args()
    args.out, args.work = args.out.resolve(), args.work.resolve()  # other machines read them too
    accept = set(filter(None, args.accept.split(",")))
    if args.show:
        show(json.loads((args.out / "manifest.json").read_text()))
        return
    if args.list_inputs:
        list_inputs(args.list_inputs, accept)
        return
    options = dict(pair.split("=", 1) for pair in args.slurm.split(",") if pair)
    make = executor(args.executor, args.workers, options)
    job = build(args.out, args.work, args.workers, accept, make)
    if args.executor == "slurm":
        print(f"submitted; {args.out / 'manifest.json'} is written by the last job")
        return
    for other in args.work.iterdir():  # what another configuration left behind
        if other != job.folder and re.fullmatch("[0-9a-f]{16}", other.name):
            remove(other)


if __name__ == "__main__":
    run_step(main)
