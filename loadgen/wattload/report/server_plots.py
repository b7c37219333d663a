"""The server's own metrics over the time of the run, under the plot of its power."""

from __future__ import annotations

from wattload.colours import BLUE, GREEN, ORANGE
from wattload.report.chart import Axis, Series
from wattload.report.drawing import Drawing, draw
from wattload.report.plots import over_time
from wattload.rundir.run import RunData
from wattload.server_metrics.panels import Panel, panels
from wattload.server_metrics.series import common_series

_COLOURS = (BLUE, ORANGE, GREEN)


def panels_of(data: RunData) -> list[Panel]:
    """What there is to be drawn, a chart for each; empty where no server's metrics were read."""
    return panels(common_series(data.server)) if data.server is not None else []


def server(data: RunData) -> Drawing | None:
    """A chart for each panel, one under the other; None where there is none."""
    begin = data.capture.started_unix
    charts = [
        over_time(
            data,
            panel.title,
            Axis("", panel.unit, low=0.0),  # the title stands above a chart that is too low for both
            *(
                Series(line.title, line.unix_seconds - begin, line.values, colour)
                for line, colour in zip(panel.lines, _COLOURS, strict=False)
            ),
        )
        for panel in panels_of(data)
    ]
    return draw("server", *charts, height=0.6 + 1.5 * len(charts), down=True) if charts else None
