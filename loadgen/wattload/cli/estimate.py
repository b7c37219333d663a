"""`wattload estimate CALIBRATION`: what a workload will cost at a rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from wattload.analysis.compute import load_run
from wattload.errors import InputError
from wattload.estimates.binned import binned_joules
from wattload.estimates.calibration_file import Profile, load_profile
from wattload.estimates.online import Online, simulate
from wattload.estimates.step_cost import StepCost, fit
from wattload.report.formatting import percent, quantity
from wattload.rundir.directory import RunDir
from wattload.schedule.build import build_schedule
from wattload.traces import load as load_trace

# Fewer ends than beginnings by more than this: the queue grows.
_KEEPS_UP = 0.93


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)


def estimate(  # noqa: PLR0917 - options of a command
    profile: Annotated[Path, typer.Argument(help="A calibration from `wattload calibrate`.")],
    trace: Annotated[str | None, typer.Option(help="Estimate this workload: a name or a file.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Target rate in requests per second; may be repeated.")
    ] = None,
    arrivals: Annotated[str, typer.Option(help="When requests come, as in `wattload run`.")] = "poisson",
    duration: Annotated[float, typer.Option(min=1.0, help="Seconds of arrivals.")] = 120.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds of them to leave out.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same schedule.")] = 0,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Estimate a measured run's own arrivals and say the error; may be repeated."),
    ] = None,
    max_seqs: Annotated[
        int | None, typer.Option(min=1, help="Most requests in a step, instead of the calibrated engine's.")
    ] = None,
    max_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in a step, instead of the calibrated engine's.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Predict the energy of a workload from a calibration.

    Offline: the binning model. Online: with the arrivals, batches and idle time that the rate makes, and with
    the engine's limits, or those of another setting of the same engine (--max-seqs).
    """
    if (trace is None) == (not run):
        raise InputError("give either --trace (with --rate) or --run")
    if trace is not None and warmup >= duration:
        raise InputError(f"--warmup {warmup:g}: must be shorter than --duration")
    rates: list[float | None] = [*rate] if rate else [None]
    known = load_profile(profile)
    cost = fit(known)
    limits = {"max_seqs": max_seqs, "max_batched_tokens": max_batched_tokens}
    known = known.model_copy(update={name: value for name, value in limits.items() if value is not None})
    if trace is not None:
        rows = [_planned(known, cost, trace, value, arrivals, duration, warmup, seed) for value in rates]
    else:
        rows = [_against_run(known, cost, RunDir.open(path)) for path in run or []]
    if json_output:
        typer.echo(
            json.dumps({"schema": "wattload.estimate/1", "modelled": known.modelled, "rows": rows}, indent=1)
        )
    else:
        _print(rows, known.modelled)


def _online(known: Profile, cost: StepCost, due: Any, prompt: Any, output: Any) -> Online:
    return simulate(
        np.asarray(due, np.float64),
        np.asarray(prompt, np.int64),
        np.asarray(output, np.int64),
        cost,
        known.idle_watts,
        max_batched_tokens=known.max_batched_tokens,
        max_seqs=known.max_seqs,
    )


def _planned(  # noqa: PLR0917
    known: Profile,
    cost: StepCost,
    trace: str,
    rate: float | None,
    arrivals: str,
    duration: float,
    warmup: float,
    seed: int,
) -> dict[str, Any]:
    rows = load_trace(trace)
    schedule = build_schedule(rows, arrivals, rate=rate, duration=duration, seed=seed)
    if np.isnan(schedule.due_seconds).any():
        raise InputError(f"--trace {trace}: has later turns of sessions, whose times only a run knows")
    due, prompt, output = schedule.due_seconds, schedule.prompt_tokens, schedule.output_tokens
    inside = (due >= warmup) & (due < duration)
    if not inside.any():
        raise InputError(
            f"--trace {trace}: no request is scheduled in the {duration - warmup:g} s after the warm-up"
        )
    result = _online(known, cost, due, prompt, output)
    offline = binned_joules(known, cost, prompt[inside], output[inside])
    total = result.window_joules(warmup, duration)
    count = int(inside.sum())
    served = int(((result.last >= warmup) & (result.last < duration)).sum())
    if not served:
        raise InputError(
            f"--trace {trace}: no request would end in the {duration - warmup:g} s after the warm-up"
        )
    return {
        "name": f"{trace} at {count / (duration - warmup):.3g}/s",
        "requests": count,
        "served": served,
        "over_capacity": served < _KEEPS_UP * count,
        "online_joules": total,
        "online_joules_per_request": total / served,
        "online_watts": total / (duration - warmup),
        "busy_fraction": result.busy_fraction(warmup, duration),
        "ttft_p50_seconds": float(np.median((result.first - due)[inside])),
        "offline_joules": offline.joules,
        "offline_joules_per_request": offline.joules / count,
        "filled_in_fraction": offline.filled_in,
    }


