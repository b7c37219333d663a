#!/bin/sh
# vLLM with the meter. The two checks are for the two failures that otherwise end in a page of traceback.
set -eu
if ! command -v nvidia-smi >/dev/null 2>&1 || ! nvidia-smi -L >/dev/null 2>&1; then
  echo "no NVIDIA GPU in this container: install the NVIDIA container toolkit, or run without --profile gpu" >&2
  exit 1
fi
status=0
# shellcheck disable=SC2086 # flags are words
python3 /opt/wattload/announce.py wattserve 8000 wattserve vllm "$VLLM_MODEL" --host 0.0.0.0 --port 8000 ${VLLM_FLAGS:-} || status=$?
if [ "$status" -ne 0 ]; then
  echo "vLLM ended with status $status serving $VLLM_MODEL: is the name right, is HF_TOKEN set for a gated model, does it fit the GPU? See the lines above" >&2
fi
exit "$status"
