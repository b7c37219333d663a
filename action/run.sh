#!/usr/bin/env bash
# The action's one step: installs wattload from this repository, makes a run, compares it with a baseline, and writes
# the job's summary and outputs. Its settings are the WL_ variables of action.yml. WATTLOAD: a command to use instead.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
summary=${GITHUB_STEP_SUMMARY:-/dev/stdout}
outputs=${GITHUB_OUTPUT:-/dev/null}

if [ -z "${WATTLOAD:-}" ]; then
  environment=${RUNNER_TEMP:-/tmp}/wattload-environment
  "${WL_PYTHON:-python3}" -m venv "$environment" && "$environment/bin/python" -m pip install -q --disable-pip-version-check "$here[load]" \
    || { echo "::error title=wattload::not installed: see the log above"; exit 2; }
  WATTLOAD=$environment/bin/wattload
fi

# Words as in a shell, so that --assert 'a < b' is two of them; nothing in them is expanded.
arguments=()
if [ -n "${WL_ARGS:-}" ]; then
  words=$("${WL_PYTHON:-python3}" -c 'import os, shlex, sys; sys.stdout.write("".join(w + "\n" for w in shlex.split(os.environ["WL_ARGS"])))') \
    || { echo "::error title=wattload::args: a quote is not closed"; exit 2; }
  mapfile -t arguments <<<"$words"
fi
$WATTLOAD run "$WL_URL" --trace "$WL_TRACE" --rate "$WL_RATE" --arrivals poisson --duration "$WL_DURATION" --warmup "$WL_WARMUP" \
  --seed "$WL_SEED" --out "$WL_OUT" --progress plain ${arguments[@]+"${arguments[@]}"} 2>&1 | tee "${RUNNER_TEMP:-/tmp}/wattload-run.log"
status=${PIPESTATUS[0]}

[ -e "$WL_OUT/run.json" ] || { echo "::error title=wattload::no run was made: $(tail -1 "${RUNNER_TEMP:-/tmp}/wattload-run.log")"; exit "$((status ? status : 1))"; }
"${WL_PYTHON:-python3}" - "$WL_OUT" >>"$outputs" <<'PYTHON'
import json, sys
run = json.load(open(sys.argv[1] + "/run.json"))
energy = run.get("energy") or {}
per_request = (energy.get("per_request_joules") or {}).get("mean")
per_token = energy.get("per_output_token_joules")
shown = lambda value: "" if value is None else f"{value:.6g}"
print(f"run={sys.argv[1]}")
print(f"valid={str(run['valid']).lower()}")
print(f"joules-per-request={shown(per_request)}")
print(f"joules-per-output-token={shown(per_token)}")
PYTHON
{
  echo "## wattload: $WL_TRACE at $WL_RATE requests per second"
  echo '```'; $WATTLOAD report "$WL_OUT"; echo '```'
} >>"$summary" 2>&1

compared=0
if [ -n "${WL_BASELINE:-}" ] && [ -e "$WL_BASELINE/run.json" ]; then
  conditions=()
  while IFS= read -r condition; do
    [ -z "${condition// }" ] || conditions+=(--fail-if "$condition")
  done <<<"$WL_FAIL_IF"
  comparison=$($WATTLOAD compare "$WL_BASELINE" "$WL_OUT" ${conditions[@]+"${conditions[@]}"} 2>&1)
  compared=$?
  echo "$comparison"
  { echo "### Against the baseline"; echo '```'; echo "$comparison"; echo '```'; } >>"$summary"
  case $compared in
    0) ;;
    3) echo "::warning title=wattload::no verdict: $(echo "$comparison" | tail -1)"; compared=0 ;;
    1) echo "::error title=Energy regression::$(echo "$comparison" | tail -1)" ;;
    *) echo "::error title=wattload::not compared: $(echo "$comparison" | tail -1)" ;;
  esac
elif [ -n "${WL_BASELINE:-}" ]; then
  echo "::notice title=wattload::no baseline in $WL_BASELINE: nothing was compared"
fi
[ "$status" = 0 ] || { echo "::error title=wattload::$(tail -1 "${RUNNER_TEMP:-/tmp}/wattload-run.log")"; exit "$status"; }
exit "$compared"
