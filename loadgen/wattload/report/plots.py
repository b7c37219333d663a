"""The report's charts over time and by component, one function each, from a run's data; time counts from the
run's start.
"""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from wattload.analysis.window import in_flight
from wattload.analysis.window_energy import answered, column
from wattload.colours import BLUE, COMPONENTS, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY
from wattload.report.chart import Axis, Chart, Mark, Series
from wattload.report.drawing import Drawing, Told, draw, steps
from wattload.report.formatting import digits, percent, quantity
from wattload.rundir.requests import F64
from wattload.rundir.result import RunJson
from wattload.rundir.run import RunData
from wattmeter.schema import WindowEnergy

_BINS = 240
DOTS = 8_000


def span_seconds(data: RunData) -> float:
    """From the run's start to its last answer, at least its planned length."""
    begin = data.capture.started_unix
    last = data.requests.last[~np.isnan(data.requests.last)]
    return max(float(last.max()) - begin if len(last) else 0.0, data.capture.duration_seconds, 1e-3)


def over_time(
    data: RunData, title: str, y: Axis, *series: Series, marks: tuple[Mark, ...] = (), stacked: bool = False
) -> Chart:
    """A chart of `series` over the time of the run, whose x is seconds since its start.

    Warm-up and cool-down are shaded, and crosshair and zoom are those of all such charts of the page. A chart
    more in the report is such a call and a line in `page._figures`.
    """
    begin, length = data.capture.started_unix, span_seconds(data)
    start, end = data.window.start_unix - begin, data.window.end_unix - begin
    spans = ((0.0, start, "warm-up"), (start, end, "measured"), (end, length, "cool-down"))
    return Chart(
        title,
        Axis("time since the start of the run", "s", low=0.0, high=length),
        y,
        series,
        shades=tuple((left, right, name) for left, right, name in spans if right > left),
        marks=marks,
        stacked=stacked,
        over_time=True,
    )


def power(data: RunData, run: RunJson) -> Drawing | None:
    """Power by component over time, from the split series; the counter's as a line; None without energy."""
    if data.split is None and data.series is None:
        return None
    begin = data.capture.started_unix + data.offset_seconds
    series = _components(data, begin)
    if data.series is not None and data.series.num_rows > 1:
        seconds, watts = counter_watts(data)
        series.append(Series("power, from the counter", seconds - begin, watts, INK, width=1.0))
    floor = idle_watts(data)
    marks = () if floor is None else (Mark("y", floor, f"idle floor {digits(floor)} W"),)
    y = Axis("power", "W", low=0.0, simulated=run.energy.simulated)
    return draw("power", over_time(data, "Power", y, *series, marks=marks, stacked=True), height=3.1)


