#!/usr/bin/env bash
# check_site.sh [sbatch options…]
#
# Could a job with these options run on this cluster, as site.env describes it? Asked before jobs are submitted, and without
# options by each job as it starts. Prints every problem with its mend and ends with code 2 if there is one.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
site=${SITE:-slurm/site.env}
# shellcheck source=site.env
source "$site"
num_problems=0
problem() { echo "error: $*" >&2; num_problems=$((num_problems + 1)); }

check_container() {
    [[ $CONTAINER_IMAGE != /* || -e $CONTAINER_IMAGE ]] \
        || problem "the container image $CONTAINER_IMAGE is missing: mend CONTAINER_IMAGE in $site"
}

check_scratch() {
    local probe
    { mkdir -p "$SCRATCH" && probe=$(mktemp "$SCRATCH/.check-XXXXXX") && rm "$probe"; } 2> /dev/null \
        || problem "the scratch folder $SCRATCH cannot be written: mend SCRATCH in $site"
}

# Slurm's own verdict; --test-only submits nothing.
check_options() {
    local verdict
    verdict=$(sbatch --test-only "${SBATCH_OPTIONS[@]}" "$@" --wrap true 2>&1) && return
    problem "Slurm refuses a job with ${SBATCH_OPTIONS[*]} $*: ${verdict##*error: }" \
        "(its nodes: $(sinfo --noheader --format='%P %D nodes with %c CPUs and %G' | paste -sd ';'))"
}

check_container
check_scratch
[ $# -eq 0 ] || check_options "$@"
[ "$num_problems" = 0 ] || exit 2
