#!/bin/bash

# Parameters
#SBATCH --account=chem
#SBATCH --array=0-2%2
#SBATCH --comment='a sweep'
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=6
#SBATCH --dependency=afterok:71_0:71_1
#SBATCH --exclude=node7
#SBATCH --exclusive
#SBATCH --gpus-per-task=1
#SBATCH --gres=nvme:1
#SBATCH --job-name=molecules
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=nvme:2
#SBATCH --mail-type=END
#SBATCH --mail-user=me@lab.org
#SBATCH --mem-per-gpu=80G
#SBATCH --no-kill
#SBATCH --nodelist='node[1-4]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/sweep/jobs/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=90

# setup
module load cuda
export PATH="$HOME/bin:$PATH"
export SLURM_KILL_BAD_EXIT=1
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
[ -n "$MASTER_PORT" ] || export MASTER_PORT="$(PYTHON -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/sweep/jobs/%A_%a_%t_log.out --cpu-bind=cores PYTHON -u -m submitit.core._submit FOLDER/sweep/jobs


# teardown
exec PYTHON -m molgen_pretrain.launchers.requeue $? 3
