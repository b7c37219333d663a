"""The window's figures of the server's own metrics, and what is to be said of how they were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattload.rundir.result import ServerInfo
from wattload.rundir.run import RunData
from wattload.server_metrics.series import CommonSeries, common_series


def server_section(data: RunData, absent: dict[str, str]) -> ServerInfo | None:
    """Means and sums over the window; None, with the reason in `absent`, where no metrics were read."""
    if data.server is None or not data.server.num_rows:
        absent["server"] = _why_none(data.capture.server_metrics)
        return None
    series = common_series(data.server)
    window = (data.window.start_unix, data.window.end_unix)

    def mean(name: str) -> float | None:
        return series[name].mean(*window) if name in series else None

    return ServerInfo(
        requests_running=mean("requests_running"),
        requests_waiting=mean("requests_waiting"),
        kv_cache_used_fraction=mean("kv_cache_used_fraction"),
        prefix_cache_hit_fraction=_share(
            series, window, "prefix_cache_hits", "prefix_cache_queries", "prefix_cache_hit_fraction"
        ),
        preemptions=series["preemptions"].gained(*window) if "preemptions" in series else None,
        draft_acceptance_fraction=_share(
            series, window, "draft_tokens_accepted", "draft_tokens", "draft_acceptance_fraction"
        ),
        sm_clock_hertz=mean("sm_clock_hertz"),
    )


def _share(
    series: Mapping[str, CommonSeries], window: tuple[float, float], part: str, whole: str, gauge: str
) -> float | None:
    if part not in series or whole not in series:
        return series[gauge].mean(*window) if gauge in series else None
    gained, of = series[part].gained(*window), series[whole].gained(*window)
    return gained / of if gained is not None and of else None


def server_notes(read: Mapping[str, Any] | None) -> list[str]:
    """Sentences on readings that failed and on what was left out; an address never read is no gap."""
    notes = []
    for target in (read or {}).get("targets", []):
        failed, read_well = sum(target["failures"].values()), target["scrapes"]
        if failed and read_well:
            why = max(target["failures"], key=target["failures"].get)
            notes.append(
                f"{failed} of {failed + read_well} readings of the server metrics at {target['url']} failed,"
                f" which leaves gaps: {why}"
            )
        if target.get("left_out"):
            notes.append(f"{target['left_out']} series of {target['url']} were not kept: there are too many")
    if read and read.get("rows_left_out"):
        notes.append(
            f"{read['rows_left_out']:,} values of server metrics without a common name were not kept: the run"
            " was long"
        )
    if read and read.get("disk"):
        notes.append(str(read["disk"]))
    return notes


def _why_none(read: Mapping[str, Any] | None) -> str:
    if read is None:
        return "no server's metrics were read"
    reasons = [
        f"{target['url']}: {reason}" for target in read.get("targets", []) for reason in target["failures"]
    ]
    return f"no server's metrics could be read: {reasons[0]}" if reasons else "no server's metrics were read"
