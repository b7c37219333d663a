"""Where the energy of a run is asked, as options."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from wattload.energy.discovery import check_finder, is_finder
from wattload.energy.local import is_local
from wattload.options import Options

# What people write for a kind of source, and the address that is needed.
_WORDS = {
    "dcgm": "needs the exporter's address, as dcgm+http://HOST:9400/metrics",
    "prometheus": "needs the server's address, as prometheus+http://HOST:9090",
    "auto": "is the default: the target's own energy is used",
}


def _sources(value: object) -> object:
    """The addresses of one or more sources, given as a list, as one text of a line each."""
    if isinstance(value, str):
        value = value.split("\n")
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        return value
    found = [_source(one.strip()) for one in value]
    if len(found) > 1:
        if "none" in found:
            raise ValueError("none stands alone: give addresses, or none")
        again = next((one for number, one in enumerate(found) if one in found[:number]), None)
        if again is not None:
            raise ValueError(f"{again} is given twice: its joules would count twice")
    return "\n".join(found) or None


def _source(value: str) -> str:
    """The address of a source with the http:// that may be left out."""
    if is_finder(value):
        check_finder(value)
        return value
    if value == "none" or "://" in value or is_local(value):
        return value
    kind, plus, place = value.strip().rpartition("+")
    if place in _WORDS:
        raise ValueError(_WORDS[place])
    return f"{kind}{plus}http://{place}" if place else value


class EnergyOptions(Options):
    """The source of energy."""

    title: ClassVar[str] = "Energy"

    energy: Annotated[str | None, BeforeValidator(_sources)] = Field(
        default=None,
        description="Source of energy: nvml, amdsmi or rapl (this host's own sensors), the URL of a"
        " `wattserve meter`, dcgm+URL, prometheus+URL, or none; ?gpu=, uuid=,"
        " pod=, namespace= and instance= select devices. Repeat it to add up several hosts, or find their"
        " meters with k8s:app=LABEL,namespace=NAME or targets+URL?job=NAME (of a Prometheus). Default:"
        " the target itself.",
        json_schema_extra={"metavar": "URL|nvml|amdsmi|rapl|none", "repeat": True},
    )
    energy_calibration: str | None = Field(
        default=None,
        description="Sensors' gains, a file of `wattserve meter calibrate`, for absolute figures. Default:"
        " those that the meter tells.",
        json_schema_extra={"metavar": "PATH"},
    )
    energy_all_devices: bool = Field(
        default=False,
        description="Count every device of the source of energy, also those that other servers use.",
    )
