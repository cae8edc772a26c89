"""The command line of vLLM for a run's merged model, and of the gateway before it.

    python scripts/vllm_command.py --run runs/mistral-7b/dpo-a100
    eval "$(python scripts/vllm_command.py --run runs/mistral-7b/dpo-a100 --only vllm)"

Same weights, same template, same name as everywhere else. vLLM listens on loopback: its own key
leaves several routes open, so that the gateway (medalign.api) stands before it. Not yet run on a
GPU.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from medalign.artifacts import StepError, require_file, run_step
from medalign.recipe import RECIPES, family_of, model, read_yaml

PORT = 8001  # of vLLM, on loopback


def recipe_of(run: Path) -> Path:
    """The recipe whose run this is: runs/mistral-7b/dpo-a100 → recipes/mistral-7b/dpo-a100.yaml."""
    path = RECIPES / run.absolute().parent.name / f"{run.name}.yaml"
    return require_file(path, "a run lies in runs/<family>/<recipe>")


def vllm(run: Path) -> list[str]:
    """vLLM's command line. StepError if the run has no merged model or no template."""
    recipe = recipe_of(run)
    family = model(family_of(recipe))
    merged = require_file(run / "merged" / "config.json", "make merge makes it").parent
    template = read_yaml(recipe).get("chat_template_jinja")
    if not template:
        raise StepError(f"{recipe} names no chat_template_jinja")
    return [
        *("vllm", "serve", str(merged), "--served-model-name", family.name),
        *("--chat-template", str(template), "--host", "127.0.0.1", "--port", str(PORT)),
        *("--max-model-len", str(family.num_ctx), "--dtype", "bfloat16"),
        *("--generation-config", "vllm", "--load-format", "safetensors"),
        *("--no-enable-log-requests", "--disable-uvicorn-access-log"),
    ]


def gateway(run: Path) -> list[str]:
    """The gateway's command line in front of it."""
    family = model(family_of(recipe_of(run)))
    upstream = f"http://127.0.0.1:{PORT}"
    return [
        *("python", "scripts/serve.py", "--upstream", upstream, "--name", family.name),
        *("--context", str(family.num_ctx), "--slots", "64"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--only", choices=("vllm", "gateway"))
    arguments = parser.parse_args()
    made = {"vllm": vllm, "gateway": gateway}
    for name in [arguments.only] if arguments.only else made:
        print(shlex.join(made[name](arguments.run)))


if __name__ == "__main__":
    run_step(main)
