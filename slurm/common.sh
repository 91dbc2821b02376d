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
