#!/bin/bash
# The workflow on a Slurm that is started for it here: refusals, an interruption, a training that is cancelled and one whose time
# ends, to results/ap_figure.png. Needs root and Debian's slurm-wlm, munge, slurmdbd and mariadb-server.
# Usage: tests/cluster/run.sh [--without-accounting] [--folder FOLDER] [--checks CHECK...] [--experiments EXPERIMENT...]
#        tests/cluster/run.sh [--without-accounting] [--folder FOLDER] -- COMMAND...
# FOLDER (build/cluster) is made anew and has everything. CHECK is refused, interrupted or figure; a COMMAND is run beside that
# Slurm instead of the checks.
set -euo pipefail
here=$(realpath "$(dirname "$0")") root=$(realpath "$(dirname "$0")/../..")
arguments=("$@")
folder=$root/build/cluster accounting=slurmdbd
while [ $# -gt 0 ]; do
    case $1 in
        --without-accounting) accounting=none ;;
        --folder) folder=$(realpath -m "$2"); shift ;;
        --checks | --experiments) break ;;
        --) break ;;
        *) sed -n 2,7p "$0" >&2; exit 2 ;;
    esac
    shift
done
. "$here/slurm.sh"
check
# A namespace of mounts: /etc/slurm is another one for these processes alone.
[ -n "${IN_NAMESPACE:-}" ] || IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "${arguments[@]}"
rm -rf "$folder"
mkdir -p "$folder"
unset SLURM_CONF
trap stop EXIT
started=$(date +%s)
start
echo "a Slurm with AccountingStorageType=$accounting came up in $(($(date +%s) - started)) s"
python=${PYTHON:-$root/.venv/bin/python}
export PATH=$(dirname "$python"):$PATH PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [ "${1:-}" = -- ]; then
    "${@:2}"
else
    "$python" "$here/checks.py" --folder "$folder/workflow" --accounting "$accounting" "$@"
fi
