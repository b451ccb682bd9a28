#!/usr/bin/env bash
# Runs one training as several processes on this machine, as a cluster would.
#
#   launch/local_processes.sh NUM_PROCESSES --config=quickstart --workdir=runs/two ...
#
# DRY_RUN=1 prints the commands instead. Process N writes to WORKDIR/process_N.log (into a temporary
# folder if WORKDIR is remote); process 0 also to the terminal. Ctrl-C and SIGTERM save and leave.
# On CPUs, XLA_FLAGS=--xla_force_host_platform_device_count=4 gives each process 4 devices.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
count=$1
shift
port=${PORT:-$((20000 + RANDOM % 10000))}
python=${PYTHON:-python}
grace=${GRACE_SECONDS:-90}

logs=
before=
for argument in "$@"; do
  if [[ $argument == --workdir=* ]]; then logs=${argument#--workdir=}; fi
  if [[ $before == --workdir ]]; then logs=$argument; fi
  before=$argument
done

command_of() {
  command=("$python" -m segmenter_jax.main "--coordinator=localhost:$port"
    "--num_processes=$count" "--process_id=$1" "${@:2}")
}

if [[ -n ${DRY_RUN:-} ]]; then
  for ((i = 0; i < count; i++)); do
    command_of "$i" "$@"
    printf '%q ' "${command[@]}"
    printf '\n'
  done
  exit
fi

if [[ -z $logs || $logs == *://* ]]; then
  logs=$(mktemp -d)
  echo "logs: $logs" >&2
fi
mkdir -p "$logs"
# Every process in a group of its own: Ctrl-C reaches this script only, which tells each once.
set -m
pids=()
for ((i = 0; i < count; i++)); do
  command_of "$i" "$@"
  if ((i == 0)); then
    "${command[@]}" > >(trap '' INT TERM; exec tee -a "$logs/process_$i.log") 2>&1 &
  else
    "${command[@]}" >>"$logs/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done

stop() { kill -s "$1" "${pids[@]}" 2>/dev/null || true; }
trap 'stop TERM' INT TERM

status=0
first=
deadline=
while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    code=0
    wait "${pids[i]}" || code=$?
    unset "pids[i]"
    if ((code && !status)); then
      status=$code
      first="process $i ended with code $code, see $logs/process_$i.log"
      echo "$first; the others are stopped" >&2
      deadline=$((SECONDS + grace))
      if ((${#pids[@]})); then stop TERM; fi
    fi
  done
  # One that waits for a process that is gone may not hear the first signal.
  if [[ -n $deadline ]] && ((SECONDS > deadline && ${#pids[@]})); then stop KILL; fi
  sleep 0.2
done
# Again, since the others may have had much to say.
if [[ -n $first ]]; then echo "error: $first" >&2; fi
exit "$status"
