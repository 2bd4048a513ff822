#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine, for tests: every node is a network and UTS namespace of its own, so ranks
# really cross hosts, and `ip link set <prefix>v2 down` really cuts node n2 off.
#
#   scripts/slurm_local.sh up [N]   start munged, slurmctld and N nodes (default 4), wait until they are idle
#   scripts/slurm_local.sh down     stop what `up` started and remove what it made; logs stay
#
# Needs root and the Debian packages slurmctld, slurmd, slurm-client, munge and iproute2 (`install` gets them); nothing is
# ever removed from the system. All state is in $SLURM_LOCAL_DIR; several clusters live side by side if each has its own
# SLURM_LOCAL_DIR, SLURM_LOCAL_PORT, SLURM_LOCAL_PREFIX (of namespaces and links) and SLURM_LOCAL_NET (three numbers).
# Partitions: `low` (default, preempted with 5 s of grace and requeued), `high` (preempts it), `side` (the last node).
set -euo pipefail
dir=${SLURM_LOCAL_DIR:-}
port=${SLURM_LOCAL_PORT:-16817}
prefix=${SLURM_LOCAL_PREFIX:-lsl}
net=${SLURM_LOCAL_NET:-10.78.0}
cpus=${SLURM_LOCAL_CPUS:-4}
packages=(slurmctld slurmd slurm-client munge iproute2)
created=$dir/run/created # one "kind name" a line: what `down` removes
export SLURM_CONF=$dir/slurm.conf

fail() {
    echo "slurm_local: $*" >&2
    exit 1
}

# alive PIDFILE PROGRAM: whether the recorded process still is that program, and no zombie.
alive() {
    local pid
    [[ -s $1 ]] || return 1
    pid=$(<"$1")
    [[ -r /proc/$pid/comm && $(<"/proc/$pid/comm") == "$2" ]] || return 1
    ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

# stop PIDFILE PROGRAM
stop() {
    local pid
    if alive "$1" "$2"; then
        pid=$(<"$1")
        kill -TERM "$pid" 2>/dev/null || true
        for _ in {1..100}; do
            alive "$1" "$2" || break
            sleep 0.1
        done
        if alive "$1" "$2"; then kill -KILL "$pid" || true; fi
    fi
    rm -f "$1"
}

install() {
    local missing=() package policy=/usr/sbin/policy-rc.d ours=no
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    # The packages must not start services of their own.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        ours=yes
    fi
    apt-get update -qq || true
    local code=0
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" || code=$?
    [[ $ours == no ]] || rm -f "$policy"
    return "$code"
}

# create netns|link NAME COMMAND...: runs it and records the thing, unless we made it before.
create() {
    grep -qxF "$1 $2" "$created" 2>/dev/null && return 0
    if [[ -e /var/run/netns/$2 ]] || ip link show "$2" >/dev/null 2>&1; then
        fail "$1 $2 exists and is not ours: set another SLURM_LOCAL_PREFIX"
    fi
    "${@:3}"
    echo "$1 $2" >>"$created"
}

network_up() { # nodes
    local i j space bridge=${prefix}br0
    if ip -o -4 addr show | grep -v " $bridge " | grep -qF " $net."; then
        fail "$net.0/24 is in use: set another SLURM_LOCAL_NET"
    fi
    create link "$bridge" ip link add "$bridge" type bridge
    ip addr replace "$net.254/24" dev "$bridge"
    ip link set "$bridge" up
    for ((i = 1; i <= $1; i++)); do
        space=$prefix$i
        create netns "$space" ip netns add "$space"
        create link "${prefix}v$i" ip link add "${prefix}v$i" type veth peer name eth0 netns "$space"
        ip link set "${prefix}v$i" master "$bridge" up
        ip -n "$space" addr replace "$net.$i/24" dev eth0
        ip -n "$space" link set lo up
        ip -n "$space" link set eth0 up
        # `ip netns exec` lays this over /etc/hosts: node names resolve inside.
        mkdir -p "/etc/netns/$space"
        {
            echo "127.0.0.1 localhost"
            echo "$net.254 $(hostname -s)"
            for ((j = 1; j <= $1; j++)); do echo "$net.$j n$j"; done
        } >"/etc/netns/$space/hosts"
    done
}

# Ends what still runs in a namespace of ours: slurmd is gone, but a job's slurmstepd and what it started outlive it.
empty() { # namespace
    local pids signal
    for signal in TERM KILL; do
        for _ in {1..30}; do
            pids=$(ip netns pids "$1" 2>/dev/null) || return 0
            [[ -n $pids ]] || return 0
            # shellcheck disable=SC2086 # one word a process
            kill "-$signal" $pids 2>/dev/null || true
            sleep 0.1
        done
    done
}

network_down() {
    local kind name
    [[ -f $created ]] || return 0
    while read -r kind name; do
        case $kind in
            netns)
                empty "$name"
                ip netns del "$name" 2>/dev/null || true
                rm -rf "/etc/netns/${name:?}"
                ;;
            link) ip link del "$name" 2>/dev/null || true ;;
        esac
    done <"$created"
    rm -f "$created"
}

