# Shared by the sbatch scripts. Sourced, never run.

log() { echo "$(date '+%F %T') [$SLURM_JOB_NAME $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1))] $*"; }

fail() { log "error: $2" >&2; exit "$1"; }

# The checkout; sbatch runs a copy of the script elsewhere, so its own path does not tell.
cd "${PROJECT:-$SLURM_SUBMIT_DIR}" || exit 2
[ -e slurm/site.env ] || fail 2 "$PWD is no checkout of the project; submit from it or set PROJECT"
# shellcheck source=site.env
source "${SITE:-slurm/site.env}"

# One command in the job's environment, inside the container where there is one.
in_container=()
if [ -n "$CONTAINER_IMAGE" ]; then
    [ "${CONTAINER_IMAGE:0:1}" != / ] || [ -e "$CONTAINER_IMAGE" ] || fail 2 "container image $CONTAINER_IMAGE is missing"
    in_container=(--container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS" --no-container-mount-home
                  --container-workdir="$PWD")
fi

# A command on one node of the job, e.g. a check before all nodes start.
run_once() { srun --nodes=1 --ntasks=1 ${in_container[@]+"${in_container[@]}"} "$@"; }

# record_provenance FOLDER: what this start ran with, to look up later.
record_provenance() {
    local folder="$1/provenance/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    mkdir -p "$folder" || fail 2 "$1 cannot be written"
    cp "$0" "$folder/script"
    cp "${SITE:-slurm/site.env}" "$folder/site.env"
    git describe --always --dirty --abbrev=12 > "$folder/commit" 2>&1
    git diff HEAD > "$folder/uncommitted.diff" 2> /dev/null
    env | grep -vi -E 'token|secret|password|key=' | sort > "$folder/environment"
    python -m pip freeze > "$folder/packages" 2> /dev/null
    scontrol show job "$SLURM_JOB_ID" > "$folder/job" 2>&1
}

# run_stage PROGRAM ARGUMENTS…: a stage that is one process; in an array of NUM_PARTS tasks this task's part of it. What was
# written when the time limit comes is used by the next start, so the job asks for one.
run_stage() {
    local part=() step code
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || part=(--part "$SLURM_ARRAY_TASK_ID/${NUM_PARTS:-$SLURM_ARRAY_TASK_COUNT}")
    prepare_environment
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    trap requeue_stage USR1
    log "python -m $* ${part[*]}"
    srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
        ${in_container[@]+"${in_container[@]}"} python -m "$@" ${part[@]+"${part[@]}"} &
    step=$!
    while :; do  # a trapped signal interrupts wait
        wait "$step"
        code=$?
        kill -0 "$step" 2> /dev/null || break
    done
    [ "$code" = 0 ] || { log "$1 ended with code $code"; exit "$code"; }
}

requeue_stage() {
    [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ] || fail 94 "started $((MAX_RESTARTS + 1)) times: given up"
    log "the time limit is near: requeued, to go on where it stopped"
    scontrol requeue "$SLURM_JOB_ID"
}

# run_torchrun PROGRAM ARGUMENTS…: torchrun on all nodes of the job.
run_torchrun() {
    local first_node code
    prepare_environment
    first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) && [ -n "$first_node" ] \
        || fail 2 "cannot tell the first node of $SLURM_JOB_NODELIST"
    log "torchrun -m $*"
    srun --kill-on-bad-exit=1 --label ${in_container[@]+"${in_container[@]}"} \
        torchrun --nnodes "$SLURM_NNODES" --max-restarts 0 \
        --nproc-per-node "${NUM_PROCESSES_PER_NODE:-${PROCESSES_PER_NODE:-$GPUS_PER_NODE}}" \
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        --rdzv-endpoint "$first_node:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-conf join_timeout=300 -m "$@" \
        || { code=$?; log "$1 ended with code $code"; exit "$code"; }
}
