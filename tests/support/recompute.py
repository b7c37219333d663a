"""Recomputes run.json's headlines from a run's Parquet files; shares no code with the product. What was measured or
asked is taken from run.json: window, clocks' offset, limits, and the total energy that the meter answered. What is
computed of it must agree to 1e-9, and the total with what the counters' samples leave open."""

# fmt: off
# ruff: noqa: E401, E501, I001
import functools, json, math, sys
from pathlib import Path
from typing import Any
import numpy as np, pyarrow.parquet as pq

TOGETHER_SECONDS = 1e-4  # tokens that came faster than that were held back by something
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
COLUMNS = {"due": "due_unix", "sent": "sent_unix", "first": "first_token_unix", "last": "last_token_unix", "chunks": "chunks",
           "output": "output_tokens", "prompt": "prompt_tokens", "planned": "prompt_tokens_planned", "joules": "energy_joules"}

def column(rows: Any, name: str) -> Any:
    return np.asarray(rows[name].to_numpy(zero_copy_only=False), float)

def spread(path: str, values: Any) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    found = {f"{path}.{name}": np.quantile(known, q) for name, q in QUANTILES} if len(known) else {}
    return {**found, f"{path}.mean": known.mean(), f"{path}.max": known.max()} if len(known) else {}

def received(run: dict[str, Any], of: dict[str, Any], gaps: list[Any]) -> tuple[float, float]:
    """(output, prompt) tokens that came in the window: of a request that an edge cuts, by its chunks' times."""
    start, end, first, last = run["window"]["start_unix"], run["window"]["end_unix"], of["first"], of["last"]
    streamed = (of["chunks"] > 0) & ~np.isnan(first)
    counted = streamed & ~np.isnan(of["output"])
    guessed = of["chunks"] * (of["output"][counted].sum() / of["chunks"][counted].sum())
    tokens, share = np.where(counted, of["output"], np.where(streamed, guessed, 0.0)), np.zeros(len(first))
    for i in np.flatnonzero((tokens > 0) & (first <= end) & (last >= start)):
        times = np.linspace(first[i], last[i], int(of["chunks"][i]))
        if gaps and len(gaps[i]) == len(times) - 1:
            times = first[i] + np.concatenate(([0.0], np.cumsum(gaps[i].astype(float))))
        share[i] = 1.0 if first[i] >= start and last[i] <= end else ((times >= start) & (times <= end)).mean()
    prompts = np.where(np.isnan(of["prompt"]), of["planned"], of["prompt"])
    return float((tokens * share).sum()), float(prompts[(first >= start) & (first <= end)].sum())

