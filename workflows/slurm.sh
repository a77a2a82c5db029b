#!/usr/bin/env bash
# A Ray cluster over the machines of a Slurm job, and one run on it. The job may be requeued at any
# time: finished batches are kept, and the same run goes on.
#
#   sbatch workflows/slurm.sh regenerate --set run=/SHARED/DISK/runs/pku
#   sbatch --nodes=2 --gpus-per-node=4 --time=04:00:00 workflows/slurm.sh mine.yaml
#
# The run directory must be one that every machine sees, and so must the environment that has aigi
# (AIGI_BIN, a folder with `aigi` and `ray`; without it, those on PATH).
#SBATCH --job-name=aigi
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch workflows/slurm.sh WORKFLOW [--set KEY=VALUE …]" >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "slurm.sh: no job of Slurm here; start it with sbatch" >&2
  exit 2
fi
[ -z "${AIGI_BIN:-}" ] || export PATH="$AIGI_BIN:$PATH"

nodes=${SLURM_JOB_NUM_NODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
# Several jobs may share a machine, each with a head of its own.
port=$((20000 + SLURM_JOB_ID % 20000))
address="$head:$port"
started=()

end_cluster() {
  trap '' TERM
  [ "${#started[@]}" -gt 0 ] || return 0
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  wait "${started[@]}" 2>/dev/null || true
}
trap end_cluster EXIT

# `--block` keeps each in its step, so that Slurm ends and accounts for all of it.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --node-ip-address="$head" --port="$port" --num-gpus="$gpus" --block &
started+=($!)
if [ "$nodes" -gt 1 ]; then
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --overlap \
    bash -c "until ray start --address=$address --num-gpus=$gpus --block; do sleep 5; done" &
  started+=($!)
fi

for _ in $(seq 60); do
  ray status --address="$address" >/dev/null 2>&1 && break
  sleep "${AIGI_WAIT:-5}"
done

# Machines that join later get work, too. What the caller sets comes later and wins.
workers=$((gpus > 0 ? gpus * nodes : nodes))
aigi run "$1" --set "compute.ray=$address" --set "compute.workers=$workers" "${@:2}" &
run=$!
requeue=
# Before the time of the job ends, and where a job of higher priority needs the machines.
trap 'requeue=yes; kill -TERM "$run" 2>/dev/null || true' TERM
code=0
wait "$run" || code=$?
# A signal ends the first wait; the run itself ends when its work is in order.
while kill -0 "$run" 2>/dev/null; do
  code=0
  wait "$run" || code=$?
done

if [ -n "$requeue" ] && [ "$code" -ne 0 ]; then
  echo "slurm.sh: stopped with exit code $code; requeued to go on" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
