#!/usr/bin/env bash
# The first ten minutes of the two real Azure 2023 traces, at their own times and at three times their rate,
# each trace against a virtual GPU of its own. Fourteen minutes.
#
#   benchmarks/real_traces.sh FOLDER_OF_TRACES OUT
#
# FOLDER_OF_TRACES holds AzureLLMInferenceTrace_{conv,code}.csv (wattload traces fetch azure-2023-conv, ...-code).
set -euo pipefail
traces=$1 out=$2
bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin
mkdir -p "$out"
replay() { # replay conv|code: one server, two runs
  local name=$1 url=
  "$bin/wattserve" sim --port 0 >"$out/sim-$name.log" 2>&1 &
  local server=$!
  for _ in $(seq 100); do
    url=$(grep -oE 'http://[0-9.:]+' "$out/sim-$name.log" | head -1 || true)
    [ -n "$url" ] && break
    sleep 0.2
  done
  "$bin/wattload" run "$url" --trace "$traces/AzureLLMInferenceTrace_$name.csv" --duration 600 \
    --warmup 30 --progress plain --out "$out/$name-1x" >"$out/$name-1x.log" 2>&1 || echo "$name 1x: status $?"
  "$bin/wattload" run "$url" --trace "$traces/AzureLLMInferenceTrace_$name.csv" --rate 3x --duration 200 \
    --warmup 10 --progress plain --out "$out/$name-3x" >"$out/$name-3x.log" 2>&1 || echo "$name 3x: status $?"
  kill "$server"
}
replay conv &
replay code &
wait
