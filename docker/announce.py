"""announce.py JOB PORT COMMAND...: runs a command and tells Prometheus, while it runs, where its metrics are.

Writes /targets/JOB-HOST.json for file_sd_configs of Prometheus and removes it at the end: a container of
`docker compose run` has no name that Prometheus could know beforehand. Signals are passed on; the exit
status is the command's.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def main(job: str, port: str, command: list[str]) -> int:
    host = socket.gethostname()
    target = Path(os.environ.get("WATTLOAD_TARGETS", "/targets")) / f"{job}-{host}.json"
    # A session of its own: Ctrl-C on the terminal reaches the command once, from here.
    child = subprocess.Popen(command, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: child.send_signal(n))
    try:
        target.write_text(
            json.dumps([{"targets": [f"{socket.gethostbyname(host)}:{port}"]}]), encoding="utf-8"
        )
    except OSError as error:
        print(f"Prometheus is not told of {job}: {error}", file=sys.stderr)
    status = child.wait()
    target.unlink(missing_ok=True)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
