"""One self-contained HTML page out of a run:

the template filled in, plots inside, nothing from the network.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wattload.measure_columns import GapHistogram
from wattload.measure_energy import RunData
from wattload.report import plots, plots_latency
from wattload.report.answer import cards, certainty, sentences
from wattload.report.definitions import FLAGS, definition
from wattload.report.quantities import digits, interval, quantity
from wattload.runjson import RunJson


@cache
def environment() -> Environment:
    """Jinja2 over this folder's templates; everything that is no plot is escaped."""
    folder = Path(__file__).parent
    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def render(run: RunJson, data: RunData, gaps: GapHistogram) -> str:
    """The report's HTML."""
    word = " (modelled)" if "modelled" in run.energy.flags else ""
    ratios = estimate_ratios(run)
    return (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            sentences=sentences(run),
            certainty=certainty(run),
            cards=cards(run),
            flags=[(flag, FLAGS.get(flag, "")) for flag in run.energy.flags],
            figures=_figures(run, data, gaps),
            estimates=plots.estimates_bars(ratios, word) if ratios else None,
            estimate_rows=_estimate_rows(run),
            rows=_rows(run),
            account=_account(run),
            absent=sorted(run.absent.items()),
            configuration=_configuration(run),
            details=json.dumps(run.config, indent=1, default=str, sort_keys=True) if run.config else None,
        )
    )


def _figures(run: RunJson, data: RunData, gaps: GapHistogram) -> list[tuple[str, str, str | None, str]]:
    """(title, caption, SVG or None, why there is none)."""
    no_energy = run.absent.get("energy") or run.absent.get("energy.total_joules") or "no energy was measured"
    no_split = run.absent.get("energy.idle_joules") or no_energy
    no_own = run.absent.get("energy.per_request_joules.p50") or no_energy
    return [
        (
            "Power over time",
            "Areas: the endpoint's split of each second's joules. Line: the counter's change. Dashed: the "
            "idle floor. "
            "Grey ends: warm-up and cool-down, which are not measured.",
            plots.power(data, run),
            no_energy,
        ),
        (
            "Where the energy went",
            "The window's joules by part. Prefill and decode are attributed to requests; idle is what "
            "the devices "
            "take with nothing to do.",
            plots.split_bar(run),
            no_split,
        ),
        (
            "Requests due, sent and completed",
            "Per second. The schedule is fixed beforehand: a slow server cannot slow the load. Sent "
            "apart from due "
            "means that the client was late.",
            plots.arrivals(data),
            "",
        ),
        ("Requests in flight", "Sent and not yet answered in full.", plots.concurrency(data), ""),
        (
            "Latency",
            "Share of the completed requests due in the window (of gaps, on the right) that took at "
            "most so long; "
            "the first token counts from the due time. Dashed: the limit, where one was given.",
            plots_latency.latencies(data, gaps, data.capture.slo),
            "",
        ),
        (
            "Time to first token over the run",
            "A dot a request, at the time it was due; lines: median and 99th percentile of each stretch.",
            plots_latency.latency_over_time(data),
            "fewer than two requests completed",
        ),
        (
            "Energy of a request against its tokens",
            "A dot a completed request due in the window (at most 20,000 of them, drawn at random).",
            plots.energy_by_tokens(data, run),
            no_own,
        ),
    ]


def estimate_ratios(run: RunJson) -> dict[str, float]:
    """Name to ratio to the measured energy, of the estimates that have one."""
    found = {}
    for entry in (run.estimates or {}).get("all", []):
        if entry.get("ratio_to_measured") is not None:
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


def _rows(run: RunJson) -> list[tuple[str, list[Row]]]:
    """Every number of the run: (group, [(name, value, interval, definition)])."""
    modelled = "modelled" in run.energy.flags

    def row(path: str, name: str, value: float | None, unit: str, spread: Any = None) -> Row:
        return (
            name,
            quantity(value, unit, modelled=modelled),
            interval(spread, unit, value),
            definition(path),
        )

    energy, per = run.energy, run.energy.per_request_joules
    first = [
        row(f"energy.{p}_joules", p, getattr(energy, f"{p}_joules"), "J")
        for p in ("total", "idle", "prefill", "decode", "unattributed")
    ]
    first.append(row("energy.mean_watts", "mean power", energy.mean_watts, "W"))
    first.append(row("energy.uncertainty_joules", "uncertainty of the total", energy.uncertainty_joules, "J"))
    each: list[Row] = []
    if per is not None:
        each.append(row("energy.per_request_joules.mean", "a request, all energy", per.mean, "J", per.ci95))
        own = "energy.per_request_joules.attributed_mean"
        each.append(row(own, "a request, its own", per.attributed_mean, "J", per.attributed_ci95))
        spread = per.quantile_ci95 or {}
        for q in ("p50", "p90", "p95", "p99"):
            each.append(
                row(f"energy.per_request_joules.{q}", f"its own, {q}", getattr(per, q), "J", spread.get(q))
            )
    token = "energy.per_output_token_joules"
    each.append(
        row(token, "an output token", energy.per_output_token_joules, "J", energy.per_output_token_ci95)
    )
    each.append(
        row("energy.per_token_joules", "a token", energy.per_token_joules, "J", energy.per_token_ci95)
    )
    groups = [("Energy of the window", first), ("Energy of a request and a token", each)]
    for name, title in (
        ("ttft_seconds", "Time to first token"),
        ("tpot_seconds", "Time per output token"),
        ("itl_seconds", "Gap between chunks (ITL)"),
        ("e2e_seconds", "Whole request"),
    ):
        latency = getattr(run.latency, name)
        if latency is None:
            continue
        spread = {"mean": latency.ci95, **(latency.quantile_ci95 or {})}
        groups.append(
            (
                title,
                [
                    row(
                        f"latency.{name}.{q}" if q != "mean" else f"latency.{name}",
                        q,
                        getattr(latency, q),
                        "s",
                        spread.get(q),
                    )
                    for q in ("mean", "p50", "p90", "p95", "p99", "max")
                ],
            )
        )
    groups.append(("Load", _load_rows(run)))
    return groups


