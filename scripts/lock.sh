#!/usr/bin/env bash
# Write constraints.txt, the exact lock: bash scripts/lock.sh .venv   (make lock calls it)
# It must hold on a CPU and on a CUDA machine: no local version suffixes ("+cpu"), what PyPI's
# CUDA build of torch pins goes first, and what the gpu extra adds is in it. In the end three dry
# runs prove that the lock resolves: as it is, with the CUDA build of torch, with the gpu extra.
set -euo pipefail
venv=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
# flash-attn and deepspeed ask for torch while they are only being looked at: no isolation.
export FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE DS_BUILD_OPS=0
pypi=(env PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= "${pip[@]}") # no local wheels: the CUDA build
dry=(install --quiet --dry-run --ignore-installed --no-build-isolation)

pins() { # the packages of a pip report that are not in the lock yet
    "$venv/bin/python" - "$1" "$work/lock" <<'PY'
import json, pathlib, re, sys
name = lambda n: re.sub(r"[-_.]+", "-", n).lower()
lock = pathlib.Path(sys.argv[2])
have = {name(x.split("==")[0]) for x in lock.read_text().split()} if lock.exists() else set()
for item in json.load(open(sys.argv[1]))["install"]:
    meta = item["metadata"]
    if name(meta["name"]) not in have | {"medalign"}:
        print(f"{name(meta['name'])}=={meta['version'].split('+')[0]}")
PY
}

torch=$("${pip[@]}" list --format freeze | sed -nE 's/^torch==([^+]+).*/\1/p')
"${pypi[@]}" install --quiet --dry-run --ignore-installed --report "$work/cuda" "torch==$torch"
pins "$work/cuda" | grep -E '^(torch|triton|nvidia|cuda)' >"$work/lock"
"${pip[@]}" list --format freeze --exclude-editable --exclude pip --exclude wheel >"$work/here"
"$venv/bin/python" - "$work" <<'PY'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
rows = [line.split("==") for line in (work / "here").read_text().split()]
rows = [{"metadata": {"name": n, "version": v}} for n, v in rows]
(work / "here").write_text(json.dumps({"install": rows}))
PY
pins "$work/here" >"$work/more" && cat "$work/more" >>"$work/lock"
"${pip[@]}" "${dry[@]}" --report "$work/gpu" --constraint "$work/lock" ".[gpu]"
pins "$work/gpu" >"$work/more" && cat "$work/more" >>"$work/lock"

"${pip[@]}" "${dry[@]}" --constraint "$work/lock" ".[dev]"
"${pypi[@]}" "${dry[@]}" --constraint "$work/lock" ".[dev]"
"${pypi[@]}" "${dry[@]}" --constraint "$work/lock" ".[dev,gpu]"
{ echo "# The exact lock, written by make lock; pyproject.toml has the direct dependencies."
  sort -u "$work/lock"; } >constraints.txt
echo "constraints.txt: $(grep -c == constraints.txt) packages; resolves on CPU, CUDA and with the gpu extra"
