#!/bin/sh
# Locust's web UI or, with arguments, a master or a worker. The target is WATTLOAD_TARGET, else what is there.
set -eu
# A name that nobody has is answered late where there is no network; a second is enough on the compose network.
export RES_OPTIONS="timeout:1 attempts:1"
target=${WATTLOAD_TARGET:-$(python /opt/wattload/target.py)}
echo "target: $target"
# Its metrics are at the web UI; the port of `wattload run` is not for it.
unset RES_OPTIONS WATTLOAD_METRICS_PORT WATTLOAD_METRICS_HOST
exec locust -f /opt/wattload/locustfile.py --host "$target" "$@"
