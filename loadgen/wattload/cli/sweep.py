"""`wattload sweep URL ...`: the same test at several rates, and the search for the best of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.cli.options import ConfigFile, UrlArgument, UrlOption, settings_of, with_settings
from wattload.config import RunConfig
from wattload.errors import InputError, RunInvalid
from wattload.rundir import resumed
from wattload.session import execute
from wattload.sweep import search as sweeps
from wattload.sweep.search import Point


def register(app: typer.Typer) -> None:
    skip = (
        "url",
        "rate",
        "concurrency",
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
    url: UrlArgument = None,
    target: UrlOption = None,
    rates: Annotated[
        str | None, typer.Option(help="Run at these rates: 1,2,4 or 1..32x2 (requests per second).")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="Search: rate finds the highest within --slo, energy the least per SLO-compliant request."
        ),
    ] = None,
    start: Annotated[
        float, typer.Option("--from", help="Begin a search at this rate, in requests per second.")
    ] = 1.0,
    share: Annotated[
        float, typer.Option(help="Share of the requests that must meet --slo in a search.")
    ] = 0.95,
    most: Annotated[
        int, typer.Option(help="Make at most this many runs in a search.", min=2, max=sweeps.MAX_RATES)
    ] = 12,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The directory of the sweep; a sweep that it holds is continued."),
    ] = None,
    config: ConfigFile = None,
    **settings: Any,
) -> None:
    """Run at several rates: the trade-off curve of energy, latency and rate.

    Example: wattload sweep http://localhost:8000 --rates 1..32x2 --slo ttft=500ms,tpot=50ms

    The same command with the same --out continues a sweep that was interrupted.
    """
    plan = _plan(rates, search, start, share)
    folder = out or Path("runs") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    base = settings_of("sweep", url, target, {**settings, "rate": "1", "out": None}, config)
    if search is not None and base.analysis.slo is None:
        raise InputError(f"--search {search}: needs the limits of --slo, as ttft=500ms,tpot=50ms")
    saved = base.saved()
    kept = {name: saved[name] for name in saved if name not in ("progress", "out", "rate")}
    resumed.check_same(folder / "sweep.json", kept, "a sweep")

    def measure(rate: float) -> Point:
        return run_point(base, folder, rate)

    if plan:
        points = [measure(rate) for rate in plan]
    else:
        seek = sweeps.search_energy if search == "energy" else sweeps.search_rate
        points = seek(lambda rate: _sure_point(base, folder, rate), start, share, most)
    _show(points, search, share, folder)


def _plan(rates: str | None, search: str | None, start: float, share: float) -> list[float]:
    if (rates is None) == (search is None):
        raise InputError("sweep needs --rates or --search, and not both")
    if search is not None and search not in sweeps.GOALS:
        raise InputError(f"--search {search}: known are {', '.join(sweeps.GOALS)}")
    if not 0 < start < float("inf"):
        raise InputError(f"--from {start:g}: must be above 0")
    if not 0 < share <= 1:
        raise InputError(f"--share {share:g}: must be above 0 and at most 1")
    return sweeps.parse_rates(rates) if rates is not None else []


def run_point(base: RunConfig, folder: Path, rate: float) -> Point:
    """Runs at one rate, or reads the run that is there; one that was cut short is made again."""
    path = folder / f"rate-{rate:.6g}"
    done = resumed.made(path)
    if done is not None:
        return sweeps.point_of(rate, path, done)
    resumed.set_aside(path)
    typer.echo(f"\n{rate:.6g} requests per second ...", err=True)
    config = base.changed(rate=repr(rate), out=path, name=path.name)
    again = f"interrupted; the same command with --out {folder} continues it"
    try:
        made = execute(config, quiet=True)
    except KeyboardInterrupt:
        typer.echo(again, err=True)
        raise
    if resumed.was_cut_short(made.result):
        raise RunInvalid(again)
    return sweeps.point_of(rate, path, made.result)


def _sure_point(base: RunConfig, folder: Path, rate: float) -> Point:
    """As `run_point`, but an invalid run is made once more: it would steer a search as a miss does."""
    point = run_point(base, folder, rate)
    if not point.valid:
        typer.echo(f"not valid ({'; '.join(point.reasons)}), so the run is repeated", err=True)
        resumed.set_aside(point.directory)
        point = run_point(base, folder, rate)
    return point


def _show(points: list[Point], search: str | None, share: float, folder: Path) -> None:
    from wattload.sweep.show import print_points, write_csv, write_page

    ordered = sorted(points, key=lambda point: point.rate_rps)
    best = sweeps.best_point(ordered, search, share)
    print_points(ordered, best)
    write_csv(ordered, folder / "sweep.csv")
    write_page(ordered, best, folder / "sweep.html")
    typer.echo(f"table: {folder / 'sweep.csv'}   page: {folder / 'sweep.html'}")
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
