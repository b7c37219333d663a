"""One model on several GPUs: does the metered server's energy accounting agree with each GPU's own counter?

    python benchmarks/h200/parallel.py --url URL --recording FOLDER --out FILE.json [--gpus 2] [--rate 5]
        [--seconds 30] [--reader nvml|none]

The server was started with `serve.sh metered PORT FOLDER --tensor-parallel-size 2` (or
`--pipeline-parallel-size 2`, or `--data-parallel-size 2`: an engine on each GPU); `--recording` is its
FOLDER/recording. Sends about 30 s of conversation-like traffic, waits until everything is settled, and checks
the answers of /energy against counters read here, by NVML alone and not through the server, and against the
recording of every step. Prints one line a check and ends with status 1 where one fails. About 75 s.
`--reader none` rehearses without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import traffic
from counters import Counters
from experiments import settled
from traffic import Endpoint, Planned, Sent, play

from wattmeter.steps import recording
from wattmeter.steps.batch import StepBatch

IDLE_SECONDS = 5.0
CALM_SECONDS = 1.5
# The recording is written every 10 s.
RECORDING_SECONDS = 25.0
ACCOUNTING_LIMIT = 0.005
IDLE_LIMIT = 0.05
# What may be said without anything being wrong: a model fitted on 30 s is not trusted yet, and a rehearsal's
# joules are modelled.
HARMLESS_FLAGS = frozenset({"model_not_trusted", "modelled"})


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `ok` is None where it could not be measured; `what` says why."""

    name: str
    ok: bool | None
    what: str


# --- the checks, each from plain data -----------------------------------------------------------------------


def check_devices(state: dict[str, Any], gpus: int, window_raw: dict[str, float] | None) -> list[Check]:
    """As many devices as the engine has GPUs, and no other GPU of the host at work. `window_raw`: mean watts
    above idle of every GPU over the traffic."""
    metered = [device["id"] for device in state["devices"]]
    checks = [
        Check("devices metered", len(metered) == gpus, f"{len(metered)} of {gpus}: {', '.join(metered)}")
    ]
    if window_raw is None:
        return checks
    others = {uuid: watts for uuid, watts in window_raw.items() if uuid not in metered}
    worst = max(others.values(), default=0.0)
    what = f"{len(others)} others, at most {worst:.1f} W above idle" if others else "the host has no others"
    checks.append(Check("no other GPU at work", worst < 10.0, what))
    return checks


