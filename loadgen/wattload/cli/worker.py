"""`wattload worker`: sends a share of the load of a `wattload run --master` on another host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from wattload.errors import InputError
from wattload.redaction import shown


def register(app: typer.Typer) -> None:
    app.command("worker")(worker)


def worker(
    *,
    master_host: Annotated[str, typer.Option(help="Host of the master.")] = "127.0.0.1",
    master_port: Annotated[int, typer.Option(help="Port of the master.", min=1, max=65535)] = 5557,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the secret that master and workers share. Default: WATTLOAD_SECRET."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(help="A header of every request, as 'Name: value': secrets are not sent to workers."),
    ] = None,
    body: Annotated[
        str | None, typer.Option(help="JSON object of every request, where the master's has secrets.")
    ] = None,
    ends_with_stdin: Annotated[bool, typer.Option("--ends-with-stdin", hidden=True)] = False,
) -> None:
    """Send a share of the load of a `wattload run --master` on another host.

    The worker serves one run after another until the master quits.
    """
    from wattload.client.endpoint import EndpointOptions, RequestOptions
    from wattload.load.distributed.given import Given
    from wattload.load.distributed.secret import given_secret

    if re.search(r"[/@\s]", master_host):
        raise InputError("master_host", f"{shown(master_host)}: is no host, as 10.0.0.7 or gpu-1.example")
    own = EndpointOptions(url="http://master-tells", header=header or [])
    given = Given(given_secret(secret_file), tuple(own.header), RequestOptions.of({"body": body}).body)
    if not ends_with_stdin:
        typer.echo(f"waiting for the master at {master_host}:{master_port} (Ctrl-C ends)", err=True)
    # Locust patches the standard library when it is imported: not before the arguments are known to be right.
    from wattload.load.distributed.worker import serve

    serve(master_host, master_port, given, ends_with_stdin=ends_with_stdin)
