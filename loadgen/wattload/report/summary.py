"""The result first: three sentences with their intervals, and the few numbers worth a card."""

from __future__ import annotations

from dataclasses import dataclass

from wattload.report.formatting import digits, interval, percent, quantity, show
from wattload.rundir.numbers import headline, number_of
from wattload.rundir.result import RunJson


@dataclass(frozen=True, slots=True)
class Card:
    """One number large: its title, value, what stands below it, and its definition."""

    title: str
    value: str
    below: str
    meaning: str


def sentences(run: RunJson) -> list[str]:
    """What the traffic and its sessions cost, where it went, and what it got for it; as plain text."""
    return [_cost(run), *_units(run), _parts(run), _service(run)]


def _cost(run: RunJson) -> str:
    each = headline(run)
    value = each.of(run)
    if value is None:
        why = (
            run.absent.get("energy")
            or run.absent.get("energy.per_request_joules")
            or "no reason was recorded"
        )
        return f"The energy per request was not measured: {why}."
    modelled = run.energy.simulated
    steady = each.path == "energy.per_request_joules.mean"
    text = f"{each.title}{'' if steady else ', idle excluded'}: {quantity(value, 'J', modelled=modelled)}"
    pair = each.interval_of(run)
    if pair is not None:
        text += f" (95 % interval {interval(pair, 'J', value)})"
    if run.load.achieved_rps is not None:
        text += f" at {digits(run.load.achieved_rps)} requests/s"
    if run.energy.per_output_token_joules is not None:
        text += f"; total energy per output token: {quantity(run.energy.per_output_token_joules, 'J')}"
    if run.energy.per_input_token_joules is not None:
        text += f"; total energy per input token: {quantity(run.energy.per_input_token_joules, 'J')}"
    if not steady:
        return f"{text}. The window was not steady: its total energy is not that of its scheduled requests."
    if run.footprint is not None:
        text += f"; {digits(run.footprint.energy_kwh_per_1000_requests)} kWh per 1,000 requests"
    return text + "."


def _units(run: RunJson) -> list[str]:
    """What a task of an agent cost, or a session where there are no tasks of several turns."""
    if run.sessions is None:
        return []
    unit = "task" if run.sessions.per_task is not None else "session"
    info = run.sessions.per_task or run.sessions.per_session
    if info is None or info.energy_joules is None:
        return []
    value, turns = info.energy_joules.mean, digits(info.turns or 0)
    text = f"Energy per {unit} (of {turns} requests): {quantity(value, 'J', modelled=run.energy.simulated)}"
    if info.energy_joules.ci95 is not None:
        text += f" (95 % interval {interval(info.energy_joules.ci95, 'J', value)})"
    if info.waiting_idle_joules:
        share = percent(info.waiting_idle_joules / value)
        text += f", of which idle energy while it waited for its tools: {share}"
    if info.cache_saved_joules:
        text += f"; cache hits saved an estimated {quantity(info.cache_saved_joules, 'J')}"
    return [text + "."]


def _parts(run: RunJson) -> str:
    energy, window = run.energy, run.window
    if energy.total_joules is None or window is None:
        return "There is no total energy to split."
    length = window.end_unix - window.start_unix
    word = " (simulated)" if energy.simulated else ""
    text = (
        f"Measurement window: {digits(length)} s, {digits(window.warmup_seconds)} s of warm-up left out. "
        f"Total energy {quantity(energy.total_joules, 'J')}{word}, "
        f"mean power {quantity(energy.mean_watts, 'W')}"
    )
    shares = {
        "idle": energy.idle_joules,
        "prefill": energy.prefill_joules,
        "decode": energy.decode_joules,
        "unattributed": energy.unattributed_joules,
    }
    known = [f"{percent(v / energy.total_joules)} {name}" for name, v in shares.items() if v is not None]
    return text + (f": {', '.join(known)}." if known and energy.total_joules else ".")