def _load_rows(run: RunJson) -> list[Row]:
    found: list[Row] = []

    def add(path: str, name: str, value: float | None, unit: str = "") -> None:
        if value is not None:
            found.append((name, quantity(value, unit), "", definition(path)))

    counts, load, tokens = run.requests, run.load, run.tokens
    for name, count in (
        ("planned", counts.planned),
        ("sent", counts.sent),
        ("completed", counts.completed),
        ("in_window", counts.in_window),
        ("completed_in_window", counts.completed_in_window),
    ):
        if count is not None:
            found.append((name.replace("_", " "), f"{count:,}", "", definition(f"requests.{name}")))
    found += [(f"not completed: {name}", f"{count:,}", "", "") for name, count in counts.failed.items()]
    add("load.planned_rps", "asked", load.planned_rps, "requests/s")
    add("load.achieved_rps", "sent", load.achieved_rps, "requests/s")
    if load.send_lag_seconds is not None:
        for q in ("p50", "p99", "max"):
            add(f"load.send_lag_seconds.{q}", f"send lag {q}", getattr(load.send_lag_seconds, q), "s")
    for name in ("prompt", "output", "mismatches", "cached"):
        value = getattr(tokens, name)
        if value is not None:
            found.append((f"tokens: {name}", f"{value:,}", "", definition(f"tokens.{name}")))
    add("tokens.output_per_second", "output tokens/s", tokens.output_per_second)
    if run.slo is not None:
        add("slo.goodput_rps", "goodput", run.slo.goodput_rps, "requests/s")
    return found


def _account(run: RunJson) -> list[tuple[str, str]]:
    """The two accountings of the window, in sentences."""
    account = run.energy.accounting
    if account is None:
        return []
    word = " modelled" if "modelled" in run.energy.flags else ""
    lines = [
        (
            "By the window",
            f"{quantity(run.energy.total_joules, 'J')}{word} used between the window's edges, over the "
            f"{account['completed_of_those_due_in_window']:,} completed requests that were due between them. "
            f"{account['running_at_start']:,} requests were running at the first edge and "
            f"{account['running_at_end']:,} at the second: each spent part of its energy outside. Over the "
            f"{account['finished_inside_window']:,} that finished inside it is "
            f"{quantity(account['joules_per_request_finished'], 'J')}{word} a request; the difference is "
            "what the "
            "edges matter.",
        )
    ]
    own = account.get("sum_of_requests_own_joules")
    if own is not None:
        lines.append(
            (
                "By the requests",
                f"The same requests were attributed {quantity(own, 'J')}{word} in sum, wherever in time "
                "they spent "
                "it, without idle and without what belongs to no request.",
            )
        )
    error = account.get("conservation_error_fraction")
    if error is not None:
        lines.append(
            (
                "Conservation",
                f"Prefill, decode, idle and unattributed differ from the counter's change by {error:.2e} "
                "of it.",
            )
        )
    return lines


def _configuration(run: RunJson) -> list[tuple[str, str]]:
    window = run.window
    arrivals = run.workload.arrivals
    rate = f" at {arrivals.rate_rps:g} requests/s" if arrivals.rate_rps is not None else ""
    pairs: list[tuple[str, str | None]] = [
        ("endpoint", run.target.url),
        ("engine", run.target.engine),
        ("model", run.target.model),
        ("energy from", run.target.energy_source),
        ("devices", ", ".join(str(device.get("name")) for device in run.target.devices) or None),
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
                "meter's clock",
                f"{run.clock.offset_seconds * 1e3:+.2f} ms ± {run.clock.uncertainty_seconds * 1e3:.2f} ms",
            )
        )
    pairs += [(name, version) for name, version in run.versions.items()]
    pairs += [(name, str(value)) for name, value in run.host.items() if not isinstance(value, (dict, list))]
    return [(name, value) for name, value in pairs if value is not None]
