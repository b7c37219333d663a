"""One self-contained HTML page of a run: the template filled in, plots inside, nothing from the network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wattload.report import component_plots, plots, server_plots
from wattload.report import latency_plots as plots_latency
from wattload.report.drawing import Drawing
from wattload.report.formatting import digits, quantity, show
from wattload.report.models import done, energy_cells, latency_cells, partial_energy
from wattload.report.summary import cards, certainty, sentences
from wattload.report.verdict import verdict
from wattload.rundir.numbers import NUMBERS, Number, groups, number_of
from wattload.rundir.requests import GapHistogram
from wattload.rundir.result import RunJson
from wattload.rundir.run import RunData
from wattmeter.faults import meaning_of

_BY_PATH = {number.path: number for number in NUMBERS}


@cache
def environment() -> Environment:
    """Jinja2 over this folder's templates; everything that is no picture is escaped.

    A page runs its own two scripts and nothing else: `policy` names them by their hashes, and forbids every
    request, so that even markup that got into a page could neither run nor report.
    """
    folder = Path(__file__).parent
    found = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    scripts = [(folder / name).read_text("utf-8") for name in ("vendor/uPlot.iife.min.js", "plots.js")]
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    found.globals["scripts"] = [Markup(script) for script in scripts]
    found.globals["policy"] = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return found


def render(run: RunJson, data: RunData, gaps: GapHistogram) -> str:
    """The report's HTML."""
    ratios = estimate_ratios(run)
    return (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            heading_text=_heading(run),
            date=_date(run),
            simulated=run.energy.simulated,
            verdict=verdict(run),
            sentences=sentences(run),
            certainty=certainty(run),
            cards=cards(run),
            failures=run.requests.failures,
            flags=[(flag, meaning_of(flag)) for flag in run.energy.flags],
            figures=[(_slug(title), title, *rest) for title, *rest in _figures(run, data, gaps)],
            estimates=plots.estimates_bars(ratios, simulated=run.energy.simulated) if ratios else None,
            estimate_rows=_estimate_rows(run),
            columns=_COLUMNS,
            distributions=_distributions(run),
            rows=_rows(run),
            csv=base64.b64encode(_csv(run).encode()).decode(),
            models=_models(run),
            partial_energy=partial_energy(run),
            account=_accounting(run),
            absent=sorted(run.absent.items()),
            devices=_devices(run),
            command=run.host.get("command"),
            configuration=_configuration(run),
            details=json.dumps(run.config, indent=1, default=str, sort_keys=True) if run.config else None,
        )
    )


def _heading(run: RunJson) -> str:
    """What was run, as a title."""
    arrivals = run.workload.arrivals
    rate = arrivals.target_rps if arrivals.target_rps is not None else arrivals.rate_rps
    at = f" at {rate:.3g} requests/s" if rate is not None else ""
    return f"{run.target.model or 'model unknown'}, {run.workload.trace}{at}"


