#!/usr/bin/env bash
# A real Slurm cluster on one machine: slurmctld, and nodes that each have a network, a host name and 8 pretended GPUs.
#   cluster.sh up FOLDER NUM_NODES    as the first process of new PID, network, mount, host name and IPC namespaces
#   cluster.sh start_node FOLDER N    from inside them
#   cluster.sh stop_node FOLDER N     like a power cut: first the network goes, then every process
# Everything lives in those namespaces and in FOLDER: when the first process dies, however it dies, all is gone.
set -euo pipefail

root=$2
export SLURM_CONF=$root/slurm.conf

wait_for() {  # SECONDS COMMAND…
    local deadline=$((SECONDS + $1))
    until "${@:2}" > /dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "waited $1 s in vain for: ${*:2}" >&2; exit 1; }
        sleep 0.05
    done
}

make_networks() {  # NUM_NODES: a bridge, and a network namespace a node on it
    mount -t tmpfs tmpfs /run
    cp /etc/hosts "$root/hosts"
    ip link set lo up
    ip link add cluster type bridge
    ip address add 10.77.0.1/24 dev cluster
    ip link set cluster up
    for i in $(seq "$1"); do
        ip netns add "node$i"
        ip link add "node$i" type veth peer name eth0 netns "node$i"
        ip link set "node$i" master cluster up
        ip -n "node$i" address add 10.77.0.$((10 + i))/24 dev eth0
        ip -n "node$i" link set eth0 up
        ip -n "node$i" link set lo up
        echo "10.77.0.$((10 + i)) node$i" >> "$root/hosts"
    done
    mount --bind "$root/hosts" /etc/hosts
}

write_configuration() {  # NUM_NODES
    sed -e "s|@ROOT@|$root|" -e "s|@HOST@|$(hostname)|" "$(dirname "$0")/slurm.conf" > "$SLURM_CONF"
    mkdir -p "$root"/{munge,state,log,gpus}
    for i in $(seq 0 7); do mknod "$root/gpus/gpu$i" c 1 3; done   # gres wants devices: /dev/null eight times
    echo "Name=gpu Type=h100 File=$root/gpus/gpu[0-7]" > "$root/gres.conf"
    for i in $(seq "$1"); do
        mkdir -p "$root/spool-node$i"
        echo "NodeName=node$i NodeAddr=10.77.0.$((10 + i)) CPUs=16 RealMemory=16000 Gres=gpu:h100:8" >> "$SLURM_CONF"
    done
    head -c 128 /dev/urandom > "$root/munge/key"
    chmod 600 "$root/munge/key"
}

start_controller() {
    munged --force --key-file="$root/munge/key" --socket="$root/munge/socket" --pid-file="$root/munge/pid" \
        --log-file="$root/log/munged.log" --seed-file="$root/munge/seed"
    slurmctld > "$root/log/slurmctld.out" 2>&1
    wait_for 20 scontrol ping
}

start_node() {  # N: slurmd with a network, a host name and mounts of its own, which its jobs share
    ip link set "node$1" up
    # shellcheck disable=SC2016
    setsid nsenter --net="/run/netns/node$1" unshare --uts --mount \
        bash -c 'hostname "node$1" && echo $$ > "$2/node$1.pid" && exec slurmd -D -N "node$1"' _ "$1" "$root" \
        > "$root/log/node$1.out" 2>&1 < /dev/null &
    wait_for 30 idle "node$1"
}

stop_node() {
    ip link set "node$1" down
    ip netns pids "node$1" | xargs -r kill -9
}

idle() { sinfo -h -n "$1" -p batch -o %t | grep -qx idle; }

up() {
    make_networks "$1"
    write_configuration "$1"
    start_controller
    for i in $(seq "$1"); do start_node "$i"; done
    echo ready
    while :; do sleep 5; done   # the first process adopts and reaps orphans
}

case $1 in
    up | start_node | stop_node) "$1" "$3" ;;
    *) echo "unknown command $1" >&2; exit 2 ;;
esac
