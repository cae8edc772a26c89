"""Slurm and SkyPilot files: they parse, and every path, option and target they name is there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, script

FOLDER = ROOT / "recipes/distributed"
SLURM, SKY = sorted(FOLDER.glob("slurm-*.sh")), sorted(FOLDER.glob("sky-*.yaml"))
# docs.skypilot.co, SkyPilot YAML: the fields of a task, and of its resources.
TASK = set("name workdir num_nodes resources envs secrets file_mounts setup run config".split())
RESOURCES = set(
    """
    infra accelerators accelerator_args cpus memory instance_type use_spot disk_size disk_tier
    network_tier image_id ports labels autostop any_of ordered job_recovery max_hourly_cost
""".split()
)
MOUNT = {"name", "source", "store", "mode", "persistent", "config"}
# slurm.schedmd.com/sbatch.html, of its options those that are taken here.
SBATCH = set(
    """
    job-name nodes ntasks gpus-per-node cpus-per-task mem time requeue open-mode output
""".split()
)
SECRET = re.compile(r"hf_\w{20}|AKIA\w{12}|(?i:token|key|password|secret)\w* *[:=] *['\"]?\w{12}")


def commands(path: Path) -> str:
    """What the file runs, its stages written out, continued lines joined."""
    text = path.read_text()
    if path.suffix == ".yaml":
        task = yaml.safe_load(text)
        text = task["setup"] + task["run"]
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).replace('"', "")
    if loop := re.search(r"for stage in (.+?); do\n(.*?)done", text, re.S):
        turns = (loop[2].replace("$stage", stage) for stage in loop[1].split())
        text = text.replace(loop[0], "".join(turns))
    return text


def test_there_is_a_file_of_each_kind_for_both_cards():
    assert [p.name for p in [*SLURM, *SKY]] == [
        *("slurm-a100.sh", "slurm-t4.sh", "sky-a100.yaml", "sky-t4.yaml")
    ]


@pytest.mark.parametrize("path", [*SLURM, *SKY], ids=lambda p: p.name)
def test_bash_parses_it(path):
    text = path.read_text() if path in SLURM else commands(path)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "set -e" in text


@pytest.mark.parametrize("path", [*SLURM, *SKY], ids=lambda p: p.name)
def test_all_that_it_names_is_there(path):
    text = commands(path)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    made = [w for line in re.findall(r"\bmake (.+)", text) for w in line.split() if "=" not in w]
    assert made and set(made) - {"python3.11-venv", "python3.11-dev"} <= targets, made
    recipes = re.findall(r"(?<!/)recipes/[\w/.-]+", text)
    assert recipes and all((ROOT / name).is_file() for name in recipes), recipes
    assert all(path.stem.endswith(name.split("-")[-1][:-5]) for name in recipes)
    named = set(re.findall(r"scripts/[\w.]+", text))
    assert all((ROOT / name).is_file() for name in named)
    for name in named:
        options = set(re.findall(r" (--[\w-]+)", text))
        assert options - {"--no-install-recommends"} <= set(
            re.findall(r"--[\w-]+", script(Path(name).name, "--help").stdout)
        )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"EXTRAS=(\w+)", text):
        assert extra in extras["optional-dependencies"]


@pytest.mark.parametrize("path", SKY, ids=lambda p: p.name)
def test_skypilot_knows_every_field(path):
    task = yaml.safe_load(path.read_text())
    assert set(task) <= TASK and set(task["resources"]) <= RESOURCES
    card, _, count = task["resources"]["accelerators"].partition(":")
    assert path.stem == f"sky-{card.lower()}" and int(count) >= 1
    assert set(task["secrets"].values()) == {None}  # asked for at launch, never written down
    for mount in task.get("file_mounts", {}).values():
        assert set(mount) <= MOUNT and mount["mode"] == "MOUNT_CACHED"


@pytest.mark.parametrize("path", SLURM, ids=lambda p: p.name)
def test_slurm_knows_every_option_and_the_log_can_be_written(path):
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text(), re.M))
    assert set(options) <= SBATCH and "requeue" in options
    assert path.read_text().count("#SBATCH") == len(options)
    card, count = options["gpus-per-node"].split(":")
    assert path.stem == f"slurm-{card}" and f"GPUS_ON_NODE:-{count}" in path.read_text()
    assert not re.search(r"^(?!#).*\S.*\n(?:.*\n)*#SBATCH", path.read_text(), re.M)


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda p: p.name)
def test_no_secret_is_written_down(path):
    assert not SECRET.search(path.read_text())
    assert SECRET.search("HF_TOKEN: abcdefabcdef") and SECRET.search("x hf_abcdefabcdefabcdefab")
