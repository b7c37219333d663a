"""What metering changes: throughput, time per output token and energy, metered against plain vLLM.

    python benchmarks/h200/observer_effect.py --metered URL --plain URL --out DIR
        [--metered-pid PID --plain-pid PID] [--blocks 20] [--until-seconds S] [--resume] [--reader nvml|none]

Both servers (serve.sh) share one GPU. In each block each of them gets the same two windows, request for
request: `open`, one shape at a constant rate, for TPOT and for the energy of its steady middle; and `burst`,
many requests at once, whose time to drain is the throughput, with its energy per output token. The order of
the two servers alternates from block to block. While one works the other is stopped (SIGSTOP to its process
group), so that the metered server's sampler does not run during the plain one's windows. Joules come from a
reader outside both, the same in all windows.

Writes DIR/observer_effect.json after every block, with TTFT and TPOT of every request; every figure is a
paired difference, metered over plain, with a 95 % interval over the blocks (paired.py). About 40 s a block.
No block is begun that would probably not end by --until-seconds; --resume goes on with the next block in the
same DIR, with the same servers or others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import traffic
from paired import blocks_of, compared, line
from streaming import StreamError, at_once, constant, figures, play

from wattmeter.meters import open_meter
from wattmeter.meters.base import Meter
from wattmeter.monitor.energy_monitor import EnergyMonitor

ARMS = ("metered", "plain")
SCHEMA = "wattload.observer_effect/2"
SETTLE_SECONDS = 0.3
COVERED_SECONDS = 2.0


class Reader:
    """The energy of the GPUs over any span, from `meter`; None: no energy. Read at most 10 times a second,
    just after the counter's updates."""

    def __init__(self, meter: Meter | None) -> None:
        self._account: EnergyMonitor | None = None
        if meter is not None:
            self._account = EnergyMonitor(meter, model="", measure_idle=False, fit_online=False)
            self._account.start()

    def joules(self, start_unix: float, end_unix: float) -> dict[str, Any]:
        """`joules` of the span and one standard deviation of its ends; None with the reason in `flags`."""
        if self._account is None:
            return {"joules": None, "joules_deviation": None, "flags": ["not read"]}
        deadline = time.time() + COVERED_SECONDS
        while True:
            answer = self._account.window_energy(start_unix, end_unix)
            flags = sorted({flag for device in answer.devices for flag in device.flags})
            if not flags or time.time() > deadline:
                break
            time.sleep(0.05)
        known = not flags and answer.total_joules is not None
        return {
            "joules": answer.total_joules if known else None,
            "joules_deviation": answer.uncertainty_joules if known else None,
            "flags": flags,
        }

    def close(self) -> None:
        if self._account is not None:
            self._account.stop()


class Turns:
    """Lets one server's process group run while the other is stopped; without pids both run on."""

    def __init__(self, pids: dict[str, int | None]) -> None:
        self._groups = {arm: os.getpgid(pid) for arm, pid in pids.items() if pid is not None}

    def to(self, arm: str) -> None:
        for name, group in self._groups.items():
            if name != arm:
                os.killpg(group, signal.SIGSTOP)
        if arm in self._groups:
            os.killpg(self._groups[arm], signal.SIGCONT)

    def release(self) -> None:
        for group in self._groups.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)


def window(
    kind: str,
    endpoint: traffic.Endpoint,
    reader: Reader,
    options: argparse.Namespace,
    *,
    seconds: float,
    seed: str,
) -> dict[str, Any]:
    """One window: what came of its requests, and its joules. Raises StreamError where a request fails."""
    if kind == "open":
        plan = constant(options.open_shape, rate=options.rate, seconds=seconds)
    else:
        plan = at_once(options.burst_shape, requests=options.burst)
    answers = asyncio.run(play(endpoint, plan, seed))
    result = figures(answers)
    if kind == "open":
        # The steady middle: the first requests have found their company, the last have not lost it yet.
        span = (answers[0].due_unix + options.lead_seconds, answers[-1].due_unix)
    else:
        span = (result["start_unix"], result["end_unix"])
    energy = reader.joules(*span)
    tpot, ttft = (np.array(result[name]) * 1e-6 for name in ("tpot_microseconds", "ttft_microseconds"))
    result |= {
        "tpot_mean_seconds": float(tpot.mean()),
        "tpot_p50_seconds": float(np.median(tpot)),
        "tpot_p99_seconds": float(np.quantile(tpot, 0.99)),
        "ttft_p50_seconds": float(np.median(ttft)),
        "joules_seconds": span[1] - span[0],
        **energy,
    }
    if kind == "burst" and energy["joules"] is not None:
        result["joules_per_output_token"] = energy["joules"] / result["output_tokens"]
    return result


