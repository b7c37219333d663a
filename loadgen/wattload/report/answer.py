"""The answer first: three sentences with their intervals, and the few numbers worth a card."""

from __future__ import annotations

from dataclasses import dataclass

from wattload.report.definitions import definition
from wattload.report.quantities import digits, interval, percent, quantity
from wattload.runjson import RunJson


@dataclass(frozen=True, slots=True)
class Card:
    """One number large: its title, value, what stands below it, and its definition."""

    title: str
    value: str
    below: str
    meaning: str


def sentences(run: RunJson) -> list[str]:
    """What the traffic cost, where it went, and what it got for it; as plain text."""
    return [_cost(run), _parts(run), _service(run)]


def _cost(run: RunJson) -> str:
    per = run.energy.per_request_joules
    if per is None or per.mean is None:
        why = (
            run.absent.get("energy")
            or run.absent.get("energy.per_request_joules")
            or "no reason was recorded"
        )
        return f"What a request cost in energy was not measured: {why}."
    word = "modelled " if "modelled" in run.energy.flags else ""
    rate = run.load.achieved_rps
    text = f"A request took {quantity(per.mean, 'J')} of {word}energy"
    if per.ci95 is not None:
        text += f" (95 % interval {interval(per.ci95, 'J', per.mean)})"
    if rate is not None:
        text += f" at {digits(rate)} requests/s"
    if run.energy.per_output_token_joules is not None:
        text += f", which is {quantity(run.energy.per_output_token_joules, 'J')} an output token"
    kwh = (run.footprint or {}).get("energy_kwh_per_1000_requests")
    if kwh is not None:
        text += f" and {digits(kwh)} kWh for a thousand requests"
    return text + "."


def _parts(run: RunJson) -> str:
    energy, window = run.energy, run.window
    if energy.total_joules is None or window is None:
        return "Without a total there is no split of it."
    length = window.end_unix - window.start_unix
    text = (
        f"Over the {digits(length)} s measured, after {digits(window.warmup_seconds)} s of warm-up left out, "
    )
    word = " (modelled)" if "modelled" in energy.flags else ""
    text += (
        f"{quantity(energy.total_joules, 'J')}{word} were used, {quantity(energy.mean_watts, 'W')} on average"
    )
    shares = {
        "idle": energy.idle_joules,
        "reading prompts": energy.prefill_joules,
        "generating": energy.decode_joules,
        "for no request in particular": energy.unattributed_joules,
    }
    known = [f"{percent(v / energy.total_joules)} {name}" for name, v in shares.items() if v is not None]
    return text + (f": {', '.join(known)}." if known and energy.total_joules else ".")


def _service(run: RunJson) -> str:
    counts, ttft, tpot = run.requests, run.latency.ttft_seconds, run.latency.tpot_seconds
    done = counts.completed_in_window or 0
    text = f"Of {counts.in_window:,} requests due in the window {done:,} completed"
    if ttft is not None:
        text += (
            f"; the first token came after {quantity(ttft.p50, 's')} (median; "
            f"{quantity(ttft.p99, 's')} at p99)"
        )
    if tpot is not None:
        text += f", then one every {quantity(tpot.p50, 's')}"
    if run.slo is not None and run.slo.met_fraction is not None:
        text += f"; {percent(run.slo.met_fraction)} met the latency limits"
    return text + "."


def certainty(run: RunJson) -> str:
    """How sure the energy is: sampling, edges, gain, and the smallest change that a second run would show."""
    per = run.energy.per_request_joules
    if per is None or per.mean is None or per.ci95 is None:
        return ""
    half = (per.ci95[1] - per.ci95[0]) / 2 / per.mean
    text = f"Sampling: ±{percent(half)} for this workload and window, by batch means"
    if (run.energy.statistics or {}).get("still_correlated"):
        text += " (batches still correlated in time: the true interval is wider)"
    if run.energy.uncertainty_joules is not None and run.energy.total_joules:
        text += f". Window edges: ±{percent(run.energy.uncertainty_joules / run.energy.total_joules, 2)}"
    if run.energy.gain_fraction is not None:
        text += (
            f". The sensor's own gain: about ±{run.energy.gain_fraction:.0%} from board to board, in "
            "none of the"
            " intervals; runs on one board share it"
        )
    least = (run.energy.statistics or {}).get("minimum_detectable_difference_fraction")
    if least is not None:
        text += (
            f". Another run of this length with other requests must differ by {percent(least)} to be "
            "told apart"
        )
    return text + "."


def cards(run: RunJson) -> list[Card]:
    """The report's large numbers, those that exist."""
    energy, found = run.energy, []
    modelled = "modelled" in energy.flags
    per = energy.per_request_joules
    if per is not None and per.mean is not None:
        path = "energy.per_request_joules.mean"
        found.append(_card(path, "energy a request", per.mean, "J", per.ci95, modelled))
    if energy.per_output_token_joules is not None:
        value, spread = energy.per_output_token_joules, energy.per_output_token_ci95
        found.append(_card("energy.per_output_token_joules", "an output token", value, "J", spread, modelled))
    if energy.mean_watts is not None:
        found.append(_card("energy.mean_watts", "mean power", energy.mean_watts, "W", None, modelled))
    if run.load.achieved_rps is not None:
        asked = f"asked {digits(run.load.planned_rps or 0)}"
        value_text = f"{digits(run.load.achieved_rps)}/s"
        found.append(Card("requests sent", value_text, asked, definition("load.achieved_rps")))
    for name, title in (("ttft_seconds", "first token, median"), ("tpot_seconds", "per token, median")):
        spread_of = getattr(run.latency, name)
        if spread_of is not None:
            below = f"p99 {quantity(spread_of.p99, 's')}"
            found.append(Card(title, quantity(spread_of.p50, "s"), below, definition(f"latency.{name}")))
    if run.slo is not None and run.slo.met_fraction is not None:
        good = quantity(run.slo.joules_per_good_request, "J", modelled=modelled)
        found.append(
            Card(
                "met the limits",
                percent(run.slo.met_fraction),
                f"{good} a good one",
                definition("slo.met_fraction"),
            )
        )
    failed = run.requests.in_window - (run.requests.completed_in_window or 0)
    below = f"of {run.requests.in_window:,} due in the window"
    found.append(Card("failed", f"{failed:,}", below, definition("requests.completed_in_window")))
    return found


def _card(  # noqa: PLR0917
    path: str, title: str, value: float, unit: str, spread: tuple[float, float] | None, modelled: bool
) -> Card:
    below = interval(spread, unit, value)
    if modelled:
        below = f"modelled {below}".strip()
    return Card(title, quantity(value, unit), below, definition(path))
