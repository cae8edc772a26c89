"""Pick the recipe for this machine's hardware and print its path.

    python scripts/pick_recipe.py [--stage dpo]

No GPU: the embedded model on the CPU. A GPU: by compute capability and memory, as told by
nvidia-smi. Standard library only, because make asks before anything is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

CPU = "recipes/smollm2-135m/sft-lora-cpu.yaml"
T4 = "recipes/mistral-7b/sft-lora-t4.yaml"
A100 = "recipes/mistral-7b/sft-qlora-a100.yaml"
DPO = {  # a T4 has no memory for DPO on an unquantized model
    CPU: "recipes/smollm2-135m/dpo-lora-cpu.yaml",
    A100: "recipes/mistral-7b/dpo-a100.yaml",
}


def gpus() -> list[tuple[str, float, float]]:
    """The GPUs nvidia-smi lists: (name, compute capability, memory in GiB). None: []."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,compute_cap,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return []
    found = []
    for line in done.stdout.strip().splitlines():
        name, capability, mib = (part.strip() for part in line.rsplit(",", 2))
        try:
            found.append((name, float(capability), float(mib) / 1024))
        except ValueError:  # "[N/A]", as some cards report
            found.append((name, 0.0, 0.0))
    return found


def pick(found: list[tuple[str, float, float]]) -> str:
    """The recipe for these GPUs. ValueError, with what to do, for one that no recipe fits.

    A card sold as 16 GB reports 15 GiB, one sold as 40 GB 39 GiB. bf16 and FlashAttention 2
    need capability 8.0; below it the fp16 recipe runs, down to the T4's 7.5, where the locked
    torch's CUDA 13 ends.
    """
    if not found:
        return CPU
    name, capability, memory = found[0]
    if capability >= 8.0 and memory >= 39:
        return A100
    if capability >= 7.5 and memory >= 14.5:
        return T4
    raise ValueError(
        f"no recipe fits {name} (sm_{capability * 10:.0f}, {memory:.0f} GiB): the T4 recipe needs "
        f"sm_75 and 15 GiB, the A100 recipe sm_80 and 40 GiB; name one with RECIPE=, "
        f"or train the embedded model with RECIPE={CPU}"
    )


def main() -> int:
    try:
        sft = pick(gpus())
        if "dpo" not in sys.argv:
            print(sft)
        elif sft in DPO:
            print(DPO[sft])
        else:
            raise ValueError(f"no DPO recipe fits this GPU; name one with RECIPE=, as {DPO[CPU]}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
