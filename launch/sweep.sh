#!/usr/bin/env bash
# Sweeps to start from: copy the line that you want and change it. Further arguments go to molgen_pretrain.
#
#   launch/sweep.sh decay_frac sweep.plan_only=true        # what would be trained, and what sharing saves
#   launch/sweep.sh lr hydra/launcher=slurm_node hydra.launcher.partition=gpu hydra.launcher.detach=true
#
# The same line again continues what is not finished.
set -euo pipefail

sweep=${1:-}
molgen() { exec "${MOLGEN_PYTHON:-python}" -m molgen_pretrain --multirun "$@"; }

case $sweep in
# Every combination is a run of its own.
lr) molgen optimizer.lr=1e-3,2e-3,4e-3 training.seed=1,2 "${@:2}" ;;

# What several runs have in common is trained once: they differ only from where the first decay begins.
decay_frac) molgen hydra/sweeper=trunk scheduler.decay_frac=0.05,0.1,0.2,0.4 "${@:2}" ;;
decay_shape) molgen hydra/sweeper=trunk scheduler.decay_shape=linear,cosine,one_minus_sqrt "${@:2}" ;;

# Two levels: how long to train, and how long to decay at the end.
length) molgen hydra/sweeper=trunk training.steps=200,300,400 scheduler.decay_frac=0.1,0.2 "${@:2}" ;;

*)
    echo "error: '$sweep': the sweeps in this file are lr, decay_frac, decay_shape and length" >&2
    exit 1
    ;;
esac
