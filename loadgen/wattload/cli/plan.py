"""`wattload plan RUNS...`: how many servers a traffic needs within its limits, and what they take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.analysis.options import parse_slo
from wattload.errors import InputError, RunInvalid
from wattload.planning.curve import Curve, curves
from wattload.planning.fleet import FleetDay, FleetOptions, simulate
from wattload.planning.grid import grid_of
from wattload.planning.plan import Factors, Plan, plan_for
from wattload.report.formatting import digits

QUANTILES = ("p50", "p90", "p95", "p99")


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(  # noqa: PLR0917 - options of a command
    measured: Annotated[
        list[Path], typer.Argument(help="Directories of studies, sweeps or runs at several rates.")
    ],
    rate: Annotated[float, typer.Option(help="Requests per second that the fleet has to serve.")],
    slo: Annotated[str, typer.Option(help="Latency limits, as ttft=500ms,tpot=50ms.")],
    quantile: Annotated[
        str, typer.Option(help="The quantile of each latency that must be within its limit.")
    ] = "p95",
    workload: Annotated[str | None, typer.Option(help="Only this workload of those measured.")] = None,
    headroom: Annotated[
        float, typer.Option(min=0, max=0.9, help="Leave this share of each server's highest rate unused.")
    ] = 0.0,
    pue: Annotated[
        float | None, typer.Option(min=1, help="Facility energy over the devices' energy.")
    ] = None,
    price_per_kwh: Annotated[float | None, typer.Option(min=0, help="Price per kilowatt-hour.")] = None,
    currency: Annotated[str | None, typer.Option(help="Currency of that price.")] = None,
    carbon_grams_per_kwh: Annotated[
        float | None, typer.Option(min=0, help="Grams of CO2e per kilowatt-hour.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Take the grams from the table, which has a year and a source: world, ..."),
    ] = None,
    fleet: Annotated[
        int | None, typer.Option(min=1, help="Also simulate a day of a fleet of this many servers.")
    ] = None,
    sleep_watts: Annotated[
        float | None, typer.Option(min=0, help="Power of a sleeping server, for --fleet.")
    ] = None,
    swing: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share by which the day's traffic varies above and below --rate."),
    ] = 0.6,
    wake_seconds: Annotated[float, typer.Option(min=0, help="Time a sleeping server needs to wake.")] = 120.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compute how many servers a load needs within latency limits, and their energy, cost and carbon.

    Power is interpolated between measured rates; the error is that of predicting each measured rate from the
    others. Cost and carbon appear only for factors that are given.
    """
    if not 0 < rate < float("inf"):
        raise InputError("rate", f"{rate:g}: must be above 0")
    if quantile not in QUANTILES:
        raise InputError("quantile", f"{quantile!r}: known are {', '.join(QUANTILES)}")
    factors = _factors(pue, price_per_kwh, currency, carbon_grams_per_kwh, grid)
    limits = parse_slo(slo)
    found = [c for path in measured for c in curves(path) if workload in (None, c.workload)]
    if not found:
        raise InputError("workload", f"{workload}: none of the directories has it")
    plans = [
        plan_for(curve, rate, limits, quantile=quantile, headroom=headroom, factors=factors)
        for curve in found
    ]
    days = None
    if fleet is not None:
        if sleep_watts is None:
            raise InputError("fleet", f"{fleet}: needs `sleep_watts`, what a sleeping server draws")
        days = _days(plans, rate, headroom, FleetOptions(fleet, rate, 1.0, sleep_watts, swing, wake_seconds))
    if json_output:
        facts = {
            "schema": "wattload.plan/1",
            "rate_rps": rate,
            "slo": slo,
            "quantile": quantile,
            "headroom": headroom,
            "factors": dataclasses.asdict(factors),
            "plans": [each.as_dict() for each in plans],
            "fleet": None if days is None else _fleet_json(days),
        }
        typer.echo(json.dumps(facts, indent=1))
    else:
        _print(plans, rate, slo, quantile)
        if days is not None:
            _print_days(days, fleet or 0, swing)
    if all(each.servers is None for each in plans):
        raise RunInvalid(f"no measured rate has its {quantile} within {slo}")


def _factors(
    pue: float | None, price: float | None, currency: str | None, grams: float | None, grid: str | None
) -> Factors:
    if grid is not None and grams is not None:
        raise InputError("grid", f"{grid}: and `carbon_grams_per_kwh` are both given")
    if grid is None:
        source = None if grams is None else "given"
        return Factors(pue, price, currency, grams, source)
    row = grid_of(grid)
    return Factors(pue, price, currency, row.grams_per_kwh, str(row))


