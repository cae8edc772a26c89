#!/usr/bin/env bash
# The aligned model on one node of four A100: SFT, merge, DPO, by data-parallel training.
#
#   sbatch recipes/distributed/slurm-a100.sh          (from the repository's folder)
#
# Needs make setup EXTRAS=gpu, make data, make mix and make pairs done, and the base in HF_HOME or
# HF_TOKEN in the submitting shell. After a preemption Slurm queues it again, after the time limit
# submit it again: it goes on from the last checkpoint. Not yet run.
#SBATCH --job-name=medalign-a100
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=a100:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
python=.venv/bin/python
gpus=${SLURM_GPUS_ON_NODE:-4}

for stage in sft-qlora-a100 dpo-a100; do
    run=runs/mistral-7b/$stage
    srun "$python" scripts/train_adapter.py --recipe "recipes/mistral-7b/$stage.yaml" \
        --out "$run/adapter" --processes "$gpus"
    srun make merge RECIPE="recipes/mistral-7b/$stage.yaml"
done
