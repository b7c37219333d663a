#!/usr/bin/env bash
# The harness `wattload` of llm-d-benchmark: the profile's load against the stack, its GPUs metered.
# The benchmark sets the variables LLMDBENCH_*; WATTLOAD_ENERGY names the source of energy (default: the stack itself).
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
results=${LLMDBENCH_RUN_EXPERIMENT_RESULTS_DIR:?the folder for results, which llm-d-benchmark sets}
endpoint=${LLMDBENCH_HARNESS_STACK_ENDPOINT_URL:?the address of the stack, which llm-d-benchmark sets}
profile=${LLMDBENCH_RUN_WORKSPACE_DIR:?}/profiles/wattload/${LLMDBENCH_RUN_EXPERIMENT_HARNESS_WORKLOAD_NAME:?}
mkdir -p "$results"

energy=()
[ -z "${WATTLOAD_ENERGY:-}" ] || energy=(--energy "$WATTLOAD_ENERGY")
wattload run "$endpoint" --config "$profile" --out "$results/run" --progress plain "${energy[@]}" \
  > >(tee -a "$results/stdout.log") 2> >(tee -a "$results/stderr.log" >&2)
status=$?
# A run that is not valid (1) has a report all the same, which says why.
if [ -e "$results/run/run.json" ]; then
  python3 "$here/benchmark_report.py" "$results/run" "$results/benchmark_report_v0.2.1,_run_wattload.yaml" || status=$?
fi
export LLMDBENCH_RUN_EXPERIMENT_HARNESS_RC=$status
exit $status
