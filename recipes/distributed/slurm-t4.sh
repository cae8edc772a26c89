#!/usr/bin/env bash
# The terminology teacher on one node of two T4: SFT and merge, by data-parallel training.
#
#   sbatch recipes/distributed/slurm-t4.sh            (from the repository's folder)
#
# Needs make setup and make data done, and the base in HF_HOME or HF_TOKEN in the submitting shell.
# After a preemption Slurm queues it again, after the time limit submit it again: it goes on from
# the last checkpoint. Not yet run.
#SBATCH --job-name=medalign-t4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=t4:2
#SBATCH --cpus-per-task=8
#SBATCH --mem=48G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
python=.venv/bin/python

srun "$python" scripts/train_adapter.py --recipe recipes/mistral-7b/sft-lora-t4.yaml \
    --out runs/mistral-7b/sft-lora-t4/adapter --processes "${SLURM_GPUS_ON_NODE:-2}"
srun make merge RECIPE=recipes/mistral-7b/sft-lora-t4.yaml
