"""What `/energy` answers: written and read back alike, what is missing is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wattmeter.faults import Fault
from wattmeter.schema import (
    UNKNOWN,
    DeviceEnergy,
    DeviceSeries,
    RequestEnergy,
    SchemaError,
    WindowEnergy,
    requests_from_json,
    series_from_json,
)

DEVICE = DeviceEnergy("0", "H200", "nvml", 300.0, 1.5, 1.0, frozenset({Fault.STALE_SENSOR}))
WINDOW = WindowEnergy(
    10.0, 11.0, True, 300.0, 1.5, 80.0, 20.0, 190.0, 10.0, (DEVICE,), {"a": 3.0},
    frozenset({Fault.MODELLED}), {"simulation": {"steps": 4}},
)  # fmt: skip
REQUEST = RequestEnergy(
    "r", "settled", 3.0, 1.0, 2.0, 0.1, 5, 7, "nvml", frozenset({Fault.GPU_LOST}), "a", True, "why"
)


def wire(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def test_each_class_survives_the_wire() -> None:
    assert WindowEnergy.from_json(wire(WINDOW.to_json(groups=True))) == WINDOW
    assert WindowEnergy.from_json(wire(WINDOW.to_json())).groups == {}
    assert DeviceEnergy.from_json(wire(DEVICE.to_json())) == DEVICE
    assert RequestEnergy.from_json(wire(REQUEST.to_json())) == REQUEST
    unknown = RequestEnergy("x", UNKNOWN)
    assert unknown.to_json() == {"id": "x", "status": "unknown"}
    assert requests_from_json({"requests": [wire(unknown.to_json())]}) == [unknown]
    series = DeviceSeries("0", "G", "nvml", np.array([1.0, 2.0]), np.array([0.0, 5.0]), np.array([np.nan, 5]))
    (read,) = series_from_json(wire({"devices": [series.to_json()]}))
    assert read.id == "0"
    for mine, theirs in ((series.joules, read.joules), (series.watts, read.watts)):
        np.testing.assert_array_equal(mine, theirs)


def test_what_a_newer_server_adds_is_tolerated() -> None:
    content = wire(WINDOW.to_json()) | {"flags": ["gpu_lost", "of_tomorrow"], "new": 1}
    content["devices"][0]["new"] = 1
    window = WindowEnergy.from_json(content)
    assert window.all_flags == {Fault.GPU_LOST, "of_tomorrow", Fault.STALE_SENSOR}
    assert window.more == {"simulation": {"steps": 4}, "new": 1}
    assert window.to_json()["new"] == 1
    # A meter that does not divide answers null for what it does not know.
    assert (
        WindowEnergy.from_json(content | {"attributed_joules": None, "groups": None}).prefill_joules is None
    )


@pytest.mark.parametrize("name", ["start", "end", "complete", "total_joules", "devices"])
def test_a_missing_field_of_a_window_is_named(name: str) -> None:
    content = wire(WINDOW.to_json())
    del content[name]
    with pytest.raises(SchemaError, match=f"has no field '{name}'"):
        WindowEnergy.from_json(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_joules": "12"}, "'12' in field 'total_joules'"),
        ({"total_joules": True}, "'True' in field 'total_joules'"),
        ({"flags": "modelled"}, "'modelled' in field 'flags'"),
        ({"devices": [7]}, "the energy of a device is not a JSON object"),
        ({"complete": 1}, "'1' in field 'complete'"),
    ],
)
def test_a_field_of_another_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        WindowEnergy.from_json(wire(WINDOW.to_json()) | change)


@pytest.mark.parametrize("answer", [None, [], {}, {"requests": {}}, {"requests": [{"id": "a"}]}])
def test_an_answer_that_is_none_is_one_sentence(answer: Any) -> None:
    with pytest.raises(SchemaError, match="the energy of"):
        requests_from_json(answer)


def test_columns_of_a_series_have_one_length() -> None:
    device = {"id": "g", "unix_seconds": [1, 2], "joules": [0]}
    with pytest.raises(SchemaError, match="device g has columns of different lengths"):
        series_from_json({"devices": [device]})
    with pytest.raises(SchemaError, match="in field 'joules'"):
        series_from_json({"devices": [device | {"joules": ["x", 1]}]})


def test_energy_in_a_response_is_null_with_a_reason() -> None:
    assert RequestEnergy("r", "provisional", reason="a GPU was lost").to_usage() == {
        "energy": None,
        "energy_reason": "a GPU was lost",
    }
    assert set(REQUEST.to_usage()["energy"]) == {
        "joules", "prefill_joules", "decode_joules", "uncertainty_joules", "status", "source",
    }  # fmt: skip
