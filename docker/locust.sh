#!/bin/sh
# Locust's web UI or, with arguments, a master or a worker. The target is WATTLOAD_TARGET, else vLLM where the gpu
# profile has brought it, else the virtual GPU.
set -eu
target=${WATTLOAD_TARGET:-}
if [ -z "$target" ]; then
  target=http://sim:8000
  # Under the gpu profile both start at once, and the name is there within moments. Not a dependency in the compose
  # file: where vLLM cannot start, Locust shall.
  for _ in 1 2 3; do
    if python -c "import socket; socket.getaddrinfo('vllm', 8000)" 2>/dev/null; then target=http://vllm:8000; break; fi
    sleep 1
  done
fi
echo "target: $target"
# Its metrics are at the web UI; the port of `wattload run` is not for it.
unset WATTLOAD_METRICS_PORT WATTLOAD_METRICS_HOST
exec locust -f /opt/wattload/locustfile.py --host "$target" "$@"
