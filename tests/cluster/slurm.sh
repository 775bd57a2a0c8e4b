# A Slurm of one node, in a folder of its own, without systemd and cgroups; nothing listens beyond loopback. Read by run.sh, in
# a mount namespace of its own, where this folder's configuration is /etc/slurm and nobody else sees it.
# Expects: folder, accounting (none or slurmdbd). PORT (16817) is the first of three ports.
# The node has two GPUs that are empty files, in the partition "gpu".
host=$(hostname -s) port=${PORT:-16817}

missing() {
    echo "error: a Slurm to try: expected $1, found none; apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server" >&2
    exit 3
}

check() {
    local needed=(munged munge slurmctld slurmd sbatch) tool
    [ "$accounting" = none ] || needed+=(slurmdbd sacctmgr mariadbd mariadb-install-db mariadb-admin)
    for tool in "${needed[@]}"; do PATH=$PATH:/usr/sbin command -v "$tool" > /dev/null || missing "$tool"; done
    [ "$(id -u)" = 0 ] || { echo "error: a Slurm to try: expected root, found $(id -un)" >&2; exit 3; }
    [[ $(getent ahostsv4 "$host") == 127.* ]] || { echo "error: /etc/hosts: expected a loopback address for $host" >&2; exit 3; }
}

background() {  # NAME COMMAND...: its process id is kept in run/NAME.pid
    local name=$1
    shift
    "$@" > "$folder/log/$name.out" 2>&1 < /dev/null &
    echo $! > "$folder/run/$name.pid"
}

await() {  # NAME COMMAND...: until the command succeeds
    local name=$1
    shift
    for _ in $(seq 240); do
        "$@" > /dev/null 2>&1 && return
        sleep 0.5
    done
    echo "error: $name did not come up; see $folder/log" >&2
    exit 1
}

configure() {
    mkdir -p "$folder"/{etc,log,run,state,spool,munge,mysqld,database}
    chmod 755 "$folder"
    head -c 1024 /dev/urandom > "$folder/munge/key"
    chmod 400 "$folder/munge/key"
    chown -R munge: "$folder/munge"
    touch "$folder/run/gpu0" "$folder/run/gpu1"
    local memory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) * 85 / 102400))
    cat > "$folder/etc/slurm.conf" <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# Loopback alone: without these two, daemons listen on every address.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmctldPidFile=$folder/run/slurmctld.daemon
SlurmdPidFile=$folder/run/slurmd.daemon
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
# No cgroups: jobs are found by their processes' parents, and memory is polled.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=5
MinJobAge=300
KillWait=5
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes=$host MaxTime=1-00:00:00 State=UP
CONF
    echo "NodeName=$host Name=gpu File=$folder/run/gpu[0-1]" > "$folder/etc/gres.conf"
    [ "$accounting" = slurmdbd ] || { echo "AccountingStorageType=accounting_storage/none" >> "$folder/etc/slurm.conf"; return; }
    cat >> "$folder/etc/slurm.conf" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))
AccountingStorageEnforce=associations
CONF
    cat > "$folder/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/run/slurmdbd.daemon
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounting
CONF
    chmod 600 "$folder/etc/slurmdbd.conf"
}

start() {
    configure
    mkdir -p /etc/slurm /run/mysqld /run/munge
    mount --bind "$folder/etc" /etc/slurm
    mount --bind "$folder/mysqld" /run/mysqld
    mount --bind "$folder/munge" /run/munge
    background munged setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged --foreground --force \
        --key-file="$folder/munge/key" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    await munged munge -n
    if [ "$accounting" = slurmdbd ]; then
        mariadb-install-db --no-defaults --user=root --datadir="$folder/database" --auth-root-authentication-method=socket \
            --skip-test-db > "$folder/log/install.out" 2>&1
        # slurmdbd's localhost is the client library's default socket, whatever its configuration says.
            background mariadbd /usr/sbin/mariadbd --no-defaults --user=root --datadir="$folder/database" --skip-networking \
            --socket=/run/mysqld/mysqld.sock --innodb-buffer-pool-size=64M --innodb-log-file-size=16M
        await mariadbd mariadb-admin --no-defaults --socket=/run/mysqld/mysqld.sock ping
        background slurmdbd /usr/sbin/slurmdbd -D
        await slurmdbd sacctmgr -n list cluster
        sacctmgr -i -Q add cluster try > /dev/null || true
        sacctmgr -i -Q add account mine Description=try Organization=try > /dev/null || true
        sacctmgr -i -Q add user root Account=mine > /dev/null || true
    fi
    background slurmctld /usr/sbin/slurmctld -D -c
    background slurmd /usr/sbin/slurmd -D
    await "the node" sh -c "sinfo -h -o %T | grep -qE '^(idle|mixed)'"
}

stop() {
    scancel --user=root 2> /dev/null && sleep 3 || true
    for name in slurmd slurmctld slurmdbd mariadbd munged; do
        local pid
        pid=$(cat "$folder/run/$name.pid" 2> /dev/null) || continue
        kill "$pid" 2> /dev/null || true
        for _ in $(seq 80); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.25
        done
        kill -0 "$pid" 2> /dev/null && kill -9 "$pid"
    done
}