def _date(run: RunJson) -> str:
    """When it began, and how long it was."""
    began = datetime.fromtimestamp(run.started_unix, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if run.finished_unix is None:
        return f"{began}, cut short"
    return f"{began}, {digits(run.finished_unix - run.started_unix)} s"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _figures(run: RunJson, data: RunData, gaps: GapHistogram) -> list[tuple[str, str, Drawing | None, str]]:
    """(title, caption, drawing or None, why there is none)."""
    no_energy = run.absent.get("energy") or run.absent.get("energy.total_joules") or "no energy was measured"
    no_split = run.absent.get("energy.idle_joules") or no_energy
    no_own = run.absent.get("energy.per_request_joules.p50") or no_energy
    return [
        (
            "Power over time",
            "Areas: the endpoint's split of each second's energy. Line: the change of the counter. Dashed: "
            "idle power. Grey ends: warm-up and cool-down, which are outside the measurement window.",
            plots.power(data, run),
            no_energy,
        ),
        (
            "Server over time",
            "What the server's own metrics say, on the same axis of time: batch and queue explain the power. "
            "Gaps: the metrics could not be read. Shares and rates are of intervals of 2 s or more.",
            server_plots.server(data),
            run.absent.get("server") or "the server's metrics have nothing with a common name",
        ),
        (
            "Energy by component",
            "The window's energy by component. Prefill and decode are attributed to requests; idle is what "
            "the devices take with nothing to do.",
            plots.split_bar(run),
            no_split,
        ),
        (
            "Energy of the node's parts",
            "Each part has a figure of its own. The node and the platform hold the others: do not add them"
            " up.",
            component_plots.parts(run),
            run.absent.get("energy.components") or "the source of energy meters accelerators alone",
        ),
        (
            "Requests scheduled, sent and completed",
            "The schedule is fixed beforehand, so a slow server cannot slow the load. Where sent differs "
            "from scheduled, the client was late.",
            plots.arrivals(data),
            "",
        ),
        ("Requests in flight", "Sent and not yet completed.", plots.concurrency(data), ""),
        (
            "Latency",
            "Cumulative distributions over the completed requests scheduled in the window (over the times "
            "between their chunks, on the right). TTFT counts from the scheduled time. Dashed: the limit, if "
            "one was given.",
            plots_latency.latencies(data, gaps, data.capture.slo),
            "",
        ),
        (
            "TTFT over the run",
            "Each dot is one request, plotted at its scheduled time. Lines: p50 and p90 of about 40"
            " requests each.",
            plots_latency.latency_over_time(data),
            "fewer than two requests completed",
        ),
        (
            "Attributed energy per request against its tokens",
            "A dot per completed request scheduled in the window (of many a part, drawn at random), coloured "
            "by quarters of prompt length.",
            plots.energy_by_tokens(data, run),
            no_own,
        ),
    ]


def estimate_ratios(run: RunJson) -> dict[str, float]:
    """Name to ratio to the measured energy, of the estimates that have one on a logarithmic axis."""
    found = {}
    for entry in (run.estimates or {}).get("all", []):
        if (entry.get("ratio_to_measured") or 0.0) > 0.0:
            found[str(entry["title"])] = float(entry["ratio_to_measured"])
    return found


def _estimate_rows(run: RunJson) -> list[dict[str, Any]]:
    rows = []
    for entry in (run.estimates or {}).get("all", []):
        rows.append(
            {
                "title": entry["title"],
                "joules": quantity(entry.get("joules"), "J"),
                "ratio": f"{digits(entry['ratio_to_measured'])}×" if entry.get("ratio_to_measured") else "–",
                "meaning": entry.get("how", ""),
                "reason": entry.get("reason", ""),
            }
        )
    return rows


Row = tuple[str, str, str, str]
_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
# Numbers of one quantity, by the path before their last part; the name of the mean where it is not "mean".
_DISTRIBUTIONS = {
    "energy.per_request_joules": ("Attributed energy per request", "attributed_mean"),
    "latency.ttft_seconds": ("TTFT", "mean"),
    "latency.tpot_seconds": ("TPOT", "mean"),
    "latency.itl_seconds": ("ITL", "mean"),
    "latency.e2e_seconds": ("End-to-end latency", "mean"),
    "load.send_lag_seconds": ("Dispatch delay", "mean"),
    "sessions.per_session.energy_joules": ("Energy per session", "mean"),
    "sessions.per_session.duration_seconds": ("Duration of a session", "mean"),
    "sessions.per_task.energy_joules": ("Energy per task", "mean"),
    "sessions.per_task.duration_seconds": ("Duration of a task", "mean"),
}


def _distributions(run: RunJson) -> list[tuple[str, list[tuple[str, str]], str]]:
    """A row per quantity: (title, [(value, interval) of each column], definition)."""
    found = []
    for path, (title, mean) in _DISTRIBUTIONS.items():
        names = {"mean": mean}
        known = [_BY_PATH.get(f"{path}.{names.get(column, column)}") for column in _COLUMNS]
        shown = [show(number, run) if number is not None else None for number in known]
        if any(each is not None for each in shown):
            cells = [(each.value, each.interval) if each is not None else ("", "") for each in shown]
            first = next(each for each in shown if each is not None)
            found.append((title, cells, first.definition))
    return found


def _in_a_distribution(number: Number) -> bool:
    path, _, name = number.path.rpartition(".")
    return path in _DISTRIBUTIONS and (name in _COLUMNS[1:] or name == _DISTRIBUTIONS[path][1])


def _rows(run: RunJson) -> list[tuple[str, list[Row]]]:
    """Every number that is in no distribution: (heading, [(title, value, interval, definition)])."""
    found = []
    for heading, numbers in groups().items():
        apart = (number for number in numbers if not _in_a_distribution(number))
        shown = [each for number in apart if (each := show(number, run)) is not None]
        rows = [(each.title, each.value, each.interval, each.definition) for each in shown]
        if heading == number_of("requests.completed").group:
            rows += [(f"Not completed: {name}", f"{n:,}", "", "") for name, n in run.requests.failed.items()]
        if rows:
            found.append((heading, rows))
    return found


def _models(run: RunJson) -> list[tuple[str, ...]]:
    """A row for each of several models: counts, attributed energy with intervals, median latencies."""
    simulated = run.energy.simulated
    return [
        (
            name,
            done(part),
            quantity(part.attributed_joules, "J", modelled=simulated),
            *energy_cells(part, tag=simulated),
            *latency_cells(part),
        )
        for name, part in (run.by_model or {}).items()
    ]


def _csv(run: RunJson) -> str:
    """Every number of the run as CSV, by the names of run.json and in full precision."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("path", "title", "unit", "value", "ci95_low", "ci95_high"))
    for number in NUMBERS:
        value = number.of(run)
        if value is not None:
            writer.writerow(
                (number.path, number.title, number.unit, value, *(number.interval_of(run) or ("", "")))
            )
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class _Devices:
    """The metered devices: their facts, one column each."""

    columns: list[str]
    rows: list[list[str]]


def _devices(run: RunJson) -> _Devices:
    """What is known of each device; a fact that none of them has is no column."""
    plain = [
        {
            name: value
            for name, value in device.items()
            if isinstance(value, (str, int, float)) and value != ""
        }
        for device in run.target.devices
    ]
    columns = list(dict.fromkeys(name for device in plain for name in device if name not in _NOT_FACTS))
    rows = [[_fact(device.get(name, "–")) for name in columns] for device in plain]
    return _Devices([name.replace("_", " ") for name in columns], rows)


# What the meter said of a window, not of the device.
_NOT_FACTS = frozenset({"joules", "uncertainty_joules", "watts", "complete", "sample_age_seconds"})


def _fact(value: Any) -> str:
    return digits(value) if isinstance(value, float) else str(value)


def _accounting(run: RunJson) -> list[tuple[str, str]]:
    """How the window and its requests relate, in sentences."""
    account = run.energy.accounting
    if account is None:
        return []
    word = " simulated" if run.energy.simulated else ""
    lines = [
        (
            "Total",
            f"The window's total energy of {quantity(run.energy.total_joules, 'J')}{word} is divided by the "
            f"{account['completed_of_those_due_in_window']:,} completed requests that were scheduled in it. "
            f"{account['running_at_start']:,} requests were in flight at its start and "
            f"{account['running_at_end']:,} at its end: each spent part of its energy outside. Over the "
            f"{account['finished_inside_window']:,} requests that finished inside, it is "
            f"{quantity(account['joules_per_request_finished'], 'J')}{word} per request; the difference is "
            "the effect of the edges.",
        )
    ]
    own = account.get("sum_of_requests_own_joules")
    if own is not None:
        lines.append(
            (
                "Attributed",
                f"The same requests were attributed {quantity(own, 'J')}{word} in total, whenever they "
                "spent it, without idle and unattributed energy.",
            )
        )
    error = account.get("conservation_error_fraction")
    if error is not None:
        lines.append(
            (
                "Conservation",
                f"Prefill, decode, idle and unattributed add up to the counter's change within "
                f"{_ppm(error)}.",
            )
        )
    return lines


def _ppm(fraction: float) -> str:
    """A small share in words: what rounding leaves of a sum is none."""
    return "rounding" if abs(fraction) < 1e-9 else f"{abs(fraction) * 1e6:.2g} parts per million"


def _configuration(run: RunJson) -> list[tuple[str, str]]:
    window = run.window
    arrivals = run.workload.arrivals
    rate = f" at {arrivals.rate_rps:g} requests/s" if arrivals.rate_rps is not None else ""
    pairs: list[tuple[str, str | None]] = [
        ("endpoint", run.target.url),
        ("engine", run.target.engine),
        ("model", ", ".join(run.by_model or {}) or run.target.model),
        ("energy from", run.target.energy_source),
        ("workload", run.workload.trace),
        ("workload's sha256", run.workload.sha256),
        ("arrivals", f"{arrivals.process}{rate}"),
        ("seed", None if run.workload.seed is None else str(run.workload.seed)),
        ("schedule's sha256", run.workload.schedule_sha256),
    ]
    if window is not None:
        pairs.append(("warm-up", f"{window.warmup_seconds:.1f} s ({window.method})"))
        steady = window.steady
        if steady is not None:
            verdict = "steady" if steady["steady"] else "NOT steady"
            pairs.append(
                (
                    "steady after it",
                    f"{verdict}: {steady['series']}, {steady['test']}: p = {steady['p_value']:.3f}, "
                    f"drift {steady['relative_change']:+.0%}",
                )
            )
    if run.clock is not None:
        pairs.append(
            (
                "meter's clock" if run.clock.hosts is None else f"clocks of {len(run.clock.hosts)} meters",
                f"{run.clock.offset_seconds * 1e3:+.2f} ms ± {run.clock.uncertainty_seconds * 1e3:.2f} ms",
            )
        )
    pairs += [(name, version) for name, version in run.versions.items()]
    hidden = {"command"}
    pairs += [
        (name, str(value))
        for name, value in run.host.items()
        if name not in hidden and not isinstance(value, (dict, list))
    ]
    return [(name, value) for name, value in pairs if value is not None]
