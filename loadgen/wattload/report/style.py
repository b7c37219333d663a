"""How static pictures look: text as text, an SVG to put into a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# What stands for the page's own colour of text in a picture, which style.css turns into it on dark paper.
ON_PAPER = "#222222"

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    # Names of runs, arms and tenants are text, whatever dollar signs they have.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666a70",
    "axes.labelcolor": "#33373d",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "xtick.color": "#55595f",
    "ytick.color": "#55595f",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


def _settings(salt: str | None = None) -> Any:
    return {**_SETTINGS, "svg.hashsalt": salt}


@contextmanager
def plotting(width: float = 7.6, height: float = 2.7) -> Iterator[Figure]:
    """A figure of `width` x `height` inches in the project's style; nothing of pyplot's global state is
    touched.
    """
    with mpl.rc_context(_settings()):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element. `name` keeps its ids apart from those of the page's other plots."""
    with mpl.rc_context(_settings(name)):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Half of the picture would be digits that no screen and no printer resolves.
    text = re.sub(r"( d=\"[^\"]*\")", lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    # Sizes in points would stop the plot from following the page's width.
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    return re.sub(
        r'(id="|#)((?:figure|axes|patch|line2d|text|legend|matplotlib|xtick|ytick|PathCollection|'
        r"FillBetweenPolyCollection|LineCollection|QuadMesh)[._\w]*)",
        rf"\1{name}-\2",
        text,
    )


def log_ticks(axis: Axis, text: Callable[[float], str], *, most: int = 12) -> None:
    """Labels for a logarithmic axis whose limits are set, about `most` of them at most.

    1, 2 and 5 of each decade where it spans few of them, not every decade where it spans many.
    """
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(max(high, 1e-300) / max(low, 1e-300))
    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.6 else (1.0,)
    stride = max(1, math.ceil(decades / most))
    axis.set_major_locator(
        LogLocator(base=10.0**stride, subs=subs if stride == 1 else (1.0,), numticks=most + 9)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes, columns: int = 6) -> None:
    """A legend in one row over the plot, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, handlelength=1.4)