def check_books(
    answer: dict[str, Any], requests: list[dict[str, Any]], raw: dict[str, float] | None
) -> list[Check]:
    """The window's division against the counters read here, and against the requests' own figures."""
    attributed = answer["attributed_joules"]
    parts = (
        attributed["prefill"],
        attributed["decode"],
        answer["idle_joules"],
        answer["unattributed_joules"],
    )
    if any(part is None for part in parts):
        return [Check("accounting", False, f"the window's division is not complete: {parts}")]
    parts_joules = sum(parts)
    checks = [Check("window settled", bool(answer["complete"]), f"{answer['end'] - answer['start']:.1f} s")]
    checks.append(
        _close("requests + idle + unattributed = total", parts_joules, answer["total_joules"], 1e-6)
    )
    own = _sum(request["joules"] for request in requests)
    given = attributed["prefill"] + attributed["decode"]
    checks.append(_close("sum of the requests = prefill + decode", own, given, 1e-3))
    if raw is None:
        return [*checks, Check("accounting against the counters", None, "no counter was read here")]
    metered = [device["id"] for device in answer["devices"]]
    total = sum(raw.get(device, float("nan")) for device in metered)
    checks.append(_close("accounting against the sum of the counters", parts_joules, total, ACCOUNTING_LIMIT))
    for device in answer["devices"]:
        counter = raw.get(device["id"], float("nan"))
        checks.append(_close(f"  {device['id']}", device["joules"], counter, ACCOUNTING_LIMIT))
    return checks


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one of the values is: a sum without it would be too low."""
    known = list(values)
    return None if any(value is None for value in known) else sum(value or 0.0 for value in known)


def _close(name: str, found: float | None, expected: float | None, limit: float) -> Check:
    if found is None or expected is None or not expected > 0.0:
        return Check(name, False, f"{found} J against {expected} J")
    error = found / expected - 1.0
    return Check(name, abs(error) <= limit, f"{found:.2f} J against {expected:.2f} J: {error:+.3%}")


def check_steps(engine: str, steps: StepBatch) -> list[Check]:
    """Of one engine: none lost, numbered from 0 without a gap, in the order in which they ended."""
    return [
        Check(f"step records lost{engine}", steps.lost_steps == 0, f"{steps.lost_steps} of {len(steps)}"),
        Check(
            f"step numbers without gaps{engine}",
            len(steps) > 0 and steps.index.tolist() == list(range(len(steps))),
            f"{len(steps)} steps, numbers to {int(steps.index[-1]) if len(steps) else None}",
        ),
        Check(f"steps in order{engine}", bool((np.diff(steps.end_ns) >= 0).all()), "by their ends"),
    ]


def computed_tokens(steps: StepBatch) -> dict[str, tuple[int, int]]:
    """What one engine computed of each request: prompt tokens, with what the cache held, and decoded ones."""
    count = len(steps.request_ids)
    prompt = np.bincount(steps.request, steps.prefill_tokens + steps.cached_tokens, count)
    decoded = np.bincount(steps.request, steps.decode_tokens, count)
    return {name: (int(prompt[n]), int(decoded[n])) for n, name in enumerate(steps.request_ids)}


def inexact_requests(engines: list[StepBatch], sent: list[dict[str, Any]]) -> list[str]:
    """Ids of the requests that not exactly one engine computed, or whose computed tokens are not those of the
    answer's usage: the prompt, and every output token but the first, which the prompt's last step gives."""
    computed = [computed_tokens(steps) for steps in engines]
    return [
        request["request_id"]
        for request in sent
        if [of[request["request_id"]] for of in computed if request["request_id"] in of]
        != [(request["prompt_tokens"], request["output_tokens"] - 1)]
    ]


def answered(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [request for request in sent if not request["error"]]


def in_flight(steps: StepBatch) -> int:
    """The most steps that were under way at once: launched, and their result not yet seen."""
    moments = np.concatenate([steps.launch_ns, steps.end_ns])
    change = np.concatenate([np.ones(len(steps), int), -np.ones(len(steps), int)])
    # At one and the same moment the end comes first.
    order = np.lexsort((change, moments))
    return int(np.cumsum(change[order]).max(initial=0))


def check_flags(flags: set[str]) -> Check:
    unexpected = flags - HARMLESS_FLAGS
    return Check("flags", not unexpected, ", ".join(sorted(flags)) or "none")


# --- the run ------------------------------------------------------------------------------------------------


def conversations(rate: float, seconds: float, seed: int) -> list[Planned]:
    """Poisson arrivals with lognormal lengths: about 900 tokens in and 150 out, at most 4,000 and 600."""
    dice = random.Random(seed)

    def length(median: float, longest: int) -> int:
        return max(4, min(longest, round(median * math.exp(0.7 * dice.gauss(0.0, 1.0)))))

    plan: list[Planned] = []
    at = dice.expovariate(rate)
    while at < seconds:
        plan.append(Planned(at, length(900, 4000), length(150, 600), "conv"))
        at += dice.expovariate(rate)
    return plan


async def warm_up(endpoint: Endpoint) -> None:
    """Each kind of step once. Raises SystemExit where the server does not answer as asked."""
    for wave in ([(64, 40)] * 2, [(2000, 8)] * 4, [(300, 60)] * 32):
        seed, now = random.SystemRandom().randrange(1 << 40), time.time()
        jobs = [
            (Planned(0.0, prompt, output, "warm-up"), Sent("warm-up", "warm-up", f"warm-{seed:x}-{row}", now))
            for row, (prompt, output) in enumerate(wave)
        ]
        await asyncio.gather(*(endpoint.complete(p, s, seed + row) for row, (p, s) in enumerate(jobs)))
        errors = [sent.error for _, sent in jobs if sent.error]
        if errors:
            raise SystemExit(f"parallel: the server does not answer as asked: {errors[0]}")


def await_idle(endpoint: Endpoint, after_unix: float, limit_seconds: float = 30.0) -> dict[str, Any]:
    """The server's idle power, measured after a time; as it is once the limit has passed."""
    deadline = time.time() + limit_seconds
    while True:
        idle: dict[str, Any] = endpoint.get("/energy")["idle"]
        if (idle["measured_unix"] or 0.0) > after_unix or time.time() > deadline:
            return idle
        time.sleep(0.5)


