"""`wattload sweep URL ...`: the same test at several rates, and the search for the best of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload import config as configuration
from wattload import sweep as sweeps
from wattload.commands.flags import ConfigFile, with_settings
from wattload.config import RunConfig
from wattload.errors import BadInput, RunInvalid
from wattload.execution import execute
from wattload.rundir import RunDir
from wattload.sweep import Point


def register(app: typer.Typer) -> None:
    skip = (
        "url",
        "rate",
        "out",
        "name",
        "master",
        "expect_workers",
        "master_bind_host",
        "master_port",
        "assertions",
    )
    app.command("sweep")(with_settings(sweep, skip=skip))


def sweep(  # noqa: PLR0917 - options of a command
    url: Annotated[str | None, typer.Argument(help="The endpoint, as http://host:port.")] = None,
    rates: Annotated[str | None, typer.Option(help="1,2,4 or 1..32x2: the rates to run at.")] = None,
    search: Annotated[
        str | None,
        typer.Option(help="rate: the highest within --slo; energy: the least joules a good request."),
    ] = None,
    start: Annotated[float, typer.Option("--from", help="Where a search begins, requests a second.")] = 1.0,
    share: Annotated[float, typer.Option(help="Share of the requests that must meet --slo.")] = 0.95,
    most: Annotated[int, typer.Option(help="Runs that a search may make.", min=2, max=sweeps.MAX_RATES)] = 12,
    out: Annotated[
        Path | None, typer.Option(help="The sweep's directory; one that exists is gone on with.")
    ] = None,
    config: ConfigFile = None,
    **settings: Any,
) -> None:
    """Runs at several rates: the frontier of energy, latency and rate. Goes on where it was stopped."""
    plan = _plan(rates, search, start, share)
    folder = out or Path("runs") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    base = configuration.load({"url": url, **settings, "rate": "1", "out": None}, config)
    if search is not None and base.slo is None:
        raise BadInput(f"--search {search}: needs the limits of --slo, as ttft=500ms,tpot=50ms")
    saved = base.saved()
    sweeps.check_same(
        folder, {name: saved[name] for name in saved if name not in ("progress", "out", "rate")}
    )

    def measure(rate: float) -> Point:
        return _point(base, folder, rate)

    if plan:
        points = [measure(rate) for rate in plan]
    else:
        seek = sweeps.search_energy if search == "energy" else sweeps.search_rate
        points = seek(lambda rate: _sure_point(base, folder, rate), start, share, most)
    _show(points, search, share, folder)


def _plan(rates: str | None, search: str | None, start: float, share: float) -> list[float]:
    if (rates is None) == (search is None):
        raise BadInput("sweep needs --rates or --search, and not both")
    if search is not None and search not in sweeps.GOALS:
        raise BadInput(f"--search {search}: known are {', '.join(sweeps.GOALS)}")
    if not 0 < start < float("inf"):
        raise BadInput(f"--from {start:g}: must be above 0")
    if not 0 < share <= 1:
        raise BadInput(f"--share {share:g}: must be above 0 and at most 1")
    return sweeps.parse_rates(rates) if rates is not None else []


def _point(base: RunConfig, folder: Path, rate: float) -> Point:
    """Runs at one rate, or reads the run that is there; one that was cut short is made again."""
    directory = RunDir(folder / f"rate-{rate:.6g}")
    if directory.run_json_path.exists():
        from wattload.runjson_file import load_run_json

        done = load_run_json(directory)
        if "interrupted" not in done.reasons:
            return sweeps.point_of(rate, directory.path, done)
    _set_aside(directory.path)
    typer.echo(f"\n{rate:.6g} requests a second ...", err=True)
    asked = base.model_copy(update={"rate": repr(rate), "out": directory.path, "name": directory.path.name})
    again = f"interrupted; the same command with --out {folder} goes on from here"
    try:
        made = execute(asked, quiet=True)
    except KeyboardInterrupt:
        typer.echo(again, err=True)
        raise
    if "interrupted" in made.result.reasons:
        raise RunInvalid(again)
    return sweeps.point_of(rate, directory.path, made.result)


def _sure_point(base: RunConfig, folder: Path, rate: float) -> Point:
    """As `_point`, but a run that is not valid is made once more: it would steer a search as a miss does."""
    point = _point(base, folder, rate)
    if not point.valid:
        typer.echo(f"not valid ({'; '.join(point.reasons)}), so once more", err=True)
        _set_aside(point.directory)
        point = _point(base, folder, rate)
    return point


def _set_aside(path: Path) -> None:
    """A run that was cut short, or was not valid, stays under another name."""
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.cut-{number}")).exists():
        number += 1
    path.rename(aside)


def _show(points: list[Point], search: str | None, share: float, folder: Path) -> None:
    from wattload.sweep_show import print_points, write_csv, write_plot

    ordered = sorted(points, key=lambda point: point.rate_rps)
    best = sweeps.best_point(ordered, search, share)
    print_points(ordered, best)
    write_csv(ordered, folder / "sweep.csv")
    write_plot(ordered, best, folder / "sweep.svg")
    typer.echo(f"table: {folder / 'sweep.csv'}   plot: {folder / 'sweep.svg'}")
    stopped = sweeps.stopped_by(ordered, best) if search == "rate" and best is not None else None
    if stopped is not None:
        why = "; ".join(stopped.reasons)
        typer.echo(
            f"note: the search went no higher than {stopped.rate_rps:.4g}/s, which is not valid: {why}"
        )
    if search is not None and best is None:
        raise RunInvalid(f"no rate had {share:.0%} of its requests within the limits in a valid run")
    if not any(point.valid for point in points):
        raise RunInvalid("no run of the sweep is valid")
