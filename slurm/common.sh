# Shared by the sbatch scripts. Sourced, never run.

log() { echo "$(date '+%F %T') [$SLURM_JOB_NAME $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1))] $*"; }

fail() { log "error: $2" >&2; exit "$1"; }  # CODE MESSAGE

# The checkout; sbatch runs a copy of the script elsewhere, so its own path does not tell.
cd "${PROJECT:-$SLURM_SUBMIT_DIR}" || exit 2
[ -e slurm/site.env ] || fail 2 "$PWD is no checkout of the project; submit from it or set PROJECT"
# shellcheck source=site.env
source "${SITE:-slurm/site.env}"
bash slurm/check_site.sh || fail 2 "the job cannot run here (see above)"

# What srun needs to run a command in the job's environment.
in_container=()
[ -z "$CONTAINER_IMAGE" ] || in_container=(
    --container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS" --no-container-mount-home
    --container-workdir="$PWD")

# A command on one node of the job, e.g. a check before all nodes start.
run_once() { srun --nodes=1 --ntasks=1 "${in_container[@]}" "$@"; }

# record_provenance FOLDER: what this start ran with, to look up later; sets `provenance`, the folder that tells it.
record_provenance() {
    provenance="$1/provenance/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    mkdir -p "$provenance" || fail 2 "$1 cannot be written"
    cp "$0" "$provenance/script"
    cp "${SITE:-slurm/site.env}" "$provenance/site.env"
    git describe --always --dirty --abbrev=12 > "$provenance/commit" 2>&1
    git diff HEAD > "$provenance/uncommitted.diff" 2> /dev/null
    env | grep -vi -E 'token|secret|password|key=' | sort > "$provenance/environment"
    python -m pip freeze > "$provenance/packages" 2> /dev/null
    scontrol show job "$SLURM_JOB_ID" > "$provenance/job" 2>&1
}

job_field() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep -oP "(?<= $1=)\S+"; }  # NAME

# Whether Slurm takes the nodes for a job with more priority. A cluster without preempt_send_user_signal ends the steps
# and tells the script nothing.
preempted() { [ "$(job_field PreemptTime)" != None ]; }

# requeue REASON: start again later, from the beginning of the script. Does not return.
requeue() {
    log "requeued: $1"
    scontrol requeue "$SLURM_JOB_ID" || fail 1 "Slurm refused"
    sleep 600   # Slurm ends this shell
    exit 1
}

# requeue_without NODES REASON: the same, on other nodes. Slurm changes the excluded nodes of pending jobs alone, and this
# one is pending from the requeue on, while its shell still has some seconds to live.
requeue_without() {
    local excluded
    excluded=$( (job_field ExcNodeList | grep -v null; echo "$1") | paste -sd ,)
    enough_nodes_without "$excluded" || fail 95 "$2, and there are too few other nodes"
    [ "$(scontrol show hostnames "$excluded" | wc -l)" -le "$MAX_EXCLUDED_NODES" ] \
        || fail 95 "$2; with this many nodes the mistake may be in ${SITE:-slurm/site.env}"
    log "requeued without $excluded: $2"
    trap "" TERM   # outlives the first signal
    scontrol requeue "$SLURM_JOB_ID" || fail 1 "Slurm refused"
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$excluded" || log "$excluded could not be excluded"
    exit 1
}

enough_nodes_without() {  # NODES
    local others
    others=$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states=idle,mixed,allocated,completing \
        --format=%N | sort -u | comm -23 - <(scontrol show hostnames "$1" | sort -u) | wc -l)
    [ "$others" -ge "$SLURM_NNODES" ]
}

# check_nodes NUM_GPUS: returns when all nodes of the job are fit for it; else the job is requeued without the others.
check_nodes() {
    local mine healthy unfit
    mine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sort) && [ -n "$mine" ] \
        || fail 2 "cannot tell the nodes of $SLURM_JOB_NODELIST"
    healthy=$(timeout 300 srun --nodes="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --no-kill \
        "${in_container[@]}" bash slurm/health_check.sh "$1" | sed -n 's/^healthy //p' | sort)
    [ -z "$EXCLUDED_NODES" ] || healthy=$(comm -23 <(echo "$healthy") <(scontrol show hostnames "$EXCLUDED_NODES" | sort))
    unfit=$(comm -23 <(echo "$mine") <(echo "$healthy") | paste -sd ,)
    [ -z "$unfit" ] && return
    preempted && requeue "preempted during the check of its nodes"
    requeue_without "$unfit" "$unfit unfit or excluded by site.env"
}

# run_stage PROGRAM ARGUMENTS…: a stage that is one process; in an array of NUM_PARTS tasks this task's part of it. What was
# written when the time limit comes is used by the next start, so the job asks for one.
run_stage() {
    local part=() step code
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || part=(--part "$SLURM_ARRAY_TASK_ID/${NUM_PARTS:-$SLURM_ARRAY_TASK_COUNT}")
    prepare_environment
    [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] || check_nodes "$SLURM_GPUS_ON_NODE"
    record_provenance "${PROVENANCE:-$SCRATCH}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    trap requeue_stage USR1
    log "python -m $* ${part[*]}"
    srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
        "${in_container[@]}" python -m "$@" "${part[@]}" &
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
    requeue "the time limit is near; it goes on where it stopped"
}

# run_torchrun PROGRAM ARGUMENTS…: torchrun on all nodes of the job.
run_torchrun() {
    local first_node code processes=${NUM_PROCESSES_PER_NODE:-${PROCESSES_PER_NODE:-$GPUS_PER_NODE}}
    prepare_environment
    [ "$GPUS_PER_NODE" = 0 ] || check_nodes "$processes"
    record_provenance "${PROVENANCE:-$SCRATCH}"
    first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) && [ -n "$first_node" ] \
        || fail 2 "cannot tell the first node of $SLURM_JOB_NODELIST"
    log "torchrun -m $*"
    srun --kill-on-bad-exit=1 --label "${in_container[@]}" \
        torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" --max-restarts 0 \
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        --rdzv-endpoint "$first_node:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-conf join_timeout=300 -m "$@" \
        || { code=$?; log "$1 ended with code $code"; exit "$code"; }
}
