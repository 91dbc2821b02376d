#!/usr/bin/env bash
# health_check.sh NUM_GPUS: is this node fit for a job? Says "healthy NODE", or what is wrong.
# A job runs it on each of its nodes before the work starts (check_nodes in common.sh).

set -uo pipefail
# shellcheck source=site.env
source "${SITE:-slurm/site.env}"
node=${SLURMD_NODENAME:-$(hostname)}
num_problems=0
problem() { echo "$node is unfit: $*" >&2; num_problems=$((num_problems + 1)); }

check_folder() {  # FOLDER MIN_FREE_GIB
    local probe free_gib
    { probe=$(mktemp "$1/.health-XXXXXX") && rm "$probe"; } 2> /dev/null || { problem "$1 cannot be written"; return; }
    free_gib=$(df --output=avail -BG "$1" | tr -dc '0-9')
    [ "$free_gib" -ge "$2" ] || problem "$1 has $free_gib GiB free, needed are $2"
}

# Computes on each GPU, which one that has fallen off the bus cannot, and sees memory that another's process has kept.
check_python() {  # NUM_GPUS
    local error
    error=$(python - "$1" 2>&1 << 'PYTHON'
import sys

import torch

expected = int(sys.argv[1])
if torch.cuda.device_count() < expected:
    sys.exit(f"{torch.cuda.device_count()} GPUs are visible, needed are {expected}")
for device in range(expected):
    free, total = torch.cuda.mem_get_info(device)
    if free < 0.9 * total:
        sys.exit(f"GPU {device} is in use: {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    torch.ones(1, device=device).sum().item()
PYTHON
    ) || problem "python: $(tail -n 1 <<< "$error")"
}

check_folder "$SCRATCH" "$MIN_FREE_GIB"
check_folder "${TMPDIR:-/tmp}" 1
check_python "$1"
[ "$num_problems" = 0 ] || exit 1
echo "healthy $node"