def _components(data: RunData, begin: float) -> list[Series]:
    """The mean power of each component in equal groups of the split's intervals."""
    if data.split is None or not data.split.num_rows:
        return []
    left, right = (data.split.column(c).to_numpy() for c in ("start_unix", "end_unix"))
    group = max(1, len(left) // 600)
    starts = np.arange(0, len(left), group)
    lengths: F64 = np.add.reduceat(right - left, starts)
    edges = np.append(left[starts], left[starts[-1]] + lengths[-1]) - begin
    found = []
    for name, colour in COMPONENTS.items():
        joules = column(data.split, f"{name}_joules")
        if not np.isnan(joules).all():
            watts: F64 = np.add.reduceat(joules, starts) / lengths
            found.append(Series(name, *steps(edges, watts), colour, "area"))
    return found


def counter_watts(data: RunData) -> tuple[F64, F64]:
    """Middles (meter's clock) and mean watts of equal bins, summed over devices, from the counters.

    Half a second or more a bin: a counter that steps every 100 ms, read early or late, says nothing of the
    power within a step.
    """
    assert data.series is not None
    seconds = data.series.column("unix_seconds").to_numpy()
    joules = column(data.series, "joules")
    names = np.asarray(data.series.column("device").to_pylist(), object)
    length = float(seconds[-1] - seconds[0])
    edges = np.linspace(seconds[0], seconds[-1], int(np.clip(length / 0.5, 2, 600)) + 1)
    total = np.zeros(len(edges) - 1)
    for name in np.unique(names):
        mine = (names == name) & ~np.isnan(joules)
        if mine.any():
            total += np.diff(np.interp(edges, seconds[mine], joules[mine])) / np.diff(edges)
    return (edges[:-1] + edges[1:]) / 2, total


def idle_watts(data: RunData) -> float | None:
    """The endpoint's idle power: its own figure, or what its split took for idle inside the window."""
    idle = (data.capture.energy_probe or {}).get("idle") or {}
    if isinstance(idle.get("watts"), (int, float)):
        return float(idle["watts"])
    window = answered(data.capture)
    if not isinstance(window, WindowEnergy) or window.idle_joules is None:
        return None
    return window.idle_joules / (window.end_unix - window.start_unix)


def arrivals(data: RunData) -> Drawing:
    """Rates of requests scheduled, sent and completed; where the first two differ, the client was late."""
    begin, length = data.capture.started_unix, span_seconds(data)
    edges = np.linspace(0, length, int(np.clip(length, 20, _BINS)) + 1)
    series = []
    for values, name, colour in (
        (data.requests.due, "scheduled", GREY),
        (data.requests.sent, "sent", BLUE),
        (np.where(data.requests.completed, data.requests.last, np.nan), "completed", GREEN),
    ):
        counts: F64 = np.histogram(values[~np.isnan(values)] - begin, edges)[0].astype(np.float64)
        rate: F64 = counts / np.diff(edges)
        wide = 2.6 if name == "scheduled" else 1.3
        series.append(Series(name, *steps(edges, rate), colour, "steps", dashed=name == "sent", width=wide))
    return draw("arrivals", over_time(data, "Rates", Axis("rate", "requests/s", low=0.0), *series))


def concurrency(data: RunData) -> Drawing:
    """Requests in flight over time."""
    begin, length = data.capture.started_unix, span_seconds(data)
    values, width = in_flight(data.requests, begin, begin + length, 400)
    x, y = steps(width * np.arange(len(values) + 1.0), np.asarray(values, np.float64))
    series = Series("in flight", x, y, BLUE, "area")
    axis = Axis("requests in flight", low=0.0)
    return draw("concurrency", over_time(data, "Requests in flight", axis, series), height=2.3)


_PROMPTS = (SKY, GREEN, ORANGE, RED)


def energy_by_tokens(data: RunData, run: RunJson) -> Drawing | None:
    """A dot per request: attributed energy against output tokens, coloured by quarters of prompt tokens."""
    known = data.done & (data.requests.joules > 0) & (data.requests.output > 0)
    rows = np.flatnonzero(known)
    if not len(rows):
        return None
    if len(rows) > DOTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, DOTS, replace=False))
    requests = data.requests
    rows = rows[np.argsort(requests.output[rows], kind="stable")]
    prompt = requests.prompt[rows]
    cuts = np.unique(np.quantile(prompt, (0.25, 0.5, 0.75)))
    place = np.searchsorted(cuts, prompt)
    series = []
    for number in range(len(cuts) + 1):
        mine = place == number
        if mine.any():
            least, most = (f"{edge:,.0f}" for edge in (prompt[mine].min(), prompt[mine].max()))
            label = f"{least} prompt tokens" if least == most else f"{least} to {most} prompt tokens"
            x, y = np.maximum(requests.output[rows][mine], 0.5), requests.joules[rows][mine]
            series.append(Series(label, x, y, _PROMPTS[number], "dots"))
    axes = (
        Axis("output tokens", log=True),
        Axis("attributed energy per request", "J", log=True, simulated=run.energy.simulated),
    )
    return draw("tokens", Chart("Energy by tokens", *axes, tuple(series), nearest=True), height=3.2)


def split_bar(run: RunJson) -> Drawing | None:
    """The window's joules by component, as one bar; None where the endpoint gives no split."""
    total = run.energy.total_joules
    parts = {part: getattr(run.energy, f"{part}_joules") for part in COMPONENTS}
    if not total or any(value is None for value in parts.values()):
        return None
    rows = [
        Told(part, percent(value / total), "", quantity(value, "J", modelled=run.energy.simulated), "")
        for part, value in parts.items()
    ]
    bar = Markup("").join(
        Markup('<i style="width:{:.3f}%;background:{}" title="{} {}"></i>').format(
            parts[row.series] / total * 100, COMPONENTS[row.series], row.series, row.middle
        )
        for row in rows
    )
    names = Markup("").join(
        Markup('<span><i style="background:{}"></i>{} {}</span>').format(
            COMPONENTS[row.series], row.series, row.what
        )
        for row in rows
    )
    picture = Markup('<div class="names">{}</div><div class="share">{}</div>').format(names, bar)
    return Drawing(picture, [], rows, 0)


def estimates_bars(ratios: dict[str, float], *, simulated: bool) -> Drawing:
    """Estimates as multiples of the measured energy, on a logarithmic axis around 1."""
    names = tuple(reversed(ratios))
    values = np.array([ratios[name] for name in names])
    places = np.arange(len(names), dtype=np.float64)
    texts = tuple(f"{digits(value)}×" for value in values)
    low, high = min(0.5, float(values.min())), max(2.0, float(values.max()))
    room = (high / low) ** 0.17
    word = " (simulated)" if simulated else ""
    x = Axis(f"multiple of the measured energy{word}", "×", log=True, low=low / room, high=high * room)
    series = tuple(
        Series(
            name, values[mine], places[mine], colour, "bars",
            texts=tuple(text for text, own in zip(texts, mine, strict=True) if own), labelled=True,
        )
        for name, mine, colour in (
            ("below the measurement", values < 1, ORANGE), ("above it", values >= 1, PURPLE)
        )
        if mine.any()
    )  # fmt: skip
    chart = Chart(
        "Estimates", x, Axis("", names=names), series, marks=(Mark("x", 1, dashed=False),),
        nearest=True, across=True, base=1.0,
    )  # fmt: skip
    return draw("estimates", chart, height=0.75 + 0.34 * len(names))
