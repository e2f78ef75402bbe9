#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --time=12:00:00 --signal=TERM@120 --requeue --open-mode=append
#
#   sbatch configs/slurm.sh configs/v1-fr.toml
#
# There is one task per GPU and no torchrun. So the signal reaches every rank, and the exit status reaches this script.
# Two minutes before the time limit the run saves and exits with 75. The script then requeues the job, which resumes. A
# micro-batch and a checkpoint together must take less than two minutes. Since Slurm 22.05 srun has to be told the cores
# of a task, or each has one. A minute after the first task has ended it ends the others.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) MASTER_ADDR  # another job may be on the same node
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=60 bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
              export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
              exec "${PYTHON:-.venv/bin/python}" kgi.py "$@"' kgi "$@"
status=$?
[ $status -ne 75 ] || exec scontrol requeue "$SLURM_JOB_ID"
exit $status