def await_recording(folder: Path, sent: list[dict[str, Any]]) -> list[StepBatch]:
    """The recorded steps of each engine, once all of the requests are in them, or as they are after
    RECORDING_SECONDS. Engines beside the first record into folders of their own within the first one's."""
    deadline = time.time() + RECORDING_SECONDS
    while True:
        engines = [recording.read(each).steps for each in (folder, *sorted(folder.glob("engine-*")))]
        if not inexact_requests(engines, answered(sent)) or time.time() > deadline:
            return engines
        time.sleep(1.0)


def idle_checks(idle: dict[str, Any], raw_watts: dict[str, float] | None, metered: list[str]) -> Check:
    if idle["watts"] is None:
        return Check("idle power", False, "the server has not measured it")
    if raw_watts is None:
        return Check("idle power", None, f"{idle['watts']:.1f} W by the server; no counter was read here")
    each = {uuid: raw_watts.get(uuid, float("nan")) for uuid in metered}
    total = sum(each.values())
    shown = " + ".join(f"{watts:.1f}" for watts in each.values())
    what = f"{idle['watts']:.1f} W by the server against {shown} = {total:.1f} W read here"
    return Check("idle power", abs(idle["watts"] / total - 1.0) <= IDLE_LIMIT, what)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    endpoint = Endpoint(options.url)
    counters = Counters() if options.reader == "nvml" else None
    await warm_up(endpoint)
    idle = await asyncio.to_thread(await_idle, endpoint, time.time() + 5.0)

    async def reading() -> tuple[float, dict[str, float] | None]:
        return await asyncio.to_thread(counters.now) if counters else (time.time(), None)

    idle_start = await reading()
    await asyncio.sleep(IDLE_SECONDS)
    start = await reading()
    # Energy is divided no finer than in pieces: the window's ends lie in idle time, away from the traffic.
    await asyncio.sleep(CALM_SECONDS)
    plan = conversations(options.rate, options.seconds, options.seed)
    played = await play(endpoint, "conv", plan, calm_seconds=CALM_SECONDS)
    end = await reading()

    window = {**played, "start_unix": start[0], "end_unix": end[0]}
    quiet = {"name": "idle", "start_unix": idle_start[0], "end_unix": start[0], "requests": []}
    # The last window of the list is the one whose end is waited for.
    answers = await asyncio.to_thread(settled, endpoint, [quiet, window])
    steps = await asyncio.to_thread(await_recording, options.recording, window["requests"])
    return judged(options, idle, (idle_start, start, end), window=window, answers=answers, steps=steps)


def judged(
    options: argparse.Namespace,
    idle: dict[str, Any],
    readings: tuple[tuple[float, dict[str, float] | None], ...],
    *,
    window: dict[str, Any],
    answers: dict[str, Any],
    steps: list[StepBatch],
) -> dict[str, Any]:
    """All checks and figures of a run. `readings`: the counters before the idle stretch, before the traffic
    and after it."""
    (t0, at0), (t1, at1), (t2, at2) = readings
    state, answer, requests = answers["energy"], answers["windows"][-1], answers["requests"]
    idle_watts = raw = above = None
    if at0 is not None and at1 is not None and at2 is not None:
        idle_watts = {uuid: (at1[uuid] - at0[uuid]) / (t1 - t0) for uuid in at0}
        raw = {uuid: at2[uuid] - at1[uuid] for uuid in at1}
        above = {uuid: joules / (t2 - t1) - idle_watts[uuid] for uuid, joules in raw.items()}
    sent = window["requests"]
    failed = [request["error"] for request in sent if request["error"]]
    unsettled = sum(request["status"] != "settled" for request in requests)
    wrong = inexact_requests(steps, answered(sent))
    flags = set(answer["flags"]) | {flag for request in requests for flag in request.get("flags", ())}
    checks = [
        Check("requests answered", not failed, f"{len(sent)} sent, {len(failed)} failed {failed[:1] or ''}"),
        Check("requests settled", unsettled == 0, f"{unsettled} of {len(requests)} open"),
        *check_devices(state, options.gpus, above),
        *check_books(answer, requests, raw),
        idle_checks(idle, idle_watts, [device["id"] for device in answer["devices"]]),
        *(
            check
            for number, each in enumerate(steps)
            for check in check_steps(f" (engine {number})" if len(steps) > 1 else "", each)
        ),
        Check("tokens exact", not wrong, f"{len(wrong)} of {len(answered(sent))} differ {wrong[:3] or ''}"),
        check_flags(flags),
    ]
    figures = figures_of(answer, sent, steps) | {
        "idle_watts": {"server": idle["watts"], "counters": idle_watts},
        "counter_joules": raw,
    }
    return {
        "schema": "wattload.parallel/1",
        "name": options.name,
        "reader": options.reader,
        "source": state["source"],
        "engine": state["engine"],
        "model": state["model_name"],
        "checks": [asdict(check) for check in checks],
        "figures": figures,
        "energy": answer,
        "state": state,
        "requests": [
            {"id": r["id"], "joules": r["joules"], "uncertainty_joules": r.get("uncertainty_joules")}
            | {name: s[name] for name in ("sent_unix", "done_unix", "prompt_tokens", "output_tokens")}
            for r, s in zip(requests, sent, strict=True)
        ],
    }