def turn(
    arm: str, endpoint: traffic.Endpoint, reader: Reader, options: argparse.Namespace, block: int
) -> list[dict[str, Any]]:
    """The windows of one arm in one block, after a few requests that are not counted: a server that was
    stopped has its sampler, its caches and its clocks to find again."""
    fresh = f"{random.SystemRandom().randrange(1 << 48):x}"
    first = at_once((options.open_shape[0], min(48, options.open_shape[1])), requests=8)
    asyncio.run(play(endpoint, first, fresh))
    rows = []
    for kind in ("open", "burst"):
        time.sleep(SETTLE_SECONDS)
        # Both arms get the same prompts; no block gets those of another, which might still be cached.
        seed = f"{block}-{kind}" if block >= 0 else f"{fresh}-{kind}"
        # The round that is not counted is a short one.
        seconds = options.seconds if block >= 0 else min(options.seconds, options.lead_seconds + 2.0)
        row = window(kind, endpoint, reader, options, seconds=seconds, seed=seed)
        rows.append({"block": block, "arm": arm, "kind": kind, **row})
        shown = ("output_tokens_per_second", "tpot_p99_seconds", "ttft_p50_seconds", "joules")
        print(
            f"  {block:3d} {arm:8s} {kind:6s} " + "  ".join(f"{name} {row[name]}" for name in shown),
            flush=True,
        )
    return rows


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all blocks of a result must have in common."""
    names = ("rate", "seconds", "lead_seconds", "open_shape", "burst", "burst_shape", "highest_token")
    return {name: getattr(options, name) for name in names}


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """The result so far: read with --resume, empty without. Raises SystemExit where that does not fit."""
    file: Path = options.out / "observer_effect.json"
    settings = json.loads(json.dumps(settings_of(options)))
    if not file.exists():
        return {"schema": SCHEMA, "settings": settings, "sessions": [], "windows": []}
    if not options.resume:
        raise SystemExit(f"observer_effect: {file} exists; --resume adds blocks to it")
    result: dict[str, Any] = json.loads(file.read_text())
    if result.get("schema") != SCHEMA or result["settings"] != settings:
        raise SystemExit(f"observer_effect: {file} was made with other settings: {result.get('settings')}")
    return result


def save(result: dict[str, Any], file: Path) -> None:
    """One line a window; whole or not at all."""
    parts = []
    for name, value in result.items():
        if name == "windows":
            rows = ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in value)
            parts.append(f' "windows": [\n  {rows}\n ]')
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value, indent=1)}")
    partial = file.with_suffix(".partial")
    partial.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    partial.replace(file)


def session(endpoints: dict[str, traffic.Endpoint], reader_name: str, block: int) -> dict[str, Any]:
    """Which servers and when; a version is None where a server does not say it."""
    versions: dict[str, Any] = {}
    for arm, endpoint in endpoints.items():
        try:
            versions[arm] = endpoint.get("/version").get("version")
        except (OSError, ValueError):
            versions[arm] = None
    return {
        "started_unix": time.time(),
        "first_block": block,
        "versions": versions,
        "models": {arm: endpoint.model for arm, endpoint in endpoints.items()},
        "reader": reader_name,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    result = begun(options)
    file = options.out / "observer_effect.json"
    turns = Turns({"metered": options.metered_pid, "plain": options.plain_pid})
    # A call that was killed may have left one of them stopped.
    turns.release()
    endpoints = {arm: traffic.Endpoint(getattr(options, arm)) for arm in ARMS}
    block = max(blocks_of(result["windows"]), default=-1) + 1
    meter = None if options.reader == "none" else open_meter(options.reader, gpus=options.gpus.split(","))
    name = "none" if meter is None else ", ".join(f"{device.name} {device.id}" for device in meter.devices)
    result["sessions"].append(session(endpoints, name, block))
    reader = Reader(meter)
    longest = 0.0
    try:
        # A round of the same windows for both that is not counted.
        for number in (-1, *range(block, options.blocks)):
            start = time.monotonic()
            if number >= 0 and start - began + longest > options.until_seconds:
                print(f"until {options.until_seconds:g} s: stopped before block {number}", flush=True)
                break
            rows: list[dict[str, Any]] = []
            for arm in ARMS if number % 2 == 0 else reversed(ARMS):
                turns.to(arm)
                rows += turn(arm, endpoints[arm], reader, options, number)
            longest = max(longest, time.monotonic() - start)
            if number < 0:
                continue
            result["windows"] += rows
            result["compared"] = compared(result["windows"])
            save(result, file)
            print(f"block {number}: {time.monotonic() - start:.1f} s, saved", flush=True)
    finally:
        turns.release()
        reader.close()
        if meter is not None:
            meter.close()
    return result


def shape(text: str) -> tuple[int, int]:
    prompt, _, output = text.partition("x")
    return int(prompt), int(output)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--metered", required=True)
    parser.add_argument("--plain", required=True)
    parser.add_argument("--metered-pid", type=int)
    parser.add_argument("--plain-pid", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on with the result in --out")
    parser.add_argument(
        "--blocks", type=int, default=20, help="blocks in all, those of earlier calls included"
    )
    parser.add_argument(
        "--until-seconds", type=float, default=1e9, help="end by then, from this call's start"
    )
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second of the open windows")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long requests arrive in them")
    parser.add_argument(
        "--lead-seconds", type=float, default=2.0, help="of arrivals before their energy counts"
    )
    parser.add_argument("--open-shape", type=shape, default=(512, 128), help="tokens in x out, 512x128")
    parser.add_argument("--burst", type=int, default=256, help="requests of a burst")
    parser.add_argument("--burst-shape", type=shape, default=(256, 256), help="tokens in x out, 256x256")
    parser.add_argument("--reader", choices=["nvml", "none"], default="nvml")
    parser.add_argument("--gpus", default="0", help="whose joules: indices or UUIDs, separated by commas")
    parser.add_argument("--highest-token", type=int, default=traffic.VOCABULARY[1], help="for small models")
    options = parser.parse_args(arguments)
    if options.highest_token < traffic.VOCABULARY[1]:
        traffic.VOCABULARY = (300, options.highest_token)
    if options.seconds <= options.lead_seconds + 1.0:
        parser.error("--seconds must be more than --lead-seconds and 1 s")
    options.out.mkdir(parents=True, exist_ok=True)
    # An ordinary end, so that no server stays stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        result = run(options)
    except StreamError as error:
        print(f"observer_effect: {error}; --resume goes on after the last whole block", file=sys.stderr)
        return 1
    print("\n".join(line(row) for row in result.get("compared", [])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
