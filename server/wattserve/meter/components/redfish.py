"""Node power from a BMC by Redfish: a Power or EnvironmentMetrics resource, or a Sensor."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from wattmeter.faults import Fault
from wattserve.meter.components.gauge import SensorError, Value

# For the whole answer, which a BMC may send a byte a second; and its most bytes.
TIMEOUT_SECONDS = 5.0
MOST_BYTES = 1 << 20
# USER:PASSWORD of the BMC: a command line is seen by everybody on the host.
LOGIN_VARIABLE = "WATTSERVE_REDFISH_LOGIN"
# 1: the BMC's certificate is its own, and is not verified.
INSECURE_VARIABLE = "WATTSERVE_REDFISH_INSECURE"


def value_of(resource: object) -> Value:
    """The joules or watts of a resource. Raises SensorError where it has neither.

    EnvironmentMetrics has EnergyJoules or EnergykWh beside PowerWatts: a counter is better than a gauge.
    """
    if not isinstance(resource, dict):
        raise SensorError("the answer is not a Redfish resource")
    joules = _number(resource.get("EnergyJoules"))
    if joules is None:
        hours = _number(resource.get("EnergykWh"))
        joules = None if hours is None else hours * 3.6e6
    watts = _number(resource.get("PowerWatts"))
    controls = resource.get("PowerControl")
    if watts is None and isinstance(controls, list):
        shown = [_number(c.get("PowerConsumedWatts")) for c in controls if isinstance(c, dict)]
        known = [value for value in shown if value is not None]
        if len(known) > 1:
            raise SensorError(f"it has {len(known)} PowerControl, which may measure the same power")
        watts = known[0] if known else None
    if watts is None and resource.get("ReadingType") == "Power" and resource.get("ReadingUnits") == "W":
        watts = _number(resource.get("Reading"))
    if joules:
        return Value(joules=joules)
    if watts is None:
        raise SensorError("it has no PowerConsumedWatts, PowerWatts or EnergyJoules", Fault.NOT_SUPPORTED)
    return Value(watts=watts)


def reader(url: str, environment: Mapping[str, str] = os.environ) -> Callable[[], Value]:
    """Asks the resource at `url`. Raises SensorError where that is no address."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise SensorError(
            "needs the address of a resource, as redfish:https://BMC/redfish/v1/Chassis/1/EnvironmentMetrics"
        )
    if address.userinfo:
        raise SensorError(f"a password in an address is not sent: put USER:PASSWORD into {LOGIN_VARIABLE}")
    user, _, password = environment.get(LOGIN_VARIABLE, "").partition(":")
    client = httpx.Client(
        auth=(user, password) if user else None,
        verify=environment.get(INSECURE_VARIABLE) != "1",
        timeout=TIMEOUT_SECONDS,
        trust_env=False,
    )

    def read() -> Value:
        try:
            status, body = _asked(client, url)
        except httpx.TimeoutException:
            raise SensorError(f"{url} took over {TIMEOUT_SECONDS:g} s", Fault.TIMEOUT) from None
        except httpx.HTTPError as error:
            raise SensorError(f"{url}: {error}") from None
        if status in (401, 403):
            raise SensorError(f"{url} wants a login: set {LOGIN_VARIABLE}", Fault.NO_PERMISSION)
        if status != 200:
            raise SensorError(f"{url} answered {status}", Fault.NOT_SUPPORTED)
        try:
            return value_of(json.loads(body))
        except (ValueError, RecursionError):
            raise SensorError(f"{url} answered something else than JSON") from None

    return read


def _asked(client: httpx.Client, url: str) -> tuple[int, bytes]:
    """(status, body) of an answer, bounded as a whole. Raises httpx.HTTPError."""
    until = time.monotonic() + TIMEOUT_SECONDS
    body = bytearray()
    with client.stream("GET", url) as answer:
        for part in answer.iter_bytes():
            body += part
            if time.monotonic() > until:
                raise httpx.ReadTimeout("no whole answer in time")
            if len(body) > MOST_BYTES:
                raise httpx.DecodingError(f"an answer of more than {MOST_BYTES} bytes")
    return answer.status_code, bytes(body)


def _number(value: Any) -> float | None:
    """A number, or the Reading of a sensor excerpt. BMCs write null for what they do not know."""
    if isinstance(value, dict):
        value = value.get("Reading")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
