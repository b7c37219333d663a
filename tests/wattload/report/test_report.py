"""The report: self-contained, small, and saying what it does not know."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from contrast import contrast
from documented import PAGE, with_tables
from synthetic_run import Synthetic
from wattload import report
from wattload.analysis.compute import finish
from wattload.analysis.options import parse_slo
from wattload.cli import report as command
from wattload.errors import BadInput, RunInvalid
from wattload.report import build
from wattload.report.formatting import digits, interval, percent, quantity
from wattload.report.latency_plots import seconds_text
from wattload.report.summary import sentences
from wattload.rundir.directory import ENERGY_SCHEMA, SPLIT_SCHEMA
from wattload.rundir.numbers import NUMBERS
from wattmeter.faults import Fault


def page(path: Path, **changes: Any) -> str:
    run = Synthetic(**{"rate": 10.0, "duration": 20.0, "warmup": 5.0, **changes}).write(path)
    finish(run)
    return build(run).read_text()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with all plots there are, of a run whose model's name wants to be markup."""
    changes = {"model": "llama-3.1-8b <script>alert(1)</script>", "device": "NVIDIA H200"}
    return page(tmp_path_factory.mktemp("plain") / "r", **changes)


def test_needs_nothing_from_the_network_and_is_small(tmp_path: Path) -> None:
    text = page(tmp_path / "r", rate=100.0, slo=parse_slo("ttft=50ms"))
    addresses = set(re.findall(r"""(?:src|href)=["']([^"'#]+)""", text))
    assert all(address.startswith("data:") for address in addresses)
    assert "@import" not in text
    assert len(text) < 2_000_000


def test_every_plot_is_well_formed_and_no_id_is_used_twice(plain: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", plain, flags=re.DOTALL)
    assert len(plots) == 7
    ids = []
    for plot in plots:
        root = ET.fromstring(plot)
        assert root.get("viewBox")
        mine = [e.get("id") for e in root.iter() if e.get("id")]
        ids += mine
        used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", plot))
        assert used <= set(mine)
    assert len(ids) == len(set(ids))


def test_says_simulated_beside_every_joule(tmp_path: Path, plain: str) -> None:
    text = page(tmp_path / "r", source="modelled")
    assert " J simulated" in text.split('aria-label="The answer"')[1].split("</section>")[0]
    assert "power (W) (simulated)" in text
    visible = re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.DOTALL)
    rows = re.findall(r'<td class="number">([^<]*\d [mkMµ]?[JW])</td>', visible)
    assert [row for row in rows if "simulated" not in row and not row.startswith("[")] == _estimates(visible)
    assert (
        "simulated"
        not in page(tmp_path / "n", source="nvml").split('id="configuration"')[0].split("</style>")[1]
    )


def _estimates(visible: str) -> list[str]:
    """Values of the table whose head says that none of them is measured."""
    part = visible.split("none of them measured")[1].split("</table>", maxsplit=1)[0]
    return re.findall(r'<td class="number">([^<]*\d [mkMµ]?[JW])</td>', part)


def test_an_invalid_run_says_so_first(tmp_path: Path) -> None:
    text = page(tmp_path / "r", failed=1.0)
    assert text.index("Not valid: do not use these results") < text.index('id="summary"')
    assert "requests scheduled in the window completed" in text
    assert "http_5xx" in text
    assert "None" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert "nan" not in re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.DOTALL).lower().split()


def test_without_energy_there_is_no_joule(tmp_path: Path) -> None:
    text = page(tmp_path / "r", overrides={"no_energy_reason": "not asked for (--energy none)"})
    assert "was not measured: not asked for" in text
    answer = text.split('aria-label="The answer"')[1].split("</section>")[0]
    assert not re.search(r"\d J", answer)


def test_the_cards_come_before_the_prose_and_the_estimates_last(plain: str) -> None:
    places = [
        plain.index(mark) for mark in ('id="summary"', 'aria-label="The answer"', 'id="power-over-time"')
    ]
    places += [plain.index(f'<h2 id="{name}"') for name in ("numbers", "configuration", "estimates")]
    assert places == sorted(places)
    assert '<details>\n<summary><h2 id="estimates">Estimates' in plain


def test_every_link_of_the_navigation_leads_somewhere(plain: str) -> None:
    links = re.findall(r'<a href="#([^"]+)"', plain)
    assert len(links) > 8
    assert all(plain.count(f'id="{link}"') == 1 for link in links)


def test_failures_are_listed_with_the_server_s_words(tmp_path: Path) -> None:
    run = Synthetic(rate=10.0, duration=20.0, warmup=5.0, failed=0.3).write(tmp_path / "r")
    finish(run)
    made = json.loads(run.run_json_path.read_text())
    made["requests"]["failures"][0] |= {"message": "500: <b>out of memory</b>", "hint": "a lower --rate"}
    run.run_json_path.write_text(json.dumps(made))
    section = build(run).read_text().split('id="failures"')[1].split("</section>")[0]
    assert "500: &lt;b&gt;out of memory" in section
    assert "a lower --rate" in section
    assert 'id="failures"' not in page(tmp_path / "s")


