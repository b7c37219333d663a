"""A server that is up at once, serves a list of models and has a meter, for tests of what starts servers.

python tiny_server.py --port N [--model NAME] [--say TEXT] [--exit STATUS] [--deaf]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

DEVICE = {"id": "GPU-0", "name": "GPU", "source": "nvml"}
ANSWERS: dict[str, object] = {
    "/health": {},
    "/v1/models": None,
    "/energy": {"devices": [DEVICE], "idle": {"watts": 100.0}, "engine": "tiny"},
    "/energy/clock": None,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="m")
    parser.add_argument("--say", default="")
    parser.add_argument("--exit", type=int)
    parser.add_argument("--deaf", action="store_true")
    options = parser.parse_args()
    if options.say:
        print(options.say, flush=True)
    if options.exit is not None:
        return int(options.exit)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/die":
                print(options.say, flush=True)
                os.kill(os.getpid(), signal.SIGABRT)
            known = self.path in ANSWERS and not options.deaf
            answer = (
                {"data": [{"id": options.model}]} if self.path == "/v1/models" else ANSWERS.get(self.path)
            )
            if self.path == "/energy/clock":
                answer = {"unix_seconds": time.time()}
            body = json.dumps(answer).encode()
            self.send_response(200 if known else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    HTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
