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

# Variables that tell how a job computes; no others are recorded, as any may hold a secret.
recorded_variables='^(SLURM_(JOB|STEP|ARRAY|NTASKS|NNODES|NODE|GPUS|CPUS|MEM|RESTART|SUBMIT_DIR|CLUSTER)|SLURMD_NODENAME'
recorded_variables+='|CUDA_|NCCL_|GLOO_|UCX_|FI_|IB_|OMP_|MKL_|OPENBLAS_|KMP_|TORCH|PYTORCH_|NVTE_|VLLM_|TRITON_|TOKENIZERS_'
recorded_variables+='|TRANSFORMERS_OFFLINE|HF_HOME|HF_HUB_OFFLINE|XDG_CACHE_HOME|PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON|VIRTUAL_ENV'
recorded_variables+='|CONDA_(PREFIX|DEFAULT_ENV)|HOSTNAME|HOME|USER|SHELL|PWD|TMPDIR|LANG|LC_|TZ|LOADEDMODULES|MASTER_|WORLD_SIZE'
recorded_variables+='|PROJECT|SITE|PROVENANCE|SCRATCH|NUM_PARTS|NUM_PROCESSES_PER_NODE|CHECKPOINT|TRAIN_JOB)[A-Z0-9_]*='

# redact: a filter that leaves out users and passwords of addresses, keys of well-known services and the values of settings
# whose name tells that they are secret (as megatron_ext/redaction.py).
redact() {
    local name='(api|access|secret|private|signing|encryption|account)[_-]?keys?|secrets?|passw(or)?ds?|passphrases?|passwd'
    name+='|credentials?|authorization|cookies?|(access|auth|api|hf|hub|bearer|refresh|session|github|gh|gitlab|wandb)[_-]?tokens?'
    sed -E -e "s#([a-zA-Z][a-zA-Z0-9+.-]*://)[^][:space:]/@:\"']*:[^][:space:]\"']*@#\\1<redacted>@#g" \
        -e "s#(($name|(^|[^A-Za-z0-9_.-])token)[\"']?[[:space:]]*[=:][[:space:]]*[\"']?((Bearer|Basic)[[:space:]]+)?)[^][:space:]\"',;&}]+#\\1<redacted>#Ig" \
        -e 's#\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|AKIA[0-9A-Z]{16})#<redacted>#g'
}

# record_provenance FOLDER: what this start ran with, to look up later; sets `provenance`, the folder that tells it. Only the
# user can read it.
record_provenance() {
    provenance="$1/provenance/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    mkdir -p "$provenance" || fail 2 "$1 cannot be written"
    (
        umask 077
        redact < "$0" > "$provenance/script"
        redact < "${SITE:-slurm/site.env}" > "$provenance/site.env"
        git describe --always --dirty --abbrev=12 > "$provenance/commit" 2>&1
        git diff HEAD 2> /dev/null | redact > "$provenance/uncommitted.diff"
        env -0 | tr '\n' ' ' | grep -zE "$recorded_variables" | tr '\0' '\n' | sort | redact > "$provenance/environment"
        python -m pip freeze 2> /dev/null | redact > "$provenance/packages"
        scontrol show job "$SLURM_JOB_ID" 2>&1 | redact > "$provenance/job"
    )
}

# job_field NAME: of this job. Slurm shows all tasks of an array for the id of its last one, which is that of the array.
job_field() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID " | grep -oP "(?<= $1=)\S+"; }

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

# Whether this job is a task of an array; one that was submitted from within a task finds that one's variables.
is_array_task() {
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || return
    [ "$(job_field ArrayTaskId)" = "$SLURM_ARRAY_TASK_ID" ] || ! job_field JobState > /dev/null
}

# run_stage PROGRAM ARGUMENTS…: a stage that is one process; in an array of NUM_PARTS tasks this task's part of it. What was
# written when the time limit comes is used by the next start, so the job asks for one.
run_stage() {
    local part=() step code
    ! is_array_task || part=(--part "$SLURM_ARRAY_TASK_ID/${NUM_PARTS:-$SLURM_ARRAY_TASK_COUNT}")
    prepare_environment
    [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] || check_nodes "$SLURM_GPUS_ON_NODE"
    record_provenance "${PROVENANCE:-$SCRATCH}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    trap requeue_stage USR1
    log "python -m $* ${part[*]}" | redact
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
    log "torchrun -m $*" | redact
    srun --kill-on-bad-exit=1 --label "${in_container[@]}" \
        torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" --max-restarts 0 \
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        --rdzv-endpoint "$first_node:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-conf join_timeout=300 -m "$@" \
        || { code=$?; log "$1 ended with code $code"; exit "$code"; }
}