def test_a_quantity_is_one_row(plain: str) -> None:
    table = plain.split('<h2 id="numbers">')[1].split("</table>", maxsplit=1)[0]
    assert [re.sub("<[^>]+>", "", row) for row in re.findall('<th scope="row">.*?</th>', table)] == [
        "Attributed energy per request", "TTFT", "TPOT", "ITL", "End-to-end latency", "Dispatch delay",
    ]  # fmt: skip
    others = plain.split('<h2 id="every-other-number">')[1].split("</table>", maxsplit=1)[0]
    assert "TTFT" not in others
    assert "Total energy per request" in others


def test_the_numbers_can_be_taken_along(plain: str) -> None:
    found = re.search(r'download="synthetic\.csv" href="data:text/csv;base64,([^"]+)"', plain)
    assert found is not None
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))
    known = {number.path for number in NUMBERS}
    assert {row["path"] for row in rows} <= known
    assert len(rows) > 50
    mean = next(row for row in rows if row["path"] == "energy.per_request_joules.mean")
    assert float(mean["ci95_low"]) < float(mean["value"]) < float(mean["ci95_high"])


def test_simulated_joules_have_a_banner(tmp_path: Path, plain: str) -> None:
    assert "<strong>SIMULATED</strong>" in page(tmp_path / "r", source="modelled")
    assert "SIMULATED" not in plain


def test_a_label_in_the_plot_is_the_number_in_the_table(tmp_path: Path) -> None:
    run = Synthetic(rate=10.0, duration=20.0, warmup=5.0).write(tmp_path / "r")
    result = finish(run)
    text = build(run).read_text()
    for latency in (result.latency.ttft_seconds, result.latency.tpot_seconds, result.latency.itl_seconds):
        assert latency is not None
        for name in ("p50", "p95", "p99"):
            assert f"{name} {seconds_text(getattr(latency, name))}" in text


def test_colours_of_the_page_have_contrast() -> None:
    """WCAG AA: 4.5 to 1 for text, on light and on dark paper."""
    css = (Path(report.__file__).parent / "style.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for text in ("ink", "soft", "link"):
            for under in ("paper", "tint", "good", "warn", "bad"):
                assert contrast(colours[text], colours[under]) >= 4.5, (text, under)


def test_text_of_the_endpoint_is_escaped(plain: str) -> None:
    assert "<script>alert" not in plain
    assert "&lt;script&gt;alert" in plain


def test_the_answer_is_three_sentences_with_intervals(tmp_path: Path) -> None:
    run = Synthetic(rate=20.0, duration=30.0, warmup=5.0).write(tmp_path / "r")
    said = sentences(finish(run))
    assert len(said) == 3
    assert "95 % interval" in said[0]
    assert "5.00 s of warm-up left out" in said[1]


def test_the_documentation_lists_every_fault_once_as_declared() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    text = (docs / "reference" / "run-directory.md").read_text()
    table = [line for line in text.splitlines() if line.endswith(("|  |", "| yes |"))]
    assert table == [
        f"| `{fault.value}` | {fault.meaning} | {'yes' if fault.invalidates else ''} |" for fault in Fault
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (64.77, "J", "64.8 J"),
        (31478, "J", "31.5 kJ"),
        (1500.0, "J", "1,500 J"),
        (0.4976, "J", "498 mJ"),
        (0.0458, "s", "45.8 ms"),
        (1.234, "s", "1.23 s"),
        (0.0, "J", "0 J"),
        (None, "J", "–"),
    ],
)
def test_numbers_as_people_read_them(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_no_percentage_is_minus_zero() -> None:
    assert percent(-2e-16) == "0.0 %"
    assert percent(-0.0006) == "-0.1 %"
    assert percent(None) == "–"


def test_intervals_share_the_prefix_of_their_number() -> None:
    assert interval((0.478, 0.517), "J", 0.498) == "[478, 517] mJ"
    assert digits(999.6) == "1,000"


def test_the_command_recomputes(tmp_path: Path) -> None:
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    Synthetic(rate=20.0, duration=30.0, warmup=5.0).write(tmp_path / "r")
    where = str(tmp_path / "r")
    assert CliRunner().invoke(app, ["report", where]).exit_code == 0
    assert (tmp_path / "r" / "report.html").exists()
    done = CliRunner().invoke(app, ["report", where, "--json", "--warmup", "10", "--pue", "1.2"])
    assert '"warmup_seconds": 10.0' in done.output
    failed = CliRunner().invoke(app, ["report", where, "--assert", "energy.per_request_joules.mean < 1"])
    assert isinstance(failed.exception, RunInvalid)
    for wrong in (
        ["--warmup", "31"],
        ["--slo", "x"],
        ["--gpu", "nothing"],
        ["--assert", "x"],
        ["--pue", "0.3"],
    ):
        assert isinstance(CliRunner().invoke(app, ["report", where, *wrong]).exception, BadInput)
    # What was refused leaves no trace in the directory.
    assert CliRunner().invoke(app, ["report", where]).exit_code == 0


def test_the_documentation_has_every_number_column_and_flag() -> None:
    text = PAGE.read_text("utf-8")
    assert text == with_tables(text), "python tests/support/documented.py writes the tables anew"
    for column in [*ENERGY_SCHEMA.names, *SPLIT_SCHEMA.names]:
        assert f"`{column}`" in text
