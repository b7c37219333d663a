"""Boards that are lost, bindings that are old, and names that are not text."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.nvml import NvmlMeter


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


def binding(*, lost: int | None = None, without: tuple[str, ...] = (), name: Any = "H100") -> Any:
    """A module `pynvml` of three boards of 300 J; `lost` does not respond, `without` are missing."""

    def handle(index: int) -> int:
        if index == lost:
            raise NVMLError(15)
        return index

    def refuse(*_: object) -> None:
        raise NVMLError(3)

    module = ModuleType("pynvml")
    functions: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetUUID": lambda index: f"GPU-{index}aaa",
        "nvmlDeviceGetName": lambda _: name,
        "nvmlDeviceGetVirtualizationMode": lambda _: 0,
        "nvmlDeviceGetMigMode": refuse,
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: 300_000,
        "nvmlDeviceGetPowerUsage": lambda _: 90_000,
        "nvmlDeviceGetFieldValues": refuse,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
    }
    for key, value in functions.items():
        if key not in without:
            setattr(module, key, value)
    return module


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_board_does_not_stop_the_others(lost: int) -> None:
    others = [i for i in range(3) if i != lost]
    meter = NvmlMeter(others, nvml=binding(lost=lost), environment={})
    assert [device.id for device in meter.devices] == [f"GPU-{i}aaa" for i in others]
    visible = NvmlMeter(nvml=binding(lost=lost), environment={"CUDA_VISIBLE_DEVICES": f"GPU-{others[0]}"})
    assert [device.id for device in visible.devices] == [f"GPU-{others[0]}aaa"]


@pytest.mark.parametrize("gpus", [None, [1]])
def test_a_lost_board_that_is_asked_for_is_named_with_those_that_respond(gpus: list[int] | None) -> None:
    with pytest.raises(MeterUnavailableError, match=r"GPU 1 does not respond .*that do: 0, 2") as refused:
        NvmlMeter(gpus, nvml=binding(lost=1), environment={})
    assert refused.value.fault is Fault.GPU_LOST


def test_what_an_old_binding_lacks_is_done_without() -> None:
    odd = binding(without=("nvmlDeviceGetFieldValues", "nvmlDeviceGetVirtualizationMode"))
    meter = NvmlMeter([0], nvml=odd, environment={})
    assert meter.read_energy("GPU-0aaa").energy_joules == 300.0
    assert meter.read_power("GPU-0aaa").power_watts == 90.0
    assert meter.read_state("GPU-0aaa").temperature_celsius is None


@pytest.mark.parametrize("missing", ["nvmlDeviceGetTotalEnergyConsumption", "nvmlInit", "NVMLError"])
def test_a_binding_without_what_is_needed_is_one_sentence(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", binding(without=(missing,)))
    with pytest.raises(MeterUnavailableError, match=f"has no {missing}: pip install --upgrade nvidia-ml-py"):
        NvmlMeter([0], environment={})


def test_a_name_that_is_not_utf_8_is_replaced() -> None:
    meter = NvmlMeter([0], nvml=binding(name=b"H\xff100"), environment={})
    assert meter.devices[0].name == "H\N{REPLACEMENT CHARACTER}100"
