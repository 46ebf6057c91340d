#!/bin/bash
# Training on GPU nodes with Slurm: one process per node, with all of its GPUs.
#
#   TRAINING="dpd_paper_aligned --mesh -1 8 1 --data.batch-size 128 --data.folder /data/features --workdir /data/runs/dpd" \
#     sbatch --nodes 8 launch/slurm.sh
#
# The jobs of the array run one after the other, and each continues the run; those after its end stop at once. Slurm
# starts a job again after a node has failed. Before the time limit it sends SIGTERM, and training saves.
#SBATCH --job-name=melody
#SBATCH --array=1-8%1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
# one word of TRAINING is one argument
read -ra training <<< "$TRAINING"
srun --kill-on-bad-exit=1 melody train "${training[@]}" --hosts.join --sigterm-seconds 110
