"""From joules to kilowatt-hours, cost and carbon:

only with the figures the user gave, and with the boundary named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wattload.errors import BadInput
from wattload.runjson import EnergyInfo

_JOULES_PER_KWH = 3.6e6
_FIELDS = ("pue", "price_per_kwh", "carbon_grams_per_kwh")

BOUNDARIES = {
    "rapl": "CPU package and memory as RAPL counts them: no GPU, fans, power supply, network, cooling",
}
_GPU_BOUNDARY = "GPU boards only: no host CPU, memory, storage, fans, power supply, network, cooling"


def footprint(given: Mapping[str, Any], energy: EnergyInfo) -> dict[str, Any] | None:
    """The run.json section, or None where there is no energy to speak of.

    `given` may hold `pue` (facility energy over metered energy), `price_per_kwh` (with `currency`) and
    `carbon_grams_per_kwh`; what is not given is null, never assumed. Raises BadInput for a figure that is
    none.
    """
    per = energy.per_request_joules
    if per is None or per.mean is None:
        return None
    for name in _FIELDS:
        value = given.get(name)
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
        ):
            raise BadInput(f"footprint {name} = {value!r}: must be a number that is not negative")
    pue, price, carbon = (given.get(name) for name in _FIELDS)
    if pue is not None and pue < 1:
        raise BadInput(
            f"footprint pue = {pue!r}: a facility uses at least what its machines use, so at least 1"
        )
    metered = per.mean * 1000 / _JOULES_PER_KWH
    facility = metered * pue if pue is not None else None
    billed = facility if facility is not None else metered
    return {
        "boundary": BOUNDARIES.get(energy.source or "", _GPU_BOUNDARY),
        "modelled": "modelled" in energy.flags,
        "pue": pue,
        "energy_kwh_per_1000_requests": metered,
        "facility_kwh_per_1000_requests": facility,
        "cost": {
            "per_1000_requests": billed * price,
            "currency": given.get("currency"),
            "price_per_kwh": price,
        }
        if price is not None
        else None,
        "carbon_grams": billed * carbon if carbon is not None else None,
        "carbon_grams_per_kwh": carbon,
        "not_given": [name for name in _FIELDS if given.get(name) is None],
    }
