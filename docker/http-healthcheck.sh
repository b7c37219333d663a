#!/bin/sh
# http-healthcheck.sh HOST PORT PATH: healthy when the path answers 200. Grafana's and Prometheus's images have
# busybox's wget; an image without one but with bash can open the connection itself.
set -eu
if command -v wget >/dev/null 2>&1; then
  exec wget -q -O /dev/null "http://$1:$2$3"
fi
exec bash -c 'exec 3<>"/dev/tcp/$0/$1"; printf "GET %s HTTP/1.0\r\n\r\n" "$2" >&3; read -r status <&3; [[ $status == *" 200 "* ]]' "$1" "$2" "$3"