def _against_run(known: Profile, cost: StepCost, path: RunDir) -> dict[str, Any]:
    run = load_run(path.path)
    if run.energy.total_joules is None:
        raise InputError(f"{path.path}: has no measured energy to hold an estimate against")
    if run.energy.source != known.target.energy_source:
        sources = f"{run.energy.source}, {known.target.energy_source}"
        raise InputError(f"{path.path}: run and profile have energy from different sources ({sources})")
    requests, window, begin = run.data.requests, run.data.window, run.data.capture.started_unix
    served = requests.completed & ~np.isnan(requests.prompt) & ~np.isnan(requests.output)
    if not (served & run.data.inside).any():
        raise InputError(f"{path.path}: no request scheduled in the window completed with token counts")
    result = _online(
        known, cost, requests.due[served] - begin, requests.prompt[served], requests.output[served]
    )
    done = served & run.data.inside
    offline = binned_joules(known, cost, requests.prompt[done], requests.output[done])
    start, end = window.start_unix - begin, window.end_unix - begin
    measured, total, count = run.energy.total_joules, result.window_joules(start, end), int(done.sum())
    return {
        "name": run.name,
        "requests": count,
        "measured_joules": measured,
        "online_joules": total,
        "online_error": total / measured - 1,
        "online_joules_per_request": total / count,
        "online_watts": total / (end - start),
        "busy_fraction": result.busy_fraction(start, end),
        "ttft_p50_seconds": float(
            np.median((result.first - requests.due[served] + begin)[run.data.inside[served]])
        ),
        "offline_joules": offline.joules,
        "offline_error": offline.joules / measured - 1,
        "offline_joules_per_request": offline.joules / count,
        "filled_in_fraction": offline.filled_in,
    }


def _print(rows: list[dict[str, Any]], modelled: bool) -> None:
    measured = any("measured_joules" in row for row in rows)
    title = "estimates, none of them measured" + (" (all joules and watts simulated)" if modelled else "")
    table = Table(title=title, title_justify="left")
    table.add_column("workload", no_wrap=True)
    names = ["online J/request", "mean power", "busy", "TTFT p50", "offline J/request"]
    for name in [
        *(["measured"] if measured else []),
        *names,
        *(["online error", "offline error"] if measured else []),
    ]:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row["name"]]
        if measured:
            cells.append(quantity(row["measured_joules"] / row["requests"], "J"))
        cells += [
            quantity(row["online_joules_per_request"], "J"),
            quantity(row["online_watts"], "W"),
            percent(row["busy_fraction"]),
            quantity(row["ttft_p50_seconds"], "s"),
            quantity(row["offline_joules_per_request"], "J"),
        ]
        if measured:
            cells += [f"{row['online_error']:+.1%}", f"{row['offline_error']:+.1%}"]
        table.add_row(*cells)
    Console(width=max(Console().width, 100)).print(table)
    for row in rows:
        if row.get("over_capacity"):
            typer.echo(
                f"{row['name']}: more than it can serve; the queue grows, and J/request is of those served"
            )
    missing = max(row["filled_in_fraction"] for row in rows)
    if missing:
        typer.echo(
            f"up to {missing:.0%} of requests fell into bins that were not measured; the step model stands in"
        )
