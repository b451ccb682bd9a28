#!/usr/bin/env bash
# Runs one training as several processes on this machine, as a cluster would.
#
#   launch/local_processes.sh NUM_PROCESSES --config=configs/quickstart.py --workdir=runs/two ...
#
# DRY_RUN=1 prints the commands instead. The output of process N goes to WORKDIR/process_N.log, if a
# --workdir is given; that of process 0 also to the terminal.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
count=$1
shift
port=${PORT:-$((20000 + RANDOM % 20000))}
python=${PYTHON:-python}

logs=$(mktemp -d)
for argument in "$@"; do
  if [[ $argument == --workdir=* ]]; then logs=${argument#--workdir=}; fi
done

pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM

for ((i = 0; i < count; i++)); do
  command=("$python" -m segmenter_jax.main "--coordinator=localhost:$port"
    "--num_processes=$count" "--process_id=$i" "$@")
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    continue
  fi
  mkdir -p "$logs"
  if ((i == 0)); then
    "${command[@]}" 2>&1 | tee "$logs/process_$i.log" &
  else
    "${command[@]}" >"$logs/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done

status=0
for pid in "${pids[@]}"; do
  # One that fails takes the others down, so that nobody waits for it forever.
  wait "$pid" || { status=$?; stop; }
done
exit "$status"
