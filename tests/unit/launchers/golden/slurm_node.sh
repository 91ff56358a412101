#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --job-name=molgen-pretrain
#SBATCH --mem=0G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/sweep/jobs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
export SLURM_KILL_BAD_EXIT=1
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
[ -n "$MASTER_PORT" ] || export MASTER_PORT="$(PYTHON -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/sweep/jobs/%j_%t_log.out PYTHON -u -m submitit.core._submit FOLDER/sweep/jobs


# teardown
exec PYTHON -m molgen_pretrain.launchers.requeue $?
