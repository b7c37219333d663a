#!/usr/bin/env bash
# The first ten minutes of the two real Azure 2023 traces, at their own times and at three times their rate,
# each of the four runs against a simulated GPU of its own. Eleven minutes.
#
#   benchmarks/real_traces.sh FOLDER_OF_TRACES OUT
#
# FOLDER_OF_TRACES holds AzureLLMInferenceTrace_{conv,code}.csv (wattload traces fetch azure-2023-conv, ...-code).
set -euo pipefail
traces=$1 out=$2
bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin
mkdir -p "$out"
replay() { # replay NAME conv|code FLAGS...: a server and a run of its own
  local run=$1 trace=$2 url= server
  shift 2
  "$bin/wattserve" sim --port 0 >"$out/sim-$run.log" 2>&1 &
  server=$!
  for _ in $(seq 100); do
    url=$(grep -oE 'http://[0-9.:]+' "$out/sim-$run.log" | head -1 || true)
    [ -n "$url" ] && break
    sleep 0.2
  done
  "$bin/wattload" run "$url" --trace "$traces/AzureLLMInferenceTrace_$trace.csv" --progress plain \
    --out "$out/$run" "$@" >"$out/$run.log" 2>&1 || echo "$run: status $?"
  kill "$server"
}
for trace in conv code; do
  replay "$trace-1x" "$trace" --duration 600 --warmup 30 &
  replay "$trace-3x" "$trace" --rate 3x --duration 200 --warmup 10 &
done
wait
