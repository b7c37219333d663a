"""The experiments of docs/research/validation.md: traffic for a server that records its steps and readings.

    python benchmarks/h200/experiments.py NAME --url http://127.0.0.1:PORT --out FILE.json.gz [--scale X]

NAME: `coalitions-low`, `coalitions-high` (three tenants, every subset at the same arrival times, twice,
interleaved: 5 to 6 minutes each), `duplicates` (copies of one shape in steady traffic: 4 minutes), `phases`
(pure prefill and pure decode: 1 minute). The server is started with `--energy-record DIR` (serve.sh does);
the output holds the requests, the windows and what the server said of them, and analyse.py reads both.
`--scale 0.3` shortens every window to a rehearsal. `--highest-token` and `--longest-prompt` are for models
with a smaller vocabulary or context; `--draw 4` has no prompt above 3,300 tokens, and those of the
warm-up are cut. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import traffic
from traffic import Endpoint, Planned, Sent, play

CALM_SECONDS = 1.2
ARRIVAL_SECONDS = 16.0


@dataclass(frozen=True)
class Draw:
    """What is drawn anew for data that a method was not developed on.

    `tenants`: (median prompt, sigma, longest), (median output, sigma, longest) of lognormal lengths;
    `rates`: requests a second of each tenant at each level; `steady`: those that copies are added to;
    `copies`: (prompt, output, number); `prompts`: (length, a second); `together`: requests that only decode.
    """

    tenants: dict[str, tuple[tuple[float, float, int], tuple[float, float, int]]]
    rates: dict[str, dict[str, float]]
    seeds: dict[str, int]
    steady: dict[str, float]
    copies: tuple[tuple[int, int, int], ...]
    prompts: tuple[tuple[int, float], ...]
    together: tuple[int, ...]


DRAWS = {
    1: Draw(
        {
            "code": ((1500, 0.7, 6000), (14, 0.8, 120)),
            "conv": ((900, 0.7, 4000), (150, 0.7, 600)),
            "long": ((100, 0.5, 400), (450, 0.35, 900)),
        },
        # The recording that the first method was developed on had 2.2, 2.0 and 0.6.
        {
            "low": {"code": 2.6, "conv": 1.0, "long": 0.5},
            "high": {"code": 4.5, "conv": 3.2, "long": 1.3},
        },
        {"low": 20417, "high": 90533, "steady": 5501},
        {"conv": 3.0, "long": 0.5},
        (
            (512, 64, 60),
            (2048, 16, 20),
            (4096, 8, 12),
            (128, 256, 40),
            (1024, 128, 30),
            (64, 32, 200),
            (256, 512, 16),
        ),
        ((1024, 16.0), (4096, 5.0)),
        (8, 48),
    ),
    2: Draw(
        {
            "code": ((1900, 0.6, 7000), (20, 0.8, 150)),
            "conv": ((700, 0.8, 4000), (190, 0.6, 600)),
            "long": ((140, 0.6, 600), (380, 0.4, 900)),
        },
        {
            "low": {"code": 1.8, "conv": 1.4, "long": 0.6},
            "high": {"code": 3.4, "conv": 3.8, "long": 1.8},
        },
        {"low": 71003, "high": 33347, "steady": 6607},
        {"conv": 2.4, "code": 0.8, "long": 0.5},
        (
            (700, 48, 50),
            (1500, 24, 26),
            (3000, 12, 16),
            (96, 200, 50),
            (900, 100, 34),
            (48, 40, 190),
            (320, 400, 20),
        ),
        ((768, 20.0), (3000, 6.0)),
        (16, 96),
    ),
    3: Draw(
        {
            "code": ((1700, 0.65, 6500), (17, 0.8, 140)),
            "conv": ((800, 0.75, 4000), (170, 0.65, 600)),
            "long": ((120, 0.55, 500), (410, 0.4, 900)),
        },
        {
            "low": {"code": 2.2, "conv": 1.2, "long": 0.55},
            "high": {"code": 4.0, "conv": 3.5, "long": 1.5},
        },
        {"low": 48611, "high": 15239, "steady": 7703},
        {"conv": 2.7, "code": 0.4, "long": 0.5},
        (
            (600, 56, 55),
            (1800, 20, 22),
            (3500, 10, 14),
            (112, 224, 45),
            (960, 112, 32),
            (56, 36, 195),
            (288, 448, 18),
        ),
        ((896, 18.0), (3500, 5.5)),
        (12, 64),
    ),
    # Short enough for a model with a context of 4,096 tokens.
    4: Draw(
        {
            "code": ((1300, 0.5, 3300), (22, 0.7, 130)),
            "conv": ((600, 0.7, 3000), (180, 0.55, 600)),
            "long": ((160, 0.5, 500), (360, 0.45, 900)),
        },
        {
            "low": {"code": 2.4, "conv": 1.6, "long": 0.7},
            "high": {"code": 5.2, "conv": 4.6, "long": 2.1},
        },
        {"low": 86117, "high": 52289, "steady": 8819},
        {"conv": 2.2, "code": 0.6, "long": 0.6},
        (
            (640, 40, 52),
            (1600, 22, 24),
            (3200, 8, 16),
            (104, 212, 48),
            (880, 120, 33),
            (52, 44, 190),
            (304, 420, 19),
        ),
        ((832, 19.0), (3200, 6.0)),
        (14, 80),
    ),
}
DUPLICATE_SECONDS = 10.0
SETTLING_SECONDS = 20.0
LONGEST_PROMPT = 10_000


def tenant_plan(draw: Draw, tenant: str, rate: float, seconds: float, seed: int) -> list[Planned]:
    """Poisson arrivals with lognormal lengths."""
    dice = random.Random(f"{tenant}-{seed}")
    prompt, output = draw.tenants[tenant]

    def length(median: float, sigma: float, longest: int) -> int:
        return max(4, min(longest, round(median * math.exp(sigma * dice.gauss(0.0, 1.0)))))

    plan: list[Planned] = []
    at = dice.expovariate(rate)
    while at < seconds:
        plan.append(Planned(at, length(*prompt), length(*output), tenant))
        at += dice.expovariate(rate)
    return plan


def coalitions(draw: Draw, level: str, scale: float) -> list[tuple[str, list[Planned]]]:
    """Every subset twice. The second round goes backwards, so that drift hits all subsets alike."""
    plans = {
        tenant: tenant_plan(draw, tenant, rate, ARRIVAL_SECONDS * scale, draw.seeds[level])
        for tenant, rate in draw.rates[level].items()
    }
    subsets = [subset for size in (1, 2, 3) for subset in itertools.combinations(sorted(plans), size)]
    random.Random(draw.seeds[level]).shuffle(subsets)
    windows = []
    for round_number, order in enumerate((subsets, subsets[::-1])):
        for subset in order:
            plan = sorted((p for tenant in subset for p in plans[tenant]), key=lambda p: p.at_seconds)
            windows.append((f"{level}:{'+'.join(subset)}#{round_number}", plan))
    return windows


def duplicates(draw: Draw, scale: float) -> list[tuple[str, list[Planned]]]:
    """The same steady traffic each time, alone or with copies of one shape laid evenly over it."""
    seconds = DUPLICATE_SECONDS * scale
    steady = [
        planned
        for tenant, rate in draw.steady.items()
        for planned in tenant_plan(draw, tenant, rate, seconds, draw.seeds["steady"])
    ]
    windows = []
    for round_number in range(2):
        order = list(draw.copies)
        if round_number:
            order.reverse()
        for row, (prompt, output, copies) in enumerate(order):
            if row % 3 == 0:
                windows.append((f"dup:base#{round_number}.{row}", steady))
            count = max(1, round(copies * scale))
            extra = [Planned((i + 0.5) * seconds / count, prompt, output, "copies") for i in range(count)]
            windows.append((f"dup:{prompt}x{output}#{round_number}", steady + extra))
    return [(name, sorted(plan, key=lambda p: p.at_seconds)) for name, plan in windows]


def phases(draw: Draw, scale: float) -> list[tuple[str, list[Planned]]]:
    """Prompts with one token of answer at a steady rate, and short prompts that only decode together."""
    seconds = 8.0 * scale
    windows: list[tuple[str, list[Planned]]] = []
    for prompt, rate in draw.prompts:
        count = max(2, round(rate * seconds))
        windows.append(
            (f"phase:prefill-{prompt}", [Planned(i / rate, prompt, 1, "prefill") for i in range(count)])
        )
    for together in draw.together:
        tokens = max(20, round(1200 * scale))
        windows.append(
            (f"phase:decode-{together}", [Planned(0.0, 16, tokens, "decode") for _ in range(together)])
        )
    return [(f"{name}#{number}", plan) for number in range(2) for name, plan in windows]


PLANS = {
    "coalitions-low": lambda draw, scale: coalitions(draw, "low", scale),
    "coalitions-high": lambda draw, scale: coalitions(draw, "high", scale),
    "duplicates": duplicates,
    "phases": phases,
}


async def warm_up(endpoint: Endpoint, longest_prompt: int) -> None:
    """Each kind of step once, so that nothing is compiled or captured inside a window."""
    for wave in ([(64, 40)] * 2, [(2000, 8)] * 4, [(300, 60)] * 48, [(5000, 4), (16, 80)]):
        now = time.time()
        jobs = []
        for prompt, output in wave:
            planned = Planned(0.0, min(prompt, longest_prompt), output, "warm-up")
            sent = Sent("warm-up", "warm-up", f"warm-{random.SystemRandom().randrange(1 << 48):x}", now)
            jobs.append((planned, sent))
        await asyncio.gather(*(endpoint.complete(p, s, hash(s.request_id)) for p, s in jobs))
        errors = [sent.error for _, sent in jobs if sent.error]
        if errors:
            raise SystemExit(f"experiments: the server does not answer as asked: {errors[0]}")


def settled(
    endpoint: Endpoint, windows: list[dict[str, Any]], *, limit_seconds: float = SETTLING_SECONDS
) -> dict[str, Any]:
    """The server's energy accounting once it is final: each request's energy and each window's split.

    Waits until every request is final and the last window's answer is complete: its end is final only when
    the counter has been read behind it. After `limit_seconds` the answers are taken as they are, and
    said to be early.
    """
    ids = [request["request_id"] for window in windows for request in window["requests"]]
    deadline = time.time() + limit_seconds
    while True:
        answers: list[Any] = []
        for first in range(0, len(ids), 5000):
            answers += endpoint.post("/energy/requests", {"ids": ids[first : first + 5000]})["requests"]
        open_requests = sum(answer["status"] != "settled" for answer in answers)
        last = split(endpoint, windows[-1])
        if last["complete"] and not open_requests:
            break
        if time.time() > deadline:
            print(
                f"experiments: not settled after {limit_seconds:g} s: {open_requests} requests open; last "
                f"window complete: {last['complete']}, its flags: {', '.join(last['flags']) or 'none'}",
                flush=True,
            )
            break
        time.sleep(min(1.0, limit_seconds))
    splits = [*(split(endpoint, window) for window in windows[:-1]), last]
    return {"requests": answers, "windows": splits, "energy": endpoint.get("/energy")}


def split(endpoint: Endpoint, window: dict[str, Any]) -> Any:
    """What the server says of a window, by group."""
    return endpoint.get(f"/energy?start={window['start_unix']:.6f}&end={window['end_unix']:.6f}&group_by=tag")


async def run(
    name: str, url: str, out: Path, scale: float, draw: int, *, longest_prompt: int = LONGEST_PROMPT
) -> None:
    endpoint = Endpoint(url)
    await warm_up(endpoint, longest_prompt)
    idle_start = time.time()
    await asyncio.sleep(6.0 * min(scale, 1.0) + 1.0)
    idle = {"name": "idle", "start_unix": idle_start + 1.0, "end_unix": time.time(), "requests": []}
    windows: list[dict[str, Any]] = [idle]
    plans = PLANS[name](DRAWS[draw], scale)
    longest = max(planned.prompt_tokens for _, plan in plans for planned in plan)
    if longest > longest_prompt:
        raise SystemExit(f"experiments: --draw {draw} has prompts of {longest} tokens; try --draw 4")
    for window, plan in plans:
        windows.append(await play(endpoint, window, plan, calm_seconds=CALM_SECONDS))
    result: dict[str, Any] = {"schema": "wattload.experiment/1", "experiment": name, "scale": scale}
    result["draw"] = draw
    result["windows"] = windows
    try:
        result["settled"] = settled(endpoint, windows)
    except (OSError, KeyError, ValueError) as error:
        # The recording is the measurement; the server's own accounting is only compared with it.
        result["settled"] = None
        print(f"experiments: the server's /energy could not be read: {error}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(out, "wt") as file:
        json.dump(result, file)
    failed = sum(bool(r["error"]) for w in windows for r in w["requests"])
    print(f"{name}: {len(windows)} windows, {failed} failed requests -> {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", choices=sorted(PLANS))
    parser.add_argument("--url", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--draw", type=int, default=2, choices=sorted(DRAWS), help="which of the drawn loads")
    parser.add_argument("--highest-token", type=int, default=traffic.VOCABULARY[1])
    parser.add_argument("--longest-prompt", type=int, default=LONGEST_PROMPT, help="in tokens")
    options = parser.parse_args()
    traffic.VOCABULARY = (min(traffic.VOCABULARY[0], options.highest_token // 2), options.highest_token)
    asyncio.run(
        run(
            options.experiment,
            options.url,
            options.out,
            options.scale,
            options.draw,
            longest_prompt=options.longest_prompt,
        )
    )


if __name__ == "__main__":
    main()
