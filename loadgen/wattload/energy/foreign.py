"""What a DCGM exporter and a Prometheus have in common as sources of energy: devices and counters only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx

from wattload.client.control import TlsMaker, control_client
from wattload.energy.devices import Counted, MeteredDevice, Selection, choose
from wattmeter.schema import RequestEnergy, WindowEnergy


@dataclass(slots=True)
class ForeignSource:
    """A source of devices' counters. It divides nothing among requests and has nothing to settle.

    `counted` is None until `settle_devices` has decided which devices belong to the endpoint.
    """

    has_split: ClassVar[bool] = False
    lookback_seconds: ClassVar[float] = 2.0
    url: str
    selection: Selection = field(default_factory=Selection)
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: TlsMaker = None
    counted: Counted | None = None
    _http: httpx.Client | None = None

    def devices(self) -> list[MeteredDevice]:
        """Every device of the source. Raises ValueError or httpx.HTTPError where it cannot say."""
        raise NotImplementedError

    @property
    def selects_itself(self) -> bool:
        """Whether the address names devices in another way than by the selection."""
        return False

    def settle_devices(self, shown: frozenset[str], *, all_devices: bool) -> Counted:
        """Decides which devices are counted. Raises InputError where that is not known."""
        self.counted = choose(
            self.devices(),
            self.selection,
            shown=shown,
            all_devices=all_devices,
            by_query=self.selects_itself,
            where=self.url,
        )
        return self.counted

    def counts(self, name: str) -> bool:
        return self.counted is None or any(device.id == name for device in self.counted.devices)

    def info(self) -> dict[str, Any]:
        """The devices in the form of GET /energy."""
        devices = self.counted.devices if self.counted is not None else self.devices()
        return {"devices": [device.as_json() for device in devices], "engine": None}

    def settle(self, ids: Sequence[str], *, timeout_seconds: float = 15.0) -> dict[str, RequestEnergy]:
        """No request is known to a device's counter."""
        return {}

    def window(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """Raises ValueError: the window's energy comes from the series."""
        raise ValueError("this source of energy has a series only")

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def client(self) -> httpx.Client:
        if self._http is None:
            self._http = control_client(self.url, headers=self.headers, tls=self.tls)
        return self._http
