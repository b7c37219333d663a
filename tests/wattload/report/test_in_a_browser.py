"""The pages in a real browser: at the width of a phone, a tablet and a desk, on both papers, and printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser
from contrast import contrast
from study_files import FakeLoad, study_of, study_text
from synthetic_run import Synthetic
from wattload.analysis.compare import compare
from wattload.analysis.compute import finish, load_run
from wattload.analysis.options import parse_slo
from wattload.report import build
from wattload.report.compare_page import write_page
from wattload.study.conduct import Conductor
from wattload.study.directory import StudyDir
from wattload.study.results import Results
from wattload.study.write import write_results
from wattload.sweep.search import point_of
from wattload.sweep.show import write_page as write_sweep

pytestmark = pytest.mark.services

# Every kind of page, and how many interactive plots one has at least.
PAGES = {"r/report.html": 6, "compare.html": 3, "sweep.html": 1, "study/study.html": 4}
HOSTILE = "</script><script>window.broken = 1</script>"
# How far the content goes beyond the window, and which elements do that have no scroll bar of their own.
BEYOND = """(() => {
  const room = document.documentElement.clientWidth;
  const scrolls = (e) => e.closest("table, .still, pre, .said, .canvas") !== null;
  return [document.documentElement.scrollWidth - room, [...document.body.querySelectorAll("*")].filter(
    (e) => !scrolls(e) && e.getBoundingClientRect().right > room + 1).map((e) => e.tagName + e.className)];
})()"""

# The buttons that undo a zoom; only those of zoomed plots are shown.
RESETS = (
    "[...document.querySelectorAll('.tools button')]"
    ".filter((button) => button.textContent === 'Reset zoom' && !button.hidden)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run, the comparison of two, a sweep and a study, with names that want to be scripts."""
    path = tmp_path_factory.mktemp("browser")
    settings = {"failed": 0.03, "slo": parse_slo("ttft=60ms"), "tags": (HOSTILE, "b"), "model": HOSTILE}
    for name, seed in (("r", 1), ("s", 2)):
        run = Synthetic(rate=8.0, duration=60.0, warmup=10.0, seed=seed, **settings).write(path / name)  # type: ignore[arg-type]
        finish(run)
    build(path / "r")
    write_page(compare([load_run(path / name) for name in ("r", "s")]), path / "compare.html", [])
    points = [point_of(rate, path / "r", load_run(path / "r").result) for rate in (1.0, 2.0, 4.0)]
    write_sweep(points, points[1], path / "sweep.html")
    (path / "templates").mkdir()
    label = f"title = '{HOSTILE}'"
    study, out = study_of(path, study_text(free=label)), StudyDir(path / "study")
    out.begin(study)
    load = FakeLoad(path / "templates")
    load.during = lambda settings: Synthetic(rate=20.0, duration=30.0, warmup=5.0, seed=int(settings["seed"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wattload.launch.run_settings", load)
        Conductor(study, out, say=lambda _text: None).run()
    write_results(Results.of(study, path / "study"), path / "study", "all made")
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return folder / "r" / "report.html"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def chromium(started: Browser) -> Iterator[Browser]:
    """The browser, which after each test must have complained of nothing and asked for the page alone."""
    started.errors.clear()
    started.requests.clear()
    yield started
    assert started.errors == []
    assert started.evaluate("window.broken") is None, "a name of the endpoint ran as a script"
    page = started.evaluate("location.href.split('#')[0]")
    assert {url.split("#")[0] for url in started.requests} == {page}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 768, 1400])
def test_no_page_scrolls_sideways_and_every_plot_is_drawn(
    folder: Path, chromium: Browser, width: int, dark: bool
) -> None:
    for name, least in PAGES.items():
        chromium.requests.clear()
        chromium.open(folder / name, width=width, dark=dark)
        chromium.settle()
        assert chromium.evaluate(BEYOND) == [0, []]
        plots = "[...document.querySelectorAll('.plot:has(script)')]"
        assert chromium.evaluate(f"{plots}.length") >= least
        assert chromium.evaluate(f"{plots}.every((p) => p.classList.contains('lively'))")
        assert chromium.evaluate(
            "[...document.querySelectorAll('.plot.lively .still')].every((e) => e.offsetParent === null)"
        )
        drawn = (
            "[...document.querySelectorAll('.chart canvas')].filter((c) => !c.closest('details:not([open])'))"
            ".map((c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)"
            ".map((pixels) => new Set(new Uint32Array(pixels)).size)"
        )
        assert min(chromium.evaluate(drawn)) > 5, "a canvas is blank"


def test_text_has_contrast_on_both_papers(report: Path, chromium: Browser) -> None:
    """WCAG AA: 4.5 to 1, of what the browser really shows, the pointer's box included."""
    for dark in (False, True):
        chromium.open(report, dark=dark)
        hover(chromium)
        pairs = chromium.evaluate(
            """(() => {
              const paper = (e) => { for (; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (!/, 0\\)$|transparent/.test(colour)) return colour; } return "rgb(255, 255, 255)"; };
              const found = new Set();
              const texts = "p, td, th, span, b, a, h1, h2, button, dt, dd, strong, summary";
              for (const e of document.querySelectorAll(texts))
                if (e.offsetParent) found.add(getComputedStyle(e).color + "|" + paper(e));
              return [...found]; })()"""
        )
        assert len(pairs) >= 5
        for pair in pairs:
            text, under = (_hex(colour) for colour in pair.split("|"))
            assert contrast(text, under) >= 4.5, (dark, pair)


def _hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def hover(chromium: Browser, plot: int = 0, share: float = 0.5) -> None:
    mark = f"document.querySelectorAll('.chart .u-over')[{plot}].id = 'over{plot}'"
    chromium.evaluate(mark)
    left, top, width, height = chromium.box(f"#over{plot}")
    chromium.pointer("mouseMoved", left + width * share - 2, top + height / 2)
    chromium.pointer("mouseMoved", left + width * share, top + height / 2)


def tips(chromium: Browser) -> list[str]:
    """The text beside the crosshair of every chart that shows one."""
    found: list[str] = chromium.evaluate(
        "[...document.querySelectorAll('.tip:not([hidden])')].map((t) => t.innerText)"
    )
    return found


def test_the_pointer_shows_values_with_units_in_every_plot_over_time(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    assert tips(chromium) == []
    hover(chromium)
    shown = tips(chromium)
    assert len(shown) == 4, "power, rates, requests in flight, TTFT"
    times = {text.splitlines()[0] for text in shown}
    assert len(times) == 1, "one crosshair"
    assert re.search(r"time since the start of the run: [\d.]+ s", times.pop())
    assert re.search(r"decode\n[\d.,]+ W", shown[0])
    assert re.search(r"scheduled\n[\d.,]+ requests/s", shown[1])


def test_the_nearest_request_is_named_among_dots(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    count = chromium.evaluate("document.querySelectorAll('.figures .chart').length")
    hover(chromium, count - 1)
    assert re.search(r"attributed energy per request\n[\d.,]+ m?J", " ".join(tips(chromium)))


def test_a_series_is_switched_off_and_on(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    chromium.evaluate("document.querySelectorAll('.legend button')[2].id = 'decode'")
    hover(chromium)
    assert "decode" in tips(chromium)[0]
    left, top, width, height = chromium.box("#decode")
    for pressed in ("false", "true"):
        chromium.pointer("mousePressed", left + width / 2, top + height / 2, clicks=1)
        chromium.pointer("mouseReleased", left + width / 2, top + height / 2, clicks=1)
        assert chromium.evaluate("document.querySelector('#decode').getAttribute('aria-pressed')") == pressed
        hover(chromium)
        assert ("decode" in tips(chromium)[0]) == (pressed == "true")
        left, top, width, height = chromium.box("#decode")


def test_a_drag_zooms_every_plot_over_time_and_the_button_resets(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    hover(chromium)
    left, top, width, height = chromium.box("#over0")
    y = top + height / 2
    chromium.pointer("mousePressed", left + width * 0.4, y, clicks=1)
    for share in (0.45, 0.5, 0.6):
        chromium.pointer("mouseMoved", left + width * share, y, clicks=1)
    chromium.pointer("mouseReleased", left + width * 0.6, y, clicks=1)
    assert chromium.evaluate(f"{RESETS}.length") == 4
    hover(chromium, 0, 0.02)
    first = float(re.findall(r"run: ([\d.]+) s", tips(chromium)[0])[0])
    length = 68.0
    assert 0.3 * length < first < 0.5 * length
    chromium.evaluate(f"{RESETS}[1].click()")
    chromium.settle()
    assert chromium.evaluate(f"{RESETS}.length") == 0
    hover(chromium, 0, 0.02)
    assert float(re.findall(r"run: ([\d.]+) s", tips(chromium)[0])[0]) < 5


def test_the_keyboard_moves_zooms_and_speaks(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    chromium.evaluate("document.querySelector('.chart').focus()")
    chromium.press("ArrowRight", code=39)
    said = chromium.evaluate("document.querySelector('.chart .said').textContent")
    assert re.search(r"time since the start of the run: [\d.]+ s: idle [\d.]+ W", said)
    chromium.press("ArrowRight", code=39)
    assert chromium.evaluate("document.querySelector('.chart .said').textContent") != said
    chromium.press("+", code=187)
    assert chromium.evaluate(f"{RESETS}.length") > 0
    chromium.press("0", code=48)
    assert chromium.evaluate(f"{RESETS}.length") == 0
    chromium.press("Escape", code=27)
    assert tips(chromium) == []


def test_every_section_has_a_permalink(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    assert chromium.evaluate(
        "[...document.querySelectorAll('h2')].every((h) => h.id && h.querySelector(`a[href='#${h.id}']`))"
    )
    chromium.evaluate("location.hash = 'latency'")
    assert chromium.evaluate("document.querySelector(':target').textContent").startswith("Latency")


def test_the_values_of_a_plot_are_a_csv(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    chromium.evaluate(
        "window.kept = []; URL.createObjectURL = (blob) => { window.kept.push(blob); return '#'; };"
        "[...document.querySelectorAll('.tools button')].find((b) => b.textContent === 'CSV').click()"
    )
    rows = chromium.evaluate("window.kept[0].text()").splitlines()
    assert rows[0] == "plot,series,x,x_name,y,y_name,low,high,text"
    assert len(rows) > 100
    assert re.match(r"Power,idle,[\d.e-]+,time since the start of the run \(s\),[\d.]+,power \(W\)", rows[1])


def test_on_paper_it_is_two_pages_of_pictures(report: Path, chromium: Browser) -> None:
    chromium.open(report)
    chromium.media("print")
    chromium.settle()
    assert chromium.evaluate("[...document.querySelectorAll('.live')].every((e) => e.offsetParent === null)")
    assert chromium.evaluate(
        "[...document.querySelectorAll('.figures .still')].every((e) => e.offsetParent !== null)"
    )
    assert len(re.findall(rb"/Type\s*/Page[^s]", chromium.pdf())) == 2


def test_without_scripts_the_pictures_stay(report: Path, chromium: Browser) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    chromium.open(report)
    chromium.call("Emulation.setScriptExecutionDisabled", value=False)
    assert chromium.evaluate("document.querySelectorAll('.live').length") == 0
    assert chromium.evaluate("document.querySelector('.still svg').getBoundingClientRect().height") > 100
