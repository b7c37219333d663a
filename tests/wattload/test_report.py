"""The report: self-contained, small, and saying what it does not know."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Synthetic
from typer import Typer
from typer.testing import CliRunner
from wattload.commands import report as command
from wattload.errors import BadInput, RunInvalid
from wattload.measure import finish
from wattload.report import build
from wattload.report.answer import sentences
from wattload.report.definitions import DEFINITIONS, FLAGS
from wattload.report.quantities import digits, interval, percent, quantity
from wattload.rundir import ENERGY_SCHEMA, REQUEST_SCHEMA, SPLIT_SCHEMA
from wattload.slo import parse_slo
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
    assert "<script" not in text
    assert "@import" not in text
    assert len(text) < 2_000_000


def test_every_plot_is_well_formed_and_no_id_is_used_twice(plain: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", plain, flags=re.DOTALL)
    assert len(plots) == 8
    ids = []
    for plot in plots:
        root = ET.fromstring(plot)
        assert root.get("viewBox")
        mine = [e.get("id") for e in root.iter() if e.get("id")]
        ids += mine
        used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", plot))
        assert used <= set(mine)
    assert len(ids) == len(set(ids))


def test_says_modelled_beside_every_joule(tmp_path: Path, plain: str) -> None:
    text = page(tmp_path / "r", source="modelled")
    assert "modelled energy" in text
    assert "watts (modelled)" in text
    visible = re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.DOTALL)
    rows = re.findall(r'<td class="number">([^<]*\d [mkMµ]?[JW])</td>', visible)
    assert [row for row in rows if "modelled" not in row and not row.startswith("[")] == _estimates(visible)
    assert (
        "modelled"
        not in page(tmp_path / "n", source="nvml").split("<h2>Configuration")[0].split("</style>")[1]
    )


def _estimates(visible: str) -> list[str]:
    """Values of the table whose head says that none of them is measured."""
    part = visible.split("none of them measured")[1].split("</table>", maxsplit=1)[0]
    return re.findall(r'<td class="number">([^<]*\d [mkMµ]?[JW])</td>', part)


def test_an_invalid_run_says_so_first(tmp_path: Path) -> None:
    text = page(tmp_path / "r", failed=1.0)
    assert "Not a valid run" in text
    assert "no request due in the measurement window completed" in text
    assert "None" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert "nan" not in re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.DOTALL).lower().split()


def test_without_energy_there_is_no_joule(tmp_path: Path) -> None:
    text = page(tmp_path / "r", overrides={"no_energy_reason": "not asked for (--energy none)"})
    assert "was not measured: not asked for" in text
    answer = text.split('aria-label="The answer"')[1].split("</section>")[0]
    assert not re.search(r"\d J", answer)


def test_text_of_the_endpoint_is_escaped(plain: str) -> None:
    assert "<script>alert" not in plain
    assert "&lt;script&gt;alert" in plain


def test_the_answer_is_three_sentences_with_intervals(tmp_path: Path) -> None:
    run = Synthetic(rate=20.0, duration=30.0, warmup=5.0).write(tmp_path / "r")
    said = sentences(finish(run))
    assert len(said) == 3
    assert "95 % interval" in said[0]
    assert "5.00 s of warm-up left out" in said[1]


def test_every_fault_is_explained() -> None:
    assert {str(fault) for fault in Fault} <= FLAGS.keys()


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
    text = (Path(__file__).resolve().parents[2] / "docs" / "run-directory.md").read_text()
    for name, meaning in [*DEFINITIONS.items(), *FLAGS.items()]:
        assert f"| `{name}` | {meaning} |" in text
    for column in [*REQUEST_SCHEMA.names, *ENERGY_SCHEMA.names, *SPLIT_SCHEMA.names]:
        assert f"`{column}`" in text
