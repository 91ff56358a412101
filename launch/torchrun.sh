#!/usr/bin/env bash
# A run on all GPUs of this machine, or of several machines without Slurm. Arguments go to molgen_pretrain.
#
#   launch/torchrun.sh +experiment=qwen3_0_6b
#   NGPU_PER_NODE=2 launch/torchrun.sh parallelism=fsdp
#
# Several nodes: the same line on each of them, with its own NODE_RANK.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-node MASTER_PORT=29500 launch/torchrun.sh +experiment=qwen3_0_6b
set -euo pipefail

python=${MOLGEN_PYTHON:-python}
nodes=${NNODES:-1}

# One process where there is no GPU.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
processes=${NGPU_PER_NODE:-$((gpus > 0 ? gpus : 1))}

if [ "$nodes" -gt 1 ]; then
    if [ -z "${MASTER_ADDR:-}" ] || [ -z "${MASTER_PORT:-}" ] || [ -z "${NODE_RANK:-}" ]; then
        echo "error: NNODES=$nodes: set NODE_RANK (0 to $((nodes - 1))), and MASTER_ADDR and MASTER_PORT to the same" \
            "address and free port of the first node on all nodes" >&2
        exit 1
    fi
    meet=(--nnodes="$nodes" --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
elif [ -n "${MASTER_PORT:-}" ]; then
    meet=(--nnodes=1 --master-addr=127.0.0.1 --master-port="$MASTER_PORT")
else
    meet=(--standalone) # finds a free port
fi

exec "$python" -m torch.distributed.run "${meet[@]}" --nproc-per-node="$processes" -m molgen_pretrain "$@"
