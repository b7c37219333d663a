"""What a metric's or a Grafana unit's name says about its dimension."""

from __future__ import annotations

import re

from checker.dimension import (
    GRAMS,
    JOULE,
    KWH,
    MONEY,
    ONE,
    REQUEST,
    SECOND,
    TOKEN,
    WATT,
    Dimension,
    DimensionError,
    of,
)

# What a histogram counts cannot be read off its name.
_COUNTED = {
    "wattserve_request_energy_joules": REQUEST,
    "wattserve_simulation_late_seconds": of(step=1),
    "wattload_send_lag_seconds": REQUEST,
    "wattload_time_to_first_token_seconds": REQUEST,
    "wattload_time_per_output_token_seconds": REQUEST,
    "wattload_request_duration_seconds": REQUEST,
    "wattload_request_energy_joules": REQUEST,
    "wattload_session_energy_joules": of(session=1),
    "wattload_task_energy_joules": of(task=1),
    "wattload_session_duration_seconds": of(session=1),
    "wattload_task_duration_seconds": of(task=1),
    "vllm:time_to_first_token_seconds": REQUEST,
    "vllm:request_time_per_output_token_seconds": REQUEST,
}
_BY_SUFFIX = (
    (r"_joules(_total)?$", JOULE),
    (r"_watts$", WATT),
    (r"_seconds(_total)?$", SECOND),
    (r"_celsius$", of(celsius=1)),
    (r"_hertz$", of(s=-1)),
    (r"(_ratio|_perc)$", ONE),
    (r"requests(_total)?$", REQUEST),
    (r"sessions_total$", of(session=1)),
    (r"tasks_total$", of(task=1)),
    (r"_tokens_total$", TOKEN),
    (r"_faults_total$", of(fault=1)),
    (r"^vllm:num_requests_(running|waiting)$", REQUEST),
    (r"^(up|ALERTS|wattload_phase)$", ONE),
    (r"_info$", ONE),
)
# Numbers that carry a dimension: the joules of a kilowatt-hour, and what stands for the factors of the user.
JOULES_PER_KWH = 3.6e6
FACTORS = {"pue": 1.000001, "price": 1.000002, "carbon": 1.000003}
NUMBERS = {
    JOULES_PER_KWH: JOULE / KWH,
    FACTORS["pue"]: ONE,
    FACTORS["price"]: MONEY / KWH,
    FACTORS["carbon"]: GRAMS / KWH,
}
COUNTER = re.compile(r"(_total|_count|_bucket|_sum)$")

_UNITS = {
    "joule": JOULE,
    "kwatth": KWH,
    "massg": GRAMS,
    "reqps": REQUEST / SECOND,
    "watt": WATT,
    "s": SECOND,
    "celsius": of(celsius=1),
    "hertz": of(s=-1),
    "percentunit": ONE,
    "bool_yes_no": ONE,
}
_BASES = {
    "J": JOULE,
    "kWh": KWH,
    "s": SECOND,
    "request": REQUEST,
    "requests": REQUEST,
    "session": of(session=1),
    "task": of(task=1),
    "token": TOKEN,
    "tokens": TOKEN,
}


def metric(name: str) -> Dimension:
    """The dimension of a metric's value. Raises DimensionError for a name that follows no convention."""
    histogram = re.fullmatch(r"(.+)_(bucket|count|sum)", name)
    if histogram:
        base, part = histogram.groups()
        if base not in _COUNTED:
            raise DimensionError(
                f"{name}: what the histogram {base} counts is not stated in checker/names.py"
            )
        return metric(base) if part == "sum" else _COUNTED[base]
    for pattern, dimension in _BY_SUFFIX:
        if re.search(pattern, name):
            return dimension
    raise DimensionError(f"{name}: the name does not end in a unit")


def histogram_value(bucket: str) -> Dimension:
    """The dimension of what a histogram observes, from the name of its buckets."""
    return metric(bucket.removesuffix("_bucket"))


def recorded(record: str) -> Dimension:
    """What the middle of level:metric:operation claims: joules_per_token, energy_watts, tokens_per_second."""
    middle = record.split(":")[1]
    if per := re.fullmatch(
        r"(?:.*_)?(joules|tokens|requests)_per_(?:output_)?(request|token|joule|second)", middle
    ):
        words = {"joule": JOULE, "second": SECOND, "request": REQUEST, "token": TOKEN}
        return words[per[1].removesuffix("s")] / words[per[2]]
    return metric("x_" + middle)


def unit_accepts(unit: str, dimension: Dimension) -> bool:
    """Whether a panel in `unit` may show a value of `dimension`; `short` is for counts of one kind."""
    if unit == "short":
        exponents = dict(dimension.exponents)
        one_kind = len(exponents) == 1 and set(exponents.values()) == {1}
        return not exponents or (one_kind and not {"J", "kWh", "s", "g", "celsius"} & set(exponents))
    if ratio := re.fullmatch(r"(?:si:|suffix: )(\w+)/(\w+)", unit):
        above, below = ratio.groups()
        return above in _BASES and below in _BASES and dimension.fits(_BASES[above] / _BASES[below])
    return unit in _UNITS and dimension.fits(_UNITS[unit])
