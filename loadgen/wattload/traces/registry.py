"""Every trace format, in the order in which they are asked whether a file is theirs."""

from __future__ import annotations

from wattload.traces.azure import Azure
from wattload.traces.bailian import Bailian
from wattload.traces.burstgpt import BurstGpt
from wattload.traces.mooncake import Mooncake
from wattload.traces.plain import Plain
from wattload.traces.raw import Format
from wattload.traces.servegen import ServeGenOffline, ServeGenRequests
from wattload.traces.sharegpt import ShareGpt

FORMATS: tuple[Format, ...] = (
    Azure(),
    BurstGpt(),
    Mooncake(),
    Bailian(),
    Plain(),
    ServeGenRequests(),
    ServeGenOffline(),
    ShareGpt(),
)
