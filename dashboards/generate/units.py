"""Grafana's names of the units that the panels use. `si:` lets Grafana choose the prefix (mJ, kJ)."""

from __future__ import annotations

from typing import Final

JOULES: Final = "joule"
WATTS: Final = "watt"
SECONDS: Final = "s"
CELSIUS: Final = "celsius"
HERTZ: Final = "hertz"
RATIO: Final = "percentunit"
COUNT: Final = "short"
JOULES_PER_REQUEST: Final = "si:J/request"
JOULES_PER_TOKEN: Final = "si:J/token"
TOKENS_PER_JOULE: Final = "si:token/J"
REQUESTS_PER_JOULE: Final = "si:request/J"
REQUESTS_PER_SECOND: Final = "si:request/s"
TOKENS_PER_SECOND: Final = "si:token/s"
FAULTS_PER_SECOND: Final = "si:fault/s"
YES_NO: Final = "bool_yes_no"