def figures_of(answer: dict[str, Any], sent: list[dict[str, Any]], steps: list[StepBatch]) -> dict[str, Any]:
    """What the window cost and how; None where the server gave no figure."""
    seconds = answer["end"] - answer["start"]
    joules = {device["id"]: device["joules"] for device in answer["devices"]}
    attributed, total = _sum(answer["attributed_joules"].values()), answer["total_joules"]

    def divided(value: float | None, by: float | None) -> float | None:
        return None if value is None or not by else value / by

    return {
        "seconds": seconds,
        "requests": len(sent),
        "prompt_tokens": sum(request["prompt_tokens"] for request in sent),
        "output_tokens": sum(request["output_tokens"] for request in sent),
        "steps": sum(len(each) for each in steps),
        "most_steps_under_way": max(in_flight(each) for each in steps),
        "requests_of_each_engine": [
            sum(request["request_id"] in names for request in sent)
            for names in (set(each.request_ids) for each in steps)
        ],
        "device_joules": joules,
        "device_share": {uuid: divided(value, total) for uuid, value in joules.items()},
        "device_mean_watts": {uuid: divided(value, seconds) for uuid, value in joules.items()},
        "joules_per_request": divided(attributed, len(sent)),
        "joules_per_request_with_idle": divided(total, len(sent)),
    }


def shown(result: dict[str, Any]) -> str:
    """The checks and the figures, a line each."""
    word = {True: "ok    ", False: "FAILED", None: "-     "}
    lines = [f"{result['name']}: {result['engine']}, joules by {result['source']}"]
    lines += [f"{word[check['ok']]}  {check['name']:40s}  {check['what']}" for check in result["checks"]]
    figures = result["figures"]

    def listed(name: str, form: str) -> str:
        return ", ".join("unknown" if v is None else format(v, form) for v in figures[name].values())

    lines.append(f"shares: {listed('device_share', '.1%')}; mean watts: {listed('device_mean_watts', '.0f')}")
    lines.append(
        f"{figures['steps']} steps, at most {figures['most_steps_under_way']} under way at once; joules per"
        f" request: {figures['joules_per_request']} above idle,"
        f" {figures['joules_per_request_with_idle']} with idle"
    )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="parallel", help="what the engine was started with")
    parser.add_argument("--gpus", type=int, default=2, help="how many GPUs the engine has")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long requests arrive")
    parser.add_argument("--seed", type=int, default=7719)
    parser.add_argument("--reader", choices=["nvml", "none"], default="nvml")
    parser.add_argument("--highest-token", type=int, default=traffic.VOCABULARY[1], help="for small models")
    options = parser.parse_args(arguments)
    if options.highest_token < traffic.VOCABULARY[1]:
        traffic.VOCABULARY = (300, options.highest_token)
    result = asyncio.run(run(options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(shown(result), flush=True)
    return 1 if any(check["ok"] is False for check in result["checks"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