def _days(
    plans: list[Plan], rate: float, headroom: float, options: FleetOptions
) -> list[tuple[Curve, tuple[FleetDay, FleetDay]]]:
    days = []
    for each in plans:
        if each.highest_rps is None:
            continue
        per_server = each.highest_rps * (1 - headroom)
        peak = rate * (1 + options.swing)
        if peak > per_server * options.servers:
            raise InputError(
                "fleet", f"{options.servers}: {each.curve.name} serves {per_server * options.servers:.4g}"
                f" requests/s at most within the limits, and the day's peak is {peak:.4g}"
            )  # fmt: skip
        own = dataclasses.replace(options, rate_per_server_rps=per_server)
        days.append((each.curve, simulate(each.curve, own)))
    return days


def _fleet_json(days: list[tuple[Curve, tuple[FleetDay, FleetDay]]]) -> list[dict[str, Any]]:
    return [
        {
            "server": curve.name,
            "workload": curve.workload,
            "simulated": True,
            "days": [dataclasses.asdict(day) for day in both],
            "saving_fraction": 1 - both[1].kwh / both[0].kwh,
        }
        for curve, both in days
    ]


def _print(plans: list[Plan], rate: float, slo: str, quantile: str) -> None:
    from rich.console import Console
    from rich.table import Table

    factors = plans[0].factors
    table = Table(
        title=f"{rate:g} requests/s with the {quantile} of latency within {slo}",
        title_justify="left",
        pad_edge=False,
        box=None,
        header_style="bold",
    )
    for name in (
        "server",
        "workload",
        "GPUs",
        "of which kind",
        "each up to",
        "power",
        "J/request",
        "kWh/day",
    ):
        table.add_column(name, justify="left" if name in ("server", "workload", "of which kind") else "right")
    money = factors.price_per_kwh is not None
    if money:
        table.add_column(f"{factors.currency or 'cost'}/day", justify="right")
    if factors.carbon_grams_per_kwh is not None:
        table.add_column("kg carbon/day", justify="right")
    table.add_column("error of the power")
    for each in plans:
        word = " modelled" if each.curve.modelled else ""
        error = "only one rate"
        if each.rms_error is not None and each.worst_error is not None:
            error = f"{each.rms_error:.1%} rms, {each.worst_error:+.1%} worst"
        if each.servers is None:
            cells = ["none", each.curve.device, "–", "–", "–", "–"]
        else:
            assert each.watts is not None
            assert each.joules_per_request is not None
            cells = [
                f"{each.gpus:,}",
                each.curve.device,
                f"{each.highest_rps:.4g}/s",
                f"{each.watts / 1000:.3g} kW{word}",
                f"{each.joules_per_request:.3g}{word}",
                digits(each.kwh_per_day or 0.0, 4),
            ]
        if money:
            cells.append("–" if each.cost_per_day is None else digits(each.cost_per_day, 4))
        if factors.carbon_grams_per_kwh is not None:
            cells.append("–" if each.carbon_kg_per_day is None else digits(each.carbon_kg_per_day, 4))
        table.add_row(each.curve.name, each.curve.workload, *cells, error)
    console = Console(width=160)
    console.print(table)
    boundary = "the metered devices" if factors.pue is None else f"the facility, at a PUE of {factors.pue:g}"
    console.print(
        f"kWh are of {boundary}. Power is interpolated between measured rates; the error is that of"
    )
    console.print("predicting each measured rate from the others.", highlight=False)
    if factors.carbon_source is not None:
        console.print(f"Carbon: {factors.carbon_source}.", highlight=False)
    missing = [
        name
        for name, value in (("a price", factors.price_per_kwh), ("carbon", factors.carbon_grams_per_kwh))
        if value is None
    ]
    if missing:
        console.print(f"Not given, and not assumed: {', '.join(missing)}.", highlight=False)


def _print_days(days: list[tuple[Curve, tuple[FleetDay, FleetDay]]], fleet: int, swing: float) -> None:
    typer.echo(
        f"\nSimulated day of {fleet:,} servers, traffic {swing:.0%} up and down (no fleet was measured):"
    )
    for curve, both in days:
        for day in both:
            typer.echo(
                f"  {curve.name}, {curve.workload}, {day.name}: {digits(day.kwh, 4)} kWh of the devices,"
                f" {digits(day.awake_mean)} awake on average, too few awake in {day.short_fraction:.1%} of"
                " the minutes"
            )
        saving = 1 - both[1].kwh / both[0].kwh
        typer.echo(f"  {curve.name}, {curve.workload}: packing and sleeping would save {saving:.1%}")
