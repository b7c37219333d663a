"""Prints the address of the server that Locust is to aim at: the simulated GPU where it listens, else vLLM.

Under the gpu profile the simulated GPU stands by and does not listen. Where vLLM could not start either,
Locust shall still come up, so this waits a few seconds only.
"""

import socket
import time

ATTEMPTS = 4


def find() -> str | None:
    for _ in range(ATTEMPTS):
        try:
            socket.create_connection(("sim", 8000), timeout=1).close()
            return "sim"
        except OSError:
            pass
        try:
            socket.getaddrinfo("vllm", 8000)
            return "vllm"
        except OSError:
            time.sleep(1)
    return None


if __name__ == "__main__":
    print(f"http://{find() or 'sim'}:8000")
