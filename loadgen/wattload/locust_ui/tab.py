"""The Energy tab of Locust's web UI: its table, its charts (one script), its downloads, and the metrics."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.csv
from flask import Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from wattload.colours import COMPONENTS
from wattload.errors import InputError
from wattload.locust_ui.locust_test import LocustTest
from wattload.rundir.numbers import number_of

_KEY = "energy"
_COLUMNS = {"name": "Quantity", "value": "Value", "unit": "Unit"}


def add_tab(web_ui: Any, test: LocustTest) -> None:
    """Adds tab, table, routes and the script to a web UI."""
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Energy", "key": _KEY}],
        "extended_tables": [
            {"key": _KEY, "structure": [{"key": k, "title": title} for k, title in _COLUMNS.items()]}
        ],
        "extended_csv_files": [
            {"href": "/wattload/requests.csv", "title": "Download requests with energy (CSV)"}
        ],
    }
    app = web_ui.app
    script = resources.files("wattload.locust_ui").joinpath("energy_tab.js").read_text("utf-8")

    def energy_script() -> Response:
        return Response(script, mimetype="text/javascript")

    def energy_data() -> Response:
        shown = test.live.as_dict() if test.live is not None else {"points": [], "split": {}}
        return jsonify(shown | {"colours": COMPONENTS})

    for path, view in (
        ("/wattload/energy_tab.js", energy_script),
        ("/wattload/energy.json", energy_data),
        ("/wattload/requests.csv", lambda: _csv(test)),
        ("/metrics", lambda: _metrics(test)),
    ):
        app.add_url_rule(path, f"wattload{path}".replace(".", "_"), view)
    app.after_request(lambda response: _extended(response, test))


def _metrics(test: LocustTest) -> Response:
    if test.session is None:
        return Response("# no run yet\n", mimetype="text/plain")
    given = test.session.metrics
    if given.refresh is not None:
        given.refresh()
    return Response(generate_latest(given.registry), content_type=CONTENT_TYPE_LATEST)


def _extended(response: Response, test: LocustTest) -> Response:
    """Locust's page with our script, and its statistics with our table."""
    if request.path == "/" and response.mimetype == "text/html":
        page = response.get_data(as_text=True)
        tag = '<script src="./wattload/energy_tab.js" defer></script></body>'
        response.set_data(page.replace("</body>", tag))
    elif request.path == "/stats/requests" and response.is_json:
        stats = response.get_json()
        stats["extended_stats"] = [{"key": _KEY, "data": table(test)}]
        response.set_data(json.dumps(stats))
    return response


def table(test: LocustTest) -> list[dict[str, str]]:
    """Rows of the tab's table."""
    live = test.live
    if live is None or not live.points:
        return []
    last = live.points[-1]
    modelled = " (simulated)" if live.source == "modelled" else ""
    rows = [
        *_measured(test, modelled),
        ("Power", last["watts"], f"W{modelled}"),
        ("Attributed energy per request, recent", last["joules_per_request"], f"J{modelled}"),
        ("Attributed energy per output token, recent", last["joules_per_output_token"], f"J{modelled}"),
        *(
            (f"{name.capitalize()} since the start", live.split.get(f"{name}_joules"), f"J{modelled}")
            for name in ("total", "prefill", "decode", "idle", "unattributed")
        ),
        ("Requests completed", last["completed"], ""),
        ("Requests failed", last["failed"], ""),
    ]
    return [
        {"name": name, "value": _shown(value), "unit": unit}
        for name, value, unit in rows
        if value is not None
    ]


def _shown(value: float) -> str:
    """Four digits, and nothing of what rounding leaves of a zero."""
    return f"{value:.4g}" if abs(value) >= 1e-4 else "0"


_MEASURED = (
    "energy.per_request_joules.mean",
    "energy.per_request_joules.attributed_mean",
    "energy.per_output_token_joules",
    "energy.total_joules",
    "energy.mean_watts",
)


def _measured(test: LocustTest, modelled: str) -> list[tuple[str, float | None, str]]:
    """Of a finished run, the figures of its measurement window: those of run.json and of the report."""
    run = test.result
    if run is None or run.energy.per_request_joules is None:
        return []
    numbers = [number_of(path) for path in _MEASURED]
    return [
        (f"In the window: {each.title_in(run)}", each.of(run), f"{each.unit}{modelled}") for each in numbers
    ]


def _csv(test: LocustTest) -> Response:
    """requests.parquet of the last finished run as CSV, without the gaps between tokens."""
    if test.directory is None or test.running:
        return Response("the run is not over yet\n", status=409, mimetype="text/plain")
    try:
        rows = test.directory.read_requests()
    except InputError as error:
        return Response(f"{error}\n", status=409, mimetype="text/plain")
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(rows, sink)
    headers = {"Content-Disposition": f"attachment; filename={test.directory.path.name}-requests.csv"}
    return Response(sink.getvalue().to_pybytes(), mimetype="text/csv", headers=headers)
