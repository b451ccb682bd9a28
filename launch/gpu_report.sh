#!/usr/bin/env bash
# Measures on one GPU what this project does there, in at most 10 minutes, what matters most first.
#
#   launch/gpu_report.sh FOLDER [SECTION ...]
#
# Tables go to FOLDER/report.md and to the terminal, each line as soon as it is known; FOLDER/logs
# has all that the commands said. The sections, all by default: versions attention loss steps
# inference compile trace training. SECONDS_IN_ALL=600 is the time for them.
# PEER=program.py is measured beside steps and inference: it takes --variant, --size, --batch and
# --mode (train or infer-host), and ends with a line of JSON that has images_per_s.
# DRY_RUN=1 takes a tiny network, to try all of it without a GPU.
set -euo pipefail

sections=(versions attention loss steps inference compile trace training)
if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if [[ -n $(ls -A "$1" 2>/dev/null) && ! -f $1/report.md ]]; then
  echo "error: $1 is neither empty nor the folder of an earlier report" >&2
  exit 2
fi
mkdir -p "$1/logs"
folder=$(cd "$1" && pwd)
shift
if (($#)); then sections=("$@"); fi
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
deadline=$((SECONDS + ${SECONDS_IN_ALL:-600}))
report=$folder/report.md
: >"$report"
# An empty one: what compiles here for the first time compiles cold.
export JAX_COMPILATION_CACHE_DIR=$folder/cache
rm -rf "$folder/cache" "$folder/trace" "$folder/run"

common=(--devices=1)
attention=()
peer=()
training=(--config=quickstart "--workdir=$folder/run" "--config.dataset.data_dir=$folder/data")
if [[ -n ${DRY_RUN:-} ]]; then
  common+=(--width=64 --depth=1 --num_heads=1 --size=32 --batch_size=2 --classes=3 --steps=2
    --warmup=1 --peak_tflops=1)
  attention=(--tokens=17)
  peer=(--size=32 --batch=2 --classes=3 --steps=2 --warmup=1 --no-compile)
  training+=(--config.total_steps=4 --config.optimizer.warmup_steps=1)
fi

say() { printf '%s\n' "$@" | tee -a "$report"; }

# table HEADING COLUMN...: begins a table; columns are names of values in the results.
table() {
  columns=("${@:2}")
  local names=("${columns[@]##*.}") line='| |' rule='| --- |'
  # With such columns there is one cell more, see benchmark/markdown.py.
  if [[ $2 == \** ]]; then names=('' "${names[@]#\*_}"); fi
  line+=$(printf ' %s |' "${names[@]}")
  rule+=$(printf ' --- |%.0s' "${names[@]}")
  say "" "## $1" "" "$line" "$rule"
}

# attempt LIMIT LABEL COMMAND...: runs a command for at most LIMIT seconds. What it printed is in
# the files $log.out and $log.err; why it failed in $problem.
attempt() {
  local limit=$1 left=$((deadline - SECONDS)) code=0
  log=$folder/logs/${2//[^[:alnum:]]/_}
  if ((left < limit)); then limit=$left; fi
  if ((limit < 5)); then
    problem="not run: the time is over"
    return 1
  fi
  timeout --kill-after=5 "$limit" "${@:3}" >"$log.out" 2>"$log.err" || code=$?
  case $code in
    0) return ;;
    124 | 137) problem="ended after $limit s" ;;
    *) problem="failed with code $code: $(tail -n 1 "$log.err" | tr '|' '/')" ;;
  esac
  return 1
}

# row LIMIT LABEL COMMAND...: the same, and its line of the table, or lines.
row() {
  if attempt "$@"; then lines "$2"; else say "| $2 | $problem |"; fi
}

# lines LABEL: of the table, from the result of the last attempt.
lines() {
  "$python" -m segmenter_jax.benchmark.markdown "$1" "${columns[@]}" <"$log.out" 2>"$log.err" |
    tee -a "$report" || say "| $1 | no result, see $log.out |"
}

measure() {
  row "$1" "$2" "$python" -m segmenter_jax.benchmark "${@:3}" "${common[@]}" \
    --json="$folder/results.jsonl"
}

beside() {
  if [[ -n ${PEER:-} ]]; then row "$1" "$2, peer" "$python" "$PEER" "${@:3}" "${peer[@]}"; fi
}

