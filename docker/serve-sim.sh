#!/bin/sh
# The simulated GPU. Under the gpu profile vLLM serves instead, and this container stands by: modelled joules must not
# be scraped beside measured ones.
set -eu
if [ -n "${WATTLOAD_STANDBY_FOR:-}" ] && python -c "import socket, sys; socket.getaddrinfo(sys.argv[1], 8000)" "$WATTLOAD_STANDBY_FOR" 2>/dev/null; then
  : > /tmp/standing-by
  echo "standing by: $WATTLOAD_STANDBY_FOR serves, so the simulated GPU does not"
  trap 'exit 0' TERM INT
  sleep infinity &
  wait
fi
# shellcheck disable=SC2086 # flags are words
exec python /opt/wattload/announce.py wattserve 8000 wattserve sim --host 0.0.0.0 --port 8000 --profile "$WATTLOAD_SIM_PROFILE" ${WATTLOAD_SIM_FLAGS:-}
