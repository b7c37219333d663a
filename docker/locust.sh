#!/bin/sh
# Locust's web UI or, with arguments, a master or a worker. The target is WATTLOAD_TARGET, else vLLM where the gpu
# profile has brought it, else the virtual GPU.
set -eu
target=${WATTLOAD_TARGET:-}
if [ -z "$target" ]; then
  target=http://sim:8000
  if python -c "import socket; socket.getaddrinfo('vllm', 8000)" 2>/dev/null; then target=http://vllm:8000; fi
fi
echo "target: $target"
# Its metrics are at the web UI; the port of `wattload run` is not for it.
unset WATTLOAD_METRICS_PORT WATTLOAD_METRICS_HOST
exec locust -f /opt/wattload/locustfile.py --host "$target" "$@"
