"""Every trace format, in the order in which they are asked whether a file is theirs."""

from __future__ import annotations

from wattload.traces.azure import Azure
from wattload.traces.raw import Format

FORMATS: tuple[Format, ...] = (Azure(),)