do_versions() {
  say "# GPU report, $(date -u '+%Y-%m-%d %H:%M') UTC" ""
  local of_packages='
import ctypes, platform, re
from importlib import metadata
import jax
print("- Python", platform.python_version())
print("- devices:", *(device.device_kind for device in jax.devices()))
try:
    print("- cuDNN", ctypes.CDLL("libcudnn.so.9").cudnnGetVersion())
except OSError:
    print("- no cuDNN is loaded")
named = {d.name.lower(): d.version for d in metadata.distributions()}
shown = re.compile("(jax.*|flax|nvidia-(cudnn|cublas|cuda-nvcc).*|torch)")
print("-", ", ".join(f"{n} {v}" for n, v in sorted(named.items()) if shown.fullmatch(n)))
'
  if attempt 60 versions "$python" -c "$of_packages"; then problem=$(<"$log.out"); fi
  say "$problem"
  if attempt 10 driver nvidia-smi --format=csv,noheader \
    --query-gpu=name,driver_version,memory.total,power.limit; then
    problem=$(<"$log.out")
  fi
  say "- driver: $problem"
}

do_attention() {
  table "Attention, batch 8, head size 64" \
    '*_forward_ms' '*_train_ms' '*_train_tflops' '*_train_temp_memory_mb' '*_unavailable'
  while read -r tokens heads variant; do
    measure 60 "$tokens tokens, $heads heads" attention "--variant=$variant" "--tokens=$tokens" \
      "${attention[@]}"
  done <<<$'1025 12 B/16\n1174 6 S/16\n1601 16 L/16'
}

do_loss() {
  table "Loss and its gradient, batch 8 at 512" '*_step_ms' '*_temp_memory_mb'
  measure 60 "150 classes" loss --variant=Ti/16
}

do_steps() {
  table "Training step, bf16, mask decoder" images_per_s step_ms min_ms mfu_percent compile_s \
    temp_memory_mb peak_device_memory_mb
  step 90 S/16 512 8 "--profile=$folder/trace/step"
  step 90 B/16 512 8 --scan_layers
  step 90 B/16 512 32 --scan_layers
  step 90 L/16 640 8 --scan_layers
}

# step LIMIT VARIANT SIZE BATCH FLAG...
step() {
  local label="$2 at $3, batch $4"
  measure "$1" "$label" step "--variant=$2" "--size=$3" "--batch_size=$4" "${@:5}"
  beside "$1" "$label" --mode=train "--variant=$2" "--size=$3" "--batch=$4"
}

do_inference() {
  table "Inference, host bytes to host ids" images_per_s step_ms min_ms mfu_percent first_call_s
  local network=(--variant=S/16 --size=512)
  measure 90 "S/16 at 512, batch 8, inference" infer "${network[@]}" --batch_size=8 \
    "--profile=$folder/trace/inference"
  beside 90 "S/16 at 512, batch 8, inference" --mode=infer-host "${network[@]}" --batch=8
}

do_compile() {
  table "Compiling in a second start; the first is above" compile_s first_call_s
  local network=(--variant=S/16 --size=512 --batch_size=8)
  measure 60 "step, from the cache" step "${network[@]}" --steps=1 --warmup=0
  measure 60 "inference, from the cache" infer "${network[@]}" --steps=1 --warmup=0
}

do_trace() {
  local name
  for name in step inference; do
    if ! attempt 30 "trace of $name" "$python" -m segmenter_jax.benchmark trace \
      "$folder/trace/$name" --top=12; then
      say "" "## Trace of three calls: $name" "" "$problem"
      continue
    fi
    table "Trace of three calls: $name" busy_percent busy_ms span_ms launches
    lines "$name"
    table "Longest operations: $name" longest.ms longest.percent longest.count longest.name \
      longest.source
    lines "$name"
  done
}

do_training() {
  local start=$SECONDS
  say "" "## A whole run: quickstart" ""
  if ! attempt 120 quickstart "$python" -m segmenter_jax.main "${training[@]}"; then
    say "- $problem"
    return
  fi
  say "- $((SECONDS - start)) s in all"
  grep -E 'compiled in|step [0-9]+/|mean IoU' "$log.err" | tail -n 4 | sed 's/^/- /' |
    tee -a "$report" || say "- it logged no result"
}

for section in "${sections[@]}"; do
  if [[ $(type -t "do_$section") != function ]]; then
    echo "error: no section $section" >&2
    exit 2
  fi
  "do_$section"
done
