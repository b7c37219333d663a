"""A test made from Python ends as the command does: in a run, or in an error with its sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

import wattload
from sim_server import simulating


def test_a_wrong_setting_is_refused_before_a_process_is_started(tmp_path: Path) -> None:
    with pytest.raises(wattload.InputError, match="duration"):
        wattload.run(url="http://127.0.0.1:1", trace="conv", duration="soon", out=tmp_path / "r")
    with pytest.raises(wattload.InputError, match="colour"):
        wattload.run(url="http://127.0.0.1:1", trace="conv", colour="red", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_an_endpoint_that_is_not_there_is_the_childs_sentence(tmp_path: Path) -> None:
    with pytest.raises(wattload.InputError, match=r"127\.0\.0\.1:1") as caught:
        wattload.run(url="http://127.0.0.1:1", trace="conv", rate=1, duration="2s", out=tmp_path / "r")
    assert "\n" not in str(caught.value)


def test_an_assertion_that_fails_is_raised_and_settings_reach_the_run(tmp_path: Path) -> None:
    with simulating() as (url, _), pytest.raises(wattload.RunInvalid, match=r"requests\.completed < 1"):
        wattload.run(
            url=url,
            trace="conv",
            rate=4,
            arrivals="constant",
            duration=3,
            warmup=0.5,
            body={"temperature": 1},
            header=["X-Colour: blue"],
            energy="none",
            report=False,
            assertions=["requests.completed < 1"],
            out=tmp_path / "r",
        )
    made = wattload.load_run(tmp_path / "r")
    assert made.result.config["body"] == '{"temperature": 1}'
    assert made.absent["energy"].startswith("not asked for")
    assert not (tmp_path / "r" / "report.html").exists()
    assert not list(tmp_path.glob("*.toml"))


def test_a_load_that_is_over_before_its_time_is_given_back_with_what_there_is(tmp_path: Path) -> None:
    """As a study ends the load of a server that died."""
    from wattload.launch import run_settings

    with simulating() as (url, _):
        made = run_settings(
            {
                "url": url,
                "trace": "conv",
                "rate": 20,
                "arrivals": "constant",
                "duration": 600,
                "energy": "none",
                "report": False,
                "progress": "none",
                "out": str(tmp_path / "r"),
            },
            over=(tmp_path / "r" / "capture.json").exists,
        )
    assert not made.valid
    assert "interrupted" in made.reasons
    assert made.result.requests.planned == 12_000
    assert made.result.requests.sent < 12_000
