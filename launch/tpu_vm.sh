#!/usr/bin/env bash
# One training on a Cloud TPU slice of any size, as a queued resource.
#
#   launch/tpu_vm.sh create                    asks for the slice and waits until it is there
#   launch/tpu_vm.sh copy                      installs this repository on all of its hosts
#   launch/tpu_vm.sh run --config=... --workdir=gs://...       trains, in the foreground
#   launch/tpu_vm.sh resume --config=... --workdir=gs://...    all three, again after each preemption
#   launch/tpu_vm.sh delete
#
# Set NAME, ZONE, ACCELERATOR (for example v5litepod-16) and, if need be, PROJECT, RUNTIME, SPOT=1.
# Closing the terminal ends `run`, not the training. DRY_RUN=1 prints the commands instead.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

action=${1:-}
if [[ ! $action =~ ^(create|copy|run|resume|delete)$ ]]; then usage; fi
shift
slice=${NAME:-}
for variable in NAME ZONE ACCELERATOR; do
  if [[ -z ${!variable:-} ]]; then
    echo "error: set $variable" >&2
    usage
  fi
done
if [[ $action =~ ^(run|resume)$ && $# -lt 2 ]]; then usage; fi

runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
where=("--zone=$ZONE")
if [[ -n ${PROJECT:-} ]]; then where+=("--project=$PROJECT"); fi
spot=()
if [[ -n ${SPOT:-} ]]; then spot=(--spot); fi

do_it() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

state() {
  if [[ -n ${DRY_RUN:-} ]]; then return; fi
  gcloud compute tpus queued-resources describe "$slice" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

create() {
  do_it gcloud compute tpus queued-resources create "$slice" "--node-id=$slice" "${where[@]}" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$runtime" ${spot[@]+"${spot[@]}"}
  if [[ -n ${DRY_RUN:-} ]]; then return; fi
  until [[ $(state) == ACTIVE ]]; do
    if [[ $(state) =~ ^(FAILED|SUSPENDED)$ ]]; then
      echo "error: the queued resource $slice is $(state)" >&2
      return 1
    fi
    sleep 30
  done
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$slice" "${where[@]}" --force --quiet
}

on_all_hosts() {
  do_it gcloud compute tpus tpu-vm ssh "$slice" "${where[@]}" --worker=all "--command=$1"
}

copy() {
  local archive
  archive=$(mktemp -d)/segmenter_jax.tar.gz
  do_it git archive --format=tar.gz --output="$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive" "$slice:segmenter_jax.tar.gz" "${where[@]}" \
    --worker=all
  on_all_hosts "mkdir -p segmenter && tar xzf segmenter_jax.tar.gz -C segmenter && cd segmenter \
&& python3 -m venv .venv && .venv/bin/pip install -q '.[tpu,gcs]'"
}

run() {
  local arguments
  arguments=$(printf '%q ' "$@")
  on_all_hosts "cd segmenter && .venv/bin/python -m segmenter_jax.main --interrupted_code=75 \
$arguments"
}

resume() {
  while true; do
    if [[ $(state) != ACTIVE ]]; then
      if [[ -n $(state) || -n ${DRY_RUN:-} ]]; then delete; fi
      create
      copy
    fi
    if run "$@"; then return; fi
    # A preemption is told to the run first.
    sleep 120
    if [[ $(state) == ACTIVE ]]; then
      echo "error: the run failed on a slice that is still there" >&2
      return 1
    fi
    echo "the slice is gone; asking for another" >&2
  done
}

"$action" "$@"
