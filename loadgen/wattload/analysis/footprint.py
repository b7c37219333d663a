"""From joules to kilowatt-hours, cost and carbon, with the figures that the user gave and no others."""

from __future__ import annotations

from wattload.analysis.options import FootprintOptions
from wattload.rundir.result import CostInfo, EnergyInfo, FootprintInfo

_JOULES_PER_KWH = 3.6e6
_FIELDS = ("pue", "price_per_kwh", "carbon_grams_per_kwh")

BOUNDARIES = {
    "rapl": "CPU package and memory as RAPL counts them: no GPU, fans, power supply, network, cooling",
}
_GPU_BOUNDARY = "GPU boards only: no host CPU, memory, storage, fans, power supply, network, cooling"


def footprint(options: FootprintOptions, energy: EnergyInfo) -> FootprintInfo | None:
    """The run.json section, or None where there is no energy to speak of.

    What `options` do not give is null, never assumed.
    """
    per = energy.per_request_joules
    if per is None or per.mean is None:
        return None
    pue, price, carbon = options.pue, options.price_per_kwh, options.carbon_grams_per_kwh
    metered = per.mean * 1000 / _JOULES_PER_KWH
    facility = metered * pue if pue is not None else None
    billed = facility if facility is not None else metered
    return FootprintInfo(
        boundary=BOUNDARIES.get(energy.source or "", _GPU_BOUNDARY),
        modelled=energy.simulated,
        pue=pue,
        energy_kwh_per_1000_requests=metered,
        facility_kwh_per_1000_requests=facility,
        cost=CostInfo(per_1000_requests=billed * price, currency=options.currency, price_per_kwh=price)
        if price is not None
        else None,
        carbon_grams=billed * carbon if carbon is not None else None,
        carbon_grams_per_kwh=carbon,
        not_given=[name for name in _FIELDS if getattr(options, name) is None],
    )
