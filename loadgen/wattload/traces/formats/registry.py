"""Every trace format, in the order in which they are asked whether a file is theirs."""

from __future__ import annotations

from wattload.traces.formats.azure import Azure
from wattload.traces.formats.bailian import Bailian
from wattload.traces.formats.burstgpt import BurstGpt
from wattload.traces.formats.mooncake import Mooncake
from wattload.traces.formats.otel import OpenTelemetry
from wattload.traces.formats.plain import Plain
from wattload.traces.formats.servegen import ServeGenOffline, ServeGenRequests
from wattload.traces.formats.sharegpt import ShareGpt
from wattload.traces.formats.text_pairs import TextPairs
from wattload.traces.formats.tracelab import TraceLab
from wattload.traces.formats.weka import Weka
from wattload.traces.reading.raw import Format

FORMATS: tuple[Format, ...] = (
    Azure(),
    BurstGpt(),
    Mooncake(),
    Bailian(),
    Weka(),
    TraceLab(),
    OpenTelemetry(),
    Plain(),
    ServeGenRequests(),
    ServeGenOffline(),
    ShareGpt(),
    TextPairs(),
)
