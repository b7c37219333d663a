"""Listening on an address and serving an ASGI app there, with an error that a person can act on."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from wattmeter.standard_streams import say
from wattserve.http.garbage import GarbageKeeper
from wattserve.http.middleware import ASGIApp

BACKLOG = 2048


class ListenError(Exception):
    """The address cannot be listened on; the message is one sentence."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to host and port (0: a free one). Raises ListenError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ListenError(f"--host {host}: {error.strerror}") from None
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise ListenError(f"--port {port}: something else listens on {host}:{port} already") from None
        raise ListenError(f"--host {host} --port {port}: {os.strerror(error.errno or 0)}") from None
    return found


def url_of(listener: socket.socket) -> str:
    """The address as a URL; one that listens everywhere is shown as localhost."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, listener: socket.socket, *, name: str, announce: str) -> int:
    """Serve until SIGINT or SIGTERM. Says where on standard output, in one line, once requests are answered.

    Returns the exit status: 0, or 1 where the app could not start.
    """
    import uvicorn

    from wattserve.http.bounds import BoundedProtocol

    garbage = GarbageKeeper()

    class Server(uvicorn.Server):  # type: ignore[misc, unused-ignore]
        async def on_tick(self, counter: int) -> bool:
            garbage.tick(idle=not self.server_state.tasks)
            ended: bool = await super().on_tick(counter)
            return ended

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                garbage.start()
                say(f"{name} listening on {url_of(listener)}{announce}")

    config: Any = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        lifespan="on",
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    server.run(sockets=[listener])
    return 0 if server.started else 1
