"""benchmark_report.py RUN OUT: writes a run of wattload as a report of llm-d-benchmark, schema 0.2.1.

The report has a place for watts, `power_consumption` of each component: here it is filled, a component a
GPU, with the run's own series over its measurement window. Joules, their uncertainty and their flags have no
place in the schema and go beside the components, as `energy`. JSON is written, which YAML readers read. A run
that is not valid says so in its description and keywords; modelled joules say so too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import wattload
from wattload.errors import InputError
from wattload.rundir.result import Distribution
from wattload.rundir.run import Run

VERSION = "0.2.1"
QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def statistics(values: np.ndarray[Any, Any], units: str) -> dict[str, Any] | None:
    """Mean, spread and quantiles, or None of no values."""
    if not len(values):
        return None
    quantiles = {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES}
    extremes = {"min": float(values.min()), "max": float(values.max())}
    return {
        "units": units,
        "mean": float(values.mean()),
        "stddev": float(values.std()),
        **extremes,
        **quantiles,
    }


def distribution(numbers: Distribution | None, units: str) -> dict[str, Any] | None:
    if numbers is None:
        return None
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    return {"units": units, **{name: getattr(numbers, name) for name in names}}


def rate(value: float | None, units: str) -> dict[str, Any] | None:
    return None if value is None else {"units": units, "mean": value}


def length(counts: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if counts is None else {"distribution": "other", "value": counts["mean"]}


def iso(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat()


def power(run: Run) -> list[dict[str, Any]]:
    """A component a device: its power over the window, from the meter's series."""
    series = run.data.series
    if series is None:
        return []
    start = run.window.start_unix + run.data.offset_seconds
    end = run.window.end_unix + run.data.offset_seconds
    devices = np.array(series.column("device").to_pylist())
    times = series.column("unix_seconds").to_numpy()
    watts = series.column("watts").to_numpy(zero_copy_only=False).astype(float)
    components = []
    for device in sorted(set(devices)):
        chosen = (devices == device) & (times >= start) & (times < end) & np.isfinite(watts)
        pairs = zip(times[chosen].tolist(), watts[chosen].tolist(), strict=True)
        points = [{"ts": iso(second), "value": value} for second, value in pairs]
        if points:
            components.append(
                {
                    "component_label": str(device),
                    "aggregate": {"power_consumption": statistics(watts[chosen], "Watts")},
                    "time_series": {"power_consumption": {"units": "Watts", "series": points}},
                    "raw_data_path": str(run.path / "energy.parquet"),
                }
            )
    return components


def tokens(run: Run, column: str) -> np.ndarray[Any, Any]:
    """The endpoint's counts of the completed requests of the window, where it gave them."""
    counts = run.requests.column(column).to_numpy(zero_copy_only=False).astype(float)
    inside = run.requests.column("in_window").to_numpy(zero_copy_only=False).astype(bool)
    return np.asarray(counts[inside & np.isfinite(counts)])


def report(run: Run) -> dict[str, Any]:
    """The report of one run, without what is not known."""
    result = run.result
    chosen = run.data.inside
    completed = run.data.done
    modelled = "modelled" in run.energy.flags or run.energy.source == "modelled"
    said = ["modelled energy"] if modelled else []
    said += [] if run.valid else ["invalid"]
    description = "; ".join([*(f"invalid: {reason}" for reason in run.reasons), *said[:1]]) or None
    in_window = int(np.count_nonzero(chosen))
    workload = result.workload
    capture = run.data.capture.model_dump(mode="json")
    lengths = statistics(tokens(run, "prompt_tokens"), "count")
    outputs = statistics(tokens(run, "output_tokens"), "count")
    content = {
        "version": VERSION,
        "run": {
            "uid": hashlib.sha256(f"{run.name}{result.started_unix}".encode()).hexdigest()[:32],
            "eid": os.environ.get("LLMDBENCH_RUN_EXPERIMENT_ID"),
            "time": {
                "start": iso(run.window.start_unix),
                "end": iso(run.window.end_unix),
                "duration": f"PT{run.window.end_unix - run.window.start_unix:.3f}S",
            },
            "description": description,
            "keywords": said or None,
        },
        "scenario": {
            "load": {
                "metadata": {"cfg_id": workload.schedule_sha256, "description": workload.trace},
                "standardized": {
                    "tool": "wattload",
                    "tool_version": wattload.__version__,
                    "source": "sampled",
                    "input_seq_len": length(lengths),
                    "output_seq_len": length(outputs),
                    "rate_qps": run.load.planned_rps,
                },
                "native": {"config": capture.get("config")},
            }
        },
        "results": {
            "request_performance": {
                "aggregate": {
                    "requests": {
                        "total": in_window,
                        "failures": in_window - int(np.count_nonzero(completed)),
                        "input_length": lengths,
                        "output_length": outputs,
                    },
                    "latency": {
                        "time_to_first_token": distribution(run.latency.ttft_seconds, "s"),
                        "time_per_output_token": distribution(run.latency.tpot_seconds, "s/token"),
                        "inter_token_latency": distribution(run.latency.itl_seconds, "s/token"),
                        "request_latency": distribution(run.latency.e2e_seconds, "s"),
                    },
                    "throughput": {
                        "input_token_rate": rate(run.tokens.prompt_per_second, "tokens/s"),
                        "output_token_rate": rate(run.tokens.output_per_second, "tokens/s"),
                        "request_rate": rate(run.load.achieved_rps, "queries/s"),
                    },
                }
            },
            "observability": {
                "components": power(run),
                "energy": run.energy.model_dump(mode="json", exclude_none=True),
            },
        },
    }
    kept: dict[str, Any] = without_null(content)
    return kept


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run directory of wattload")
    parser.add_argument("out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    try:
        run = wattload.load_run(arguments.run)
        arguments.out.write_text(json.dumps(report(run), indent=1) + "\n", encoding="utf-8")
    except (InputError, OSError) as error:
        print(f"benchmark_report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
