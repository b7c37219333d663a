"""`wattload worker`: sends a share of the load of a `wattload run --master` on another host."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("worker")(worker)


def worker(
    master_host: Annotated[str, typer.Option(help="Host of the master.")] = "127.0.0.1",
    master_port: Annotated[int, typer.Option(help="Port of the master.", min=1, max=65535)] = 5557,
) -> None:
    """Waits for a master's runs and sends its share of each until the master quits."""
    from wattload.worker import serve

    serve(master_host, master_port)
