"""Ask a model the suites of evals/ and keep every answer, with figures and their intervals.

    python scripts/evaluate.py --model runs/smollm2-135m/sft-lora-cpu/merged --suites medqa,refusal
    make eval MODEL=runs/smollm2-135m/sft-lora-cpu SUITE=all

One JSON a suite, in runs/…/eval/suites/ or where --out says. The suites are tasks of lm-eval
(`lm_eval run --include_path evals`), asked through it; conversations of several turns, which it
cannot ask, through the same models. Answers are cached by model: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign import dialogues, measures
from medalign.artifacts import ROOT, StepError, manifest, run_step, write_json
from medalign.benchmarks import felt, formed, lettered, likeliest, refused, worded
from medalign.models import Model, open_model
from medalign.recipe import system_prompt
from medalign.suite import told

CACHE = ROOT / "build/eval-cache"
SEED = 0
Item = dict[str, Any]
Keep = Callable[[Item, Sequence[Any]], Item]  # document and results → what is kept


@dataclass(frozen=True)
class Suite:
    """A suite. tasks: of evals/, asked by likelihood or as chats; chat: what is asked of a model
    that gives no likelihoods; keep: what keeps of an answer; figures: made of what is kept.
    """

    figures: Callable[[list[Item]], Item]
    keep: Keep | None
    tasks: tuple[str, ...]
    chat: str | None = None
    keep_chat: Keep = lettered


def mmlu(name: str) -> str:
    return f"medalign_mmlu_{name}"


SUBJECTS = [
    *("anatomy", "clinical_knowledge", "college_biology", "college_medicine"),
    *("medical_genetics", "professional_medicine"),
]
CHOICE = measures.choice
SUITES = {
    "medqa": Suite(CHOICE, likeliest, ("medalign_medqa",), "medalign_medqa_generate"),
    "pubmedqa": Suite(
        CHOICE,
        likeliest,
        ("medalign_pubmedqa",),
        "medalign_pubmedqa_generate",
        worded,
    ),
    "medmcqa": Suite(CHOICE, likeliest, ("medalign_medmcqa",), "medalign_medmcqa_generate"),
    "mmlu_medical": Suite(
        CHOICE, likeliest, tuple(map(mmlu, SUBJECTS)), "medalign_mmlu_medical_generate"
    ),
    "medication_safety": Suite(
        measures.detection,
        likeliest,
        ("medalign_medication_safety",),
        "medalign_medication_safety_generate",
        worded,
    ),
    "refusal": Suite(measures.refusals, refused, ("medalign_refusal",)),
    "education_format": Suite(measures.form, formed, ("medalign_education_format",)),
    "empathy": Suite(measures.feeling, felt, ("medalign_empathy",)),
    "multi_turn": Suite(dialogues.figures, None, ()),
}
BENCHMARKS = ("medqa", "pubmedqa", "medmcqa", "mmlu_medical")


def cache(model: Model) -> str | None:
    """Where a model's answers are kept; none for one without a digest, which may have changed."""
    if model.identity["sha256"] is None:
        return None
    key = " ".join(
        [
            str(model.identity["sha256"]),
            type(model.lm).__name__,
            *filter(None, [model.identity.get("dtype")]),
        ]
    )
    return str(CACHE / hashlib.sha256(key.encode()).hexdigest()[:16])


