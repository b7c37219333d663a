"""Grafana's names of the units that the panels use. `si:` lets Grafana choose the prefix (mJ, kJ); `suffix:`
shows the number as it is.
"""

from __future__ import annotations

from typing import Final

JOULES: Final = "joule"
KILOWATT_HOURS: Final = "kwatth"
WATTS: Final = "watt"
SECONDS: Final = "s"
CELSIUS: Final = "celsius"
HERTZ: Final = "hertz"
GRAMS: Final = "massg"
RATIO: Final = "percentunit"
COUNT: Final = "short"
JOULES_PER_REQUEST: Final = "si:J/request"
JOULES_PER_SESSION: Final = "si:J/session"
JOULES_PER_TASK: Final = "si:J/task"
JOULES_PER_TOKEN: Final = "si:J/token"
TOKENS_PER_KWH: Final = "suffix: tokens/kWh"
REQUESTS_PER_KWH: Final = "suffix: requests/kWh"
REQUESTS_PER_SECOND: Final = "reqps"
TOKENS_PER_SECOND: Final = "suffix: tokens/s"
YES_NO: Final = "bool_yes_no"

# Joules in a kilowatt-hour, as PromQL writes it.
JOULES_PER_KWH: Final = "3.6e6"