def headlines(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The numbers of run.json by their dotted paths."""
    rows = pq.read_table(folder / "requests.parquet").sort_by([("due_unix", "ascending")])
    of = {name: column(rows, told) for name, told in COLUMNS.items()}
    outcome, status = (np.array(rows[n].to_pylist(), object) for n in ("outcome", "energy_status"))
    start, end, total = run["window"]["start_unix"], run["window"]["end_unix"], run["energy"].get("total_joules")
    length, completed, inside = end - start, outcome == "completed", (of["due"] >= start) & (of["due"] < end)
    done = inside & completed
    got: dict[str, Any] = {f"requests.failed.{o}": (outcome == o).sum() for o in set(outcome) - {"completed"}}
    got |= {"requests.sent": (~np.isnan(of["sent"])).sum(), "requests.completed": completed.sum(),
            "requests.in_window": inside.sum(), "requests.completed_in_window": done.sum()}
    if inside.any() and "failed_fraction" in run["requests"]:
        got["requests.failed_fraction"] = (inside & ~completed & (outcome != "aborted")).sum() / inside.sum()
    if length <= 0:
        return got
    got["load.planned_rps"] = inside.sum() / length
    got["load.achieved_rps"] = ((of["sent"] >= start) & (of["sent"] < end)).sum() / length
    if not run["workload"]["arrivals"]["process"].startswith("closed"):
        lag = spread("load.send_lag_seconds", (of["sent"] - of["due"])[inside])
        got |= {path: value for path, value in lag.items() if path[-3:] in ("p50", "p99", "max")}
    each = (of["last"] - of["first"]) / np.where(of["output"] > 1, of["output"] - 1, np.nan)
    times = {"ttft": of["first"] - of["due"], "e2e": of["last"] - of["due"], "tpot": np.where(each < TOGETHER_SECONDS, np.nan, each)}
    for name, values in times.items():
        got |= spread(f"latency.{name}_seconds", values[done])
    listed = rows["itl_seconds"] if "itl_seconds" in rows.column_names else []
    gaps = [np.asarray(gap.values if gap.is_valid else [], np.float32) for gap in listed]
    flat = np.concatenate([np.zeros(0), *(gaps[i] for i in np.flatnonzero(done) if gaps)])
    itl = spread("latency.itl_seconds", flat[flat >= 0])  # quantiles are of a histogram, right to a thousandth
    got |= {path: value for path, value in itl.items() if path.endswith(("mean", "max"))}
    if (done & ~np.isnan(of["output"])).any():
        got |= {f"tokens.{name}": np.nansum(of[name][done]) for name in ("prompt", "output")}
    if run["tokens"].get("output_received") is not None:
        output, prompt = received(run, of, gaps)
        got |= {"tokens.output_received": output, "tokens.prompt_received": prompt,
                "tokens.output_per_second": output / length, "tokens.prompt_per_second": prompt / length}
        if total is not None and output > 0:
            got |= {"energy.per_output_token_joules": total / output, "energy.per_token_joules": total / (output + prompt)}
    limits = {n: run["slo"][f"{n}_seconds"] for n in times if run["slo"][f"{n}_seconds"]} if run.get("slo") else {}
    if limits and inside.any():
        kept = [(times[n] <= limit) | ((of["output"] == 1) & (n == "tpot")) for n, limit in limits.items()]
        good = (done & np.logical_and.reduce(kept)).sum()
        got |= {"slo.met_fraction": good / inside.sum(), "slo.goodput_rps": good / length}
        got |= {"slo.joules_per_good_request": total / good} if good and total is not None else {}
    if total is not None and done.any():
        got |= {"energy.mean_watts": total / length, "energy.per_request_joules.mean": total / done.sum(),
                "footprint.energy_kwh_per_1000_requests": total / done.sum() / 3600.0}
        own = spread("energy.per_request_joules", of["joules"][done & (status == "settled")])
        got |= {path.replace("mean", "attributed_mean"): v for path, v in own.items() if not path.endswith("max")}
    return got

def beyond_joules(folder: Path, run: dict[str, Any]) -> float:
    """How far the total lies outside of what the counters' samples leave open at the window's edges."""
    rows, offset = pq.read_table(folder / "energy.parquet"), (run.get("clock") or {}).get("offset_seconds", 0.0)
    edges = np.array([run["window"]["start_unix"], run["window"]["end_unix"]]) + offset
    device, off = np.array(rows["device"].to_pylist(), object), -run["energy"]["total_joules"]
    unsure = abs(off) * 1e-6
    for name in set(device):
        at, joules = (column(rows, n)[(device == name) & ~np.isnan(column(rows, "joules"))] for n in ("unix_seconds", "joules"))
        if len(at) < 2 or at[0] > edges[0] or at[-1] < edges[1]:
            return 0.0  # they do not cover the window: the answer stands alone
        off += float(np.diff(np.interp(edges, at, joules))[0])
        for step in np.searchsorted(at, edges).clip(1, len(at) - 1):
            unsure += float(joules[min(step + 1, len(at) - 1)] - joules[max(step - 2, 0)])
    return max(0.0, float(abs(off) - unsure))

def mismatches(folder: Path) -> list[str]:
    """A sentence on each number of run.json that does not come out of the tables again."""
    run, wrong = json.loads((folder / "run.json").read_text()), []
    for path, value in headlines(folder, run).items() if run["window"] else ():
        said = functools.reduce(lambda at, part: at.get(part) if isinstance(at, dict) else None, path.split("."), run)
        if said is None or not math.isclose(float(value), said, rel_tol=1e-9, abs_tol=1e-12):
            wrong.append(f"{folder}: {path} is {said!r}, and the tables give {float(value)!r}")
    if run["window"] and run["energy"].get("total_joules") is not None and (folder / "energy.parquet").exists():
        beyond = beyond_joules(folder, run)
        wrong += [f"{folder}: energy.total_joules is {beyond:.3g} J beyond what the counters say"] if beyond else []
    return wrong

if __name__ == "__main__":
    sys.exit("\n".join(line for name in sys.argv[1:] for line in mismatches(Path(name))) or 0)