def _service(run: RunJson) -> str:
    counts, ttft, tpot = run.requests, run.latency.ttft_seconds, run.latency.tpot_seconds
    done = counts.completed_in_window or 0
    text = f"{done:,} of {counts.in_window:,} requests scheduled in the window completed"
    if ttft is not None:
        text += f"; TTFT {quantity(ttft.p50, 's')} (p50), {quantity(ttft.p99, 's')} (p99)"
    elif run.latency.e2e_seconds is not None:
        e2e = run.latency.e2e_seconds
        text += f"; end-to-end latency {quantity(e2e.p50, 's')} (p50), {quantity(e2e.p99, 's')} (p99)"
    if tpot is not None:
        text += f"; TPOT {quantity(tpot.p50, 's')} (p50)"
    if run.slo is not None and run.slo.met_fraction is not None:
        text += f"; SLO attainment {percent(run.slo.met_fraction)}"
    return text + "."


def certainty(run: RunJson) -> str:
    """The uncertainty of the energy: sampling, edges, gain, and the minimum detectable change."""
    each = headline(run)
    value, pair = each.of(run), each.interval_of(run)
    if not value or pair is None:
        return ""
    half = (pair[1] - pair[0]) / 2 / value
    text = f"Sampling: ±{percent(half)} for this workload and window"
    if run.workload.arrivals.process == "trace":
        text += " and its load (the arrivals of a trace rise and fall over minutes)"
    if run.energy.uncertainty_joules is not None and run.energy.total_joules:
        text += f". Window edges: ±{percent(run.energy.uncertainty_joules / run.energy.total_joules, 2)}"
    if run.energy.gain is not None:
        known = percent(run.energy.gain_fraction, 2)
        text += f". Sensor gain: {run.energy.gain:.4g} by calibration, known to ±{known}"
    elif run.energy.gain_fraction is not None:
        text += (
            f". Sensor gain: about ±{run.energy.gain_fraction:.0%} from GPU to GPU, in none of the "
            "intervals; runs on one GPU share it"
        )
    least = (run.energy.statistics or {}).get("minimum_detectable_difference_fraction")
    if least is not None and each.path == "energy.per_request_joules.mean":
        text += (
            f". Minimum detectable change against another run of this length with other requests: "
            f"{percent(least)}"
        )
    return text + "."


# A card's number, and the number that stands below it with the words before and after.
_CARDS: tuple[tuple[str, str, str, str], ...] = (
    ("energy.per_request_joules.mean", "", "", ""),
    ("energy.per_request_joules.attributed_mean", "", "", ""),
    ("energy.per_output_token_joules", "", "", ""),
    ("energy.per_input_token_joules", "", "", ""),
    ("energy.mean_watts", "total ", "energy.total_joules", ""),
    ("load.achieved_rps", "target ", "load.target_rps", ""),
    ("tokens.output_per_second", "prompts ", "tokens.prompt_per_second", ""),
    ("latency.ttft_seconds.p50", "p99 ", "latency.ttft_seconds.p99", ""),
    ("latency.tpot_seconds.p50", "p99 ", "latency.tpot_seconds.p99", ""),
    ("latency.e2e_seconds.p50", "p99 ", "latency.e2e_seconds.p99", ""),
    ("slo.met_fraction", "", "slo.joules_per_good_request", " per SLO-compliant request"),
    ("footprint.cost.per_1000_requests", "carbon ", "footprint.carbon_grams", ""),
)


def cards(run: RunJson) -> list[Card]:
    """The report's large numbers, those that exist."""
    found = []
    listed = sorted(_CARDS, key=lambda card: card[0] != headline(run).path)
    for path, before, second, after in listed:
        shown = show(number_of(path), run)
        if shown is None:
            continue
        other = show(number_of(second), run) if second else None
        below = f"{before}{other.value}{after}" if other is not None else shown.interval
        found.append(Card(shown.title, shown.value, below, shown.definition))
    failed = run.requests.in_window - (run.requests.completed_in_window or 0)
    below = f"of {run.requests.in_window:,} scheduled in the window"
    meaning = "Requests scheduled in the window that did not complete."
    return [*found, Card("Failed requests", f"{failed:,}", below, meaning)]