configure() { # nodes
    local i host
    host=$(hostname -s)
    # The plugins that need no cgroup: this runs in containers and virtual machines.
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host($net.254)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=${SLURM_LOCAL_MIN_JOB_AGE:-600}
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=15
MessageTimeout=10
CompleteWait=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.log
CONF
    for ((i = 1; i <= $1; i++)); do
        echo "NodeName=n$i NodeHostname=n$i NodeAddr=$net.$i Port=$((port + 1)) CPUs=$cpus RealMemory=2000 State=UNKNOWN"
    done >>"$SLURM_CONF"
    cat >>"$SLURM_CONF" <<CONF
PartitionName=low Nodes=n[1-$1] Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=${SLURM_LOCAL_GRACE_S:-20} State=UP
PartitionName=high Nodes=n[1-$1] MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=side Nodes=n$1 MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=OFF State=UP
CONF
    # Parsed, never used: no cgroup plugin is selected above.
    echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
}

munge_up() {
    local socket=$dir/munge/munge.socket
    alive "$dir/run/munged.pid" munged && return 0
    if [[ ! -s $dir/munge/munge.key ]]; then
        dd if=/dev/urandom of="$dir/munge/munge.key" bs=128 count=1 status=none
        chmod 400 "$dir/munge/munge.key"
    fi
    rm -f "$socket"*
    munged --socket="$socket" --key-file="$dir/munge/munge.key" --pid-file="$dir/run/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge/munged.seed" --num-threads=2
    munge -n --socket="$socket" | unmunge --socket="$socket" >/dev/null || fail "munge does not work"
}

up() {
    local nodes=${1:-4} i
    [[ $(id -u) == 0 ]] || fail "needs root"
    command -v slurmctld slurmd munged ip >/dev/null || fail "needs the packages ${packages[*]}: scripts/slurm_local.sh install"
    mkdir -p "$dir"/{munge,state,spool,run,log}
    chmod 755 "$dir"
    chmod 711 "$dir/munge"
    munge_up
    network_up "$nodes"
    configure "$nodes"
    alive "$dir/run/slurmctld.pid" slurmctld || slurmctld -f "$SLURM_CONF"
    for ((i = 1; i <= nodes; i++)); do
        mkdir -p "$dir/spool/n$i"
        alive "$dir/run/slurmd-n$i.pid" slurmd ||
            ip netns exec "$prefix$i" unshare --uts bash -c "hostname n$i; exec slurmd -f '$SLURM_CONF' -N n$i"
    done
    for _ in {1..150}; do
        [[ $(sinfo -h -N -p low -t idle -o %N 2>/dev/null | sort -u | wc -l) != "$nodes" ]] || return 0
        sleep 0.2
    done
    tail -n 20 "$dir"/log/*.log >&2
    fail "the nodes did not come up"
}

down() {
    local file
    if alive "$dir/run/slurmctld.pid" slurmctld; then
        timeout 10 scancel --full --state=RUNNING --state=PENDING --user="$(id -un)" 2>/dev/null || true
        for _ in {1..80}; do
            [[ -n $(timeout 5 squeue -h 2>/dev/null) ]] || break
            sleep 0.1
        done
    fi
    for file in "$dir"/run/slurmd-*.pid; do
        [[ ! -e $file ]] || stop "$file" slurmd
    done
    stop "$dir/run/slurmctld.pid" slurmctld
    stop "$dir/run/munged.pid" munged
    network_down
}

case ${1:-} in
    up | down) : "${SLURM_LOCAL_DIR:?a folder for the state of the cluster}" ;;&
    install) install ;;
    up) up "${2:-4}" ;;
    down) down ;;
    *)
        sed -n '2,13s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
