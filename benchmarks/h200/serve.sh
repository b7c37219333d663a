#!/usr/bin/env bash
# Starts a server of random weights in the shape of Llama-3.1-8B and waits until it answers.
#
#   serve.sh metered|plain PORT FOLDER [any vllm serve flag]
#
# `metered` is `wattserve vllm`, `plain` is vLLM's own `vllm serve` without anything of ours. FOLDER receives
# server.log, server.pid and, when metered, the recording of every step and reading. The server survives the call.
# Environment: MODEL_SHAPE (llama-3.1-8b), METER (nvml), PYTHON (python3), WAIT_SECONDS (300), VLLM_CLI (how
# Python starts vLLM's command line).
set -euo pipefail
mode=$1 port=$2 folder=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
shape=${MODEL_SHAPE:-llama-3.1-8b}
python=${PYTHON:-python3}
mkdir -p "$folder"
# /tmp/site is where unpack.sh puts vLLM and wattload; elsewhere they are installed.
if [ -d /tmp/site ]; then export PYTHONPATH=/tmp/site${PYTHONPATH:+:$PYTHONPATH}; fi
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
# vLLM for offline machines is packed without FlashInfer; its own sampler serves both modes alike.
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}
# On hosts that are shared NVLink multicast must stay off. What can use it in vLLM 0.24 to 0.32: NCCL (NVLS), PyTorch's
# symmetric memory, NVSHMEM, vLLM's own all-reduce on symmetric memory (on by default), its NCCL symmetric memory,
# and FlashInfer's all-reduce (on by default in 0.32).
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
export VLLM_ALLREDUCE_USE_SYMM_MEM=0 VLLM_USE_NCCL_SYMM_MEM=0 VLLM_ALLREDUCE_USE_FLASHINFER=0
parallel=()
for argument in "$@"; do
  case $argument in
  --tensor-parallel-size* | --tensor_parallel_size* | -tp* | --pipeline-parallel-size* | --pipeline_parallel_size* | -pp*)
    # The custom all-reduce of newer versions can ask for multicast too; the fusion pass uses FlashInfer's
    # all-reduce wherever that is installed. NCCL alone moves the data then.
    parallel=(--disable-custom-all-reduce -cc.pass_config.fuse_allreduce_rms=false)
    ;;
  esac
done
model=${TMPDIR:-/tmp}/model-$shape
[ -f "$model/config.json" ] || "$python" "$here/../random_model.py" "$shape" "$model"
common=(--load-format dummy --served-model-name "$shape" --host 127.0.0.1 --port "$port" --disable-uvicorn-access-log)
case $mode in
metered)
  command=("$python" -m wattserve.vllm "$model" "${common[@]}" --energy-meter "${METER:-nvml}"
    --energy-record "$folder/recording" "${parallel[@]}" "$@")
  ;;
plain)
  # The plugin of an installed wattload stays out as well: an empty allow-list.
  export VLLM_PLUGINS=
  read -ra cli <<<"${VLLM_CLI:--m vllm.entrypoints.cli.main}"
  command=("$python" "${cli[@]}" serve "$model" "${common[@]}" "${parallel[@]}" "$@")
  ;;
*)
  echo "serve.sh: the first argument is metered or plain, not $mode" >&2
  exit 2
  ;;
esac
setsid "${command[@]}" >"$folder/server.log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$folder/server.pid"
start=$SECONDS
until curl -sf -o /dev/null "http://127.0.0.1:$port/health"; do
  if ! kill -0 "$pid" 2>/dev/null; then
    echo "serve.sh: the server ended while it started:" >&2
    tail -n 40 "$folder/server.log" >&2
    exit 1
  fi
  if [ $((SECONDS - start)) -ge "${WAIT_SECONDS:-300}" ]; then
    echo "serve.sh: no answer on port $port after $((SECONDS - start)) s" >&2
    tail -n 40 "$folder/server.log" >&2
    exit 1
  fi
  sleep 1
done
echo "serve.sh: $mode server on port $port after $((SECONDS - start)) s, pid $pid"
