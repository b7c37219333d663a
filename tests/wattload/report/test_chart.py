"""Charts as data: small whatever the run's length, without losing a peak; the library as it was published."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from contrast import contrast
from synthetic_run import Synthetic
from wattload import colours, report
from wattload.analysis.compute import finish
from wattload.report import build
from wattload.report.chart import MOST_DOTS, MOST_LINE, Axis, Chart, Series, rounded, thinned
from wattload.report.drawing import draw
from wattload.report.page import environment

FOLDER = Path(report.__file__).parent
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>$\\frac{$"


def line(count: int, kind: str = "line") -> Series:
    x = np.linspace(0, 3600, count)
    return Series("a", x, np.sin(x), colours.BLUE, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "most"), [("line", MOST_LINE), ("dots", MOST_DOTS)])
def test_a_long_series_is_thinned_and_keeps_its_peaks(kind: str, most: int) -> None:
    series = line(200_000, kind)
    series.y[123_456], series.y[65_432] = 50.0, -70.0
    series.y[100_000:100_900] = np.nan
    kept = thinned(series)
    assert len(kept.x) <= most * 1.05
    assert np.all(np.diff(kept.x) >= 0)
    assert np.nanmax(kept.y) == 50.0
    assert np.nanmin(kept.y) == -70.0
    assert np.isnan(kept.y).any(), "a gap stays a gap"
    assert (kept.x[0], kept.x[-1]) == (0, 3600)


def test_a_short_series_is_left_as_it_is() -> None:
    series = line(MOST_LINE)
    assert thinned(series) is series


def test_values_are_short_and_none_where_there_is_none() -> None:
    assert rounded([1 / 3, 120.0, np.nan, np.inf, 0.0, 1e-9]) == [0.33333, 120, None, None, 0, 1e-9]


def test_a_chart_without_values_is_drawn() -> None:
    drawing = draw("empty", Chart("TTFT", Axis("TTFT", "s"), Axis("share"), ()))
    assert "none measured" in drawing.still
    assert drawing.table == []


def test_a_few_points_are_told_in_words_one_by_one() -> None:
    x = np.array([1.0, 2.0])
    series = Series("arm", x, x * 10, colours.BLUE, "points", low=x * 9, high=x * 11, texts=("1/s", "2/s"))
    axes = Axis("rate"), Axis("energy", "J", simulated=True)
    table = draw("few", Chart("Energy", *axes, (series,))).table
    assert [(row.what, row.lowest, row.middle, row.highest) for row in table] == [
        ("1/s", "9.00 J simulated", "10.0 J simulated", "11.0 J simulated"),
        ("2/s", "18.0 J simulated", "20.0 J simulated", "22.0 J simulated"),
    ]


def test_a_name_that_wants_to_be_markup_is_text() -> None:
    series = line(10)
    named = Series(HOSTILE, series.x, series.y, colours.BLUE)
    drawing = draw("hostile", Chart(HOSTILE, Axis(HOSTILE), Axis(HOSTILE), (named, series)))
    source = '{% from "parts.html" import heading, plot %}{{ heading("h", name) }}{{ plot(drawing, name) }}'
    text = environment().from_string(source).render(drawing=drawing, name=HOSTILE)
    assert "alert(1)" in text
    assert "<script>" not in text
    assert "<img" not in text
    assert text.count("</script>") == 1, "the end of the data, which no name in it may write"
    data = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])[0]["title"] == HOSTILE


def test_the_policy_of_a_page_names_its_own_scripts_alone(tmp_path: Path) -> None:
    names = {"tags": (HOSTILE, "b"), "model": HOSTILE, "device": HOSTILE, "trace": HOSTILE}
    run = Synthetic(rate=10.0, duration=20.0, warmup=5.0, **names).write(tmp_path / "r")  # type: ignore[arg-type]
    finish(run)
    text = build(run).read_text("utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy[1]
    assert "default-src &#39;none&#39;" in policy[1]
    assert text.count("</script>") == len(re.findall(r"<script(?: type=\"application/json\")?>", text))
    assert "<img" not in text


def test_the_library_is_what_was_published() -> None:
    said = tomllib.loads((FOLDER / "vendor" / "uplot.toml").read_text("utf-8"))
    for name, sha256 in said["sha256"].items():
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == sha256
    assert f"(v{said['version']})" in (FOLDER / "vendor" / "uPlot.iife.min.js").read_text("utf-8")[:100]
    docs = Path(__file__).resolve().parents[3] / "docs" / "reference" / "dependencies.md"
    assert f"| uPlot | in the package | {said['version']} | {said['licence']} |" in docs.read_text("utf-8")


def test_colours_of_plots_have_contrast() -> None:
    """WCAG AA: 3 to 1 for what is drawn, on light and on dark paper."""
    css = (FOLDER / "style.css").read_text("utf-8")
    papers = re.findall(r"--paper: (#[0-9a-f]{6})", css)[:2]
    every = {*colours.SERIES, *colours.COMPONENTS.values(), *colours.QUANTILES.values()}
    assert len(papers) == 2
    for colour in every:
        for paper in papers:
            assert contrast(colour, paper) >= 3.0, (colour, paper)
