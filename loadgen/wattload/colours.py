"""The colours of plots, declared once: report, Locust's tab and Grafana dashboards take them from here.

After Okabe and Ito (2008), "Color Universal Design", which every common colour blindness tells apart; orange,
sky and idle's grey are darker, so that each has a contrast of 3 to 1 (WCAG AA) on light and on dark paper.
"""

from __future__ import annotations

BLUE, ORANGE, GREEN, RED = "#0072b2", "#cc8400", "#009e73", "#d55e00"
SKY, PURPLE, GREY = "#3f93c9", "#cc79a7", "#7a7a7a"
# The colour of text, which is dark on light paper and light on dark paper.
INK = "ink"
# Of runs, arms and what else is drawn side by side, in this order.
SERIES = (GREY, BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
# Of the components of energy, in the order in which they are stacked.
COMPONENTS = {"idle": "#8b929b", "prefill": ORANGE, "decode": BLUE, "unattributed": PURPLE}
QUANTILES = {"p50": GREEN, "p95": ORANGE, "p99": RED}
