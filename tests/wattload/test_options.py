"""Options of the stages: parsed once, told as they were written, distributed from one list of settings."""

from __future__ import annotations

from typing import Any

import pytest

from wattload.analysis.options import AnalysisOptions
from wattload.arrivals import parse as parse_arrivals
from wattload.client.endpoint import EndpointOptions, RequestOptions
from wattload.config import SETTINGS, STAGES, RunConfig, load
from wattload.errors import InputError
from wattload.load.options import LoadOptions
from wattload.schedule.options import ScheduleOptions

BASE = {"url": "http://h:1", "trace": "conv"}
TEXTS: dict[str, Any] = {
    "slo": "TTFT=1m, tpot=500us",
    "until": "ci95 < 2%",
    "body": '{"temperature":  1}',
    "arrivals": "gamma:cv=2.0",
    "column_map": "prompt_tokens=in,output_tokens=out",
    "tenant": ["a:trace=code,rate=2"],
    "assertions": ["energy.total_joules < 1.5kJ"],
}


def test_a_value_is_parsed_once_and_told_as_it_was_written() -> None:
    config = load({**BASE, **TEXTS, "duration": "1m", "drain": "500ms"})
    assert config.analysis.slo is not None
    assert (config.analysis.slo.ttft_seconds, config.analysis.slo.tpot_seconds) == (60, 500e-6)
    assert config.load.until is not None
    assert config.load.until.fraction == 0.02
    assert config.requests.body == {"temperature": 1}
    assert config.schedule.arrivals == parse_arrivals("gamma:cv=2")
    assert config.reading.column_map == {"prompt_tokens": "in", "output_tokens": "out"}
    assert config.workload.tenant[0].trace == "code"
    assert config.analysis.assertions[0].value == 1500
    assert (config.schedule.duration_seconds, config.load.drain_seconds) == (60, 0.5)
    saved = config.saved()
    assert {name: saved[name] for name in TEXTS} == TEXTS
    assert (saved["duration"], saved["drain"]) == (60, 0.5)
    assert saved["arrivals"] == "gamma:cv=2.0"
    assert RunConfig.of({**saved}).saved() == saved


def test_every_setting_belongs_to_one_stage() -> None:
    names = [setting.name for stage in STAGES.values() for setting in stage.settings()]
    assert sorted(names) == sorted(SETTINGS)
    assert all(setting.help.endswith((".", "...")) for setting in SETTINGS.values())
    assert set(load(BASE).saved()) == set(SETTINGS)


def test_a_default_is_told_with_its_unit() -> None:
    shown = {name: setting.default for name, setting in SETTINGS.items()}
    assert (shown["drain"], shown["trace"], shown["seed"], shown["slo"]) == ("300s", "conv", "0", None)


def test_python_may_give_what_text_is_parsed_into() -> None:
    process = parse_arrivals("constant")
    options = ScheduleOptions(arrivals=process, duration=2)
    assert options.arrivals is process
    assert options.saved()["arrivals"] == "constant"
    assert RequestOptions(body={"top_k": 1}).body == {"top_k": 1}


@pytest.mark.parametrize(
    ("make", "given", "field", "said"),
    [
        (ScheduleOptions, {"arrivals": "sometimes"}, "arrivals", "known processes are"),
        (ScheduleOptions, {"arrivals": 5}, "arrivals", "is not an arrival process"),
        (ScheduleOptions, {"rat": 5}, "rat", "is not a setting"),
        (ScheduleOptions, {"duration": "5x"}, "duration", "not a valid duration"),
        (LoadOptions, {"processes": 2, "master": True}, "processes", "workers are started with"),
        (LoadOptions, {"drain_seconds": -1}, "drain", "must be greater than 0"),
        (AnalysisOptions, {"slo": "ttft=5"}, "slo", "is not like"),
        (EndpointOptions, {}, "url", "is missing"),
        (lambda **given: RunConfig.of(given), {**BASE, "colour": 1}, "colour", "is not a setting"),
    ],
)
def test_a_wrong_value_is_an_input_error_with_its_field(
    make: Any, given: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make(**given)
    assert caught.value.field == field


def test_a_changed_configuration_keeps_the_rest() -> None:
    config = load({**BASE, **TEXTS})
    other = config.changed(rate="3")
    assert {**config.saved(), "rate": "3"} == other.saved()
    assert other.load.until is not config.load.until