def asked(suite: Suite, model: Model, manager: Any, limit: int | None) -> tuple[list[Item], Item]:
    """Ask a suite's tasks through lm-eval; what is kept of each answer, and the protocol."""
    from lm_eval import simple_evaluate

    by_likelihood = suite.keep is likeliest and model.likelihoods
    as_chat = suite.keep is likeliest and not model.likelihoods
    tasks = [str(suite.chat)] if as_chat else list(suite.tasks)
    keep = suite.keep_chat if as_chat else suite.keep
    assert keep is not None, "conversations are asked by dialogues"
    system = None if by_likelihood else system_prompt()
    result = simple_evaluate(
        model=model.lm,
        use_cache=cache(model),
        tasks=tasks,
        limit=limit,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        system_instruction=system,
        apply_chat_template=not by_likelihood,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
        verbosity="ERROR",
    )
    items = []
    for task in tasks:
        for sample in result["samples"][task]:
            doc = sample["doc"]
            items.append(
                {
                    "id": doc["id"],
                    "subject": doc["subject"],
                    **({"category": doc["category"]} if "category" in doc else {}),
                    **({"options": doc["options"]} if "options" in doc else {}),
                    "prompt": doc.get("question") or doc["prompt"],
                    "prompt_sha256": sample["prompt_hash"],
                    **keep(doc, sample["filtered_resps"]),
                }
            )
    protocol = {
        "asked": "loglikelihood of the options" if by_likelihood else "answers, greedy",
        "prompt": "plain" if by_likelihood else "chat template and system prompt",
        "system_prompt": system,
        "tasks": {task: result["versions"][task] for task in tasks},
        "shots": {task: result["n-shot"][task] for task in tasks},
    }
    return items, protocol


def evaluate(model: Model, name: str, out: Path, manager: Any, limit: int | None) -> Item:
    """Ask one suite; write and return its result."""
    began = time.monotonic()
    suite = SUITES[name]
    if name == "multi_turn":
        from lm_eval.api.model import CachingLM

        kept = cache(model)
        lm = model.lm if kept is None else CachingLM(model.lm, f"{kept}_turns.db")
        items = dialogues.ask(lm, system_prompt(), limit)
        protocol: Item = {
            "asked": "answers, greedy, turn by turn",
            "prompt": "chat template and system prompt",
            "system_prompt": system_prompt(),
        }
    else:
        items, protocol = asked(suite, model, manager, limit)
    if not items:
        raise StepError(f"{name}: no rows to ask")
    template = str(model.lm.chat_template(True) or "")
    result = {
        **manifest("suite result", {}, began, suite=name, model=model.identity, seed=SEED),
        "protocol": protocol,
        "limit": limit,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "n": len(items),
        "scores": suite.figures(items),
        "items": items,
    }
    write_json(out / f"{name}.json", result)
    return result


def show(name: str, result: Item) -> None:
    """The suite's figures, one line each."""
    for key, figure in result["scores"].items():
        if isinstance(figure, dict) and "rate" in figure:
            print(f"{name} {key}: {told(figure)}")
        elif isinstance(figure, dict) and figure.get("value") is not None:
            interval = f"95 % CI {figure['low']:.3f}-{figure['high']:.3f}"
            print(f"{name} {key}: {figure['value']:.3f} ({interval}, n {figure['n']})")


def place_of(where: str, limit: int | None = None) -> Path:
    """Where a model's results go by default: eval/suites of its run, else build/suites/<name>.

    A part of the rows has a folder below, so that a look does not write over a whole result.
    """
    path = Path(where.removeprefix("vllm:"))
    if path.is_dir() and (path / "merged").is_dir():
        place = path / "eval/suites/merged"
    elif path.exists() and (path.parent / "adapter").is_dir():
        place = path.parent / "eval/suites" / path.stem
    else:
        name = path.stem if path.exists() else where.replace("/", "_")
        place = ROOT / "build/suites" / name
    return place / f"first-{limit}" if limit else place


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", required=True, help="run, model folder, GGUF, http://…, ollama:…"
    )
    parser.add_argument("--suites", default="all", help=f"all, benchmarks, or {', '.join(SUITES)}")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--limit", type=int, help="only the first rows of each task")
    args = parser.parse_args()
    groups = {"all": list(SUITES), "benchmarks": list(BENCHMARKS)}
    named = [groups.get(name, [name]) for name in args.suites.split(",") if name]
    names = list(dict.fromkeys(name for group in named for name in group))
    if unknown := [n for n in names if n not in SUITES]:
        raise StepError(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    if args.limit is not None and args.limit < 1:
        raise StepError("--limit is at least 1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval.tasks import TaskManager

    model = open_model(args.model)
    manager = TaskManager(include_path=str(ROOT / "evals"), include_defaults=False)
    out = args.out or place_of(args.model, args.limit)
    for name in names:
        show(name, evaluate(model, name, out, manager, args.limit))
        print(f"{out / name}.json")


if __name__ == "__main__":
    run_step(main)
