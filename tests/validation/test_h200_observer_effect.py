"""The observer effect's client, its energy reader and its statistics, without a GPU or vLLM."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wattmeter.meters.modelled import ModelledMeter

H200 = Path(__file__).parents[2] / "benchmarks" / "h200"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(sys, "path", [str(H200), *sys.path])
    import observer_effect
    import paired
    import streaming

    return SimpleNamespace(observer_effect=observer_effect, paired=paired, streaming=streaming)


def windows(*, factor: float, noise: float, blocks: int = 15) -> list[dict[str, Any]]:
    """Blocks that drift by tens of per cent, both arms alike; metered is `factor` times plain."""
    dice = random.Random(4)
    made = []
    for block in range(blocks):
        drift = 1.0 + 0.2 * math.sin(block)
        for arm, times in (("metered", factor), ("plain", 1.0)):
            value = drift * times * math.exp(noise * dice.gauss(0, 1))
            for kind in ("open", "burst"):
                made.append(
                    {
                        "block": block,
                        "arm": arm,
                        "kind": kind,
                        "output_tokens_per_second": 9000 * value,
                        "joules": 4000 * value,
                        "tpot_p99_seconds": 0.007 * value,
                        "tpot_microseconds": [
                            round(7000 * value * (1 + dice.random() / 50)) for _ in range(100)
                        ],
                    }
                )
    return made


def test_a_drift_of_both_arms_leaves_the_difference_sharp(modules: Any) -> None:
    rows = {(r["window"], r["figure"]): r for r in modules.paired.compared(windows(factor=1.002, noise=1e-3))}
    for name in (("burst", "output_tokens_per_second"), ("open", "joules"), ("open", "tpot_p99_pooled")):
        low, high = rows[name]["ci95"]
        assert low <= rows[name]["change"] <= high
        assert low < 0.002 < high, name
        assert rows[name]["within_limit"], name
        assert rows[name]["blocks"] == 15
    assert rows["open", "tpot_p99_pooled"]["requests"] == 1500
    assert rows["open", "ttft_p50_seconds"]["change"] is None
    assert "not measured" in modules.paired.line(rows["open", "ttft_p50_seconds"])


def test_an_interval_that_leaves_the_limit_on_one_side_is_not_within(modules: Any) -> None:
    rows = modules.paired.compared(windows(factor=1.02, noise=1e-3))
    judged = {(r["window"], r["figure"]): r["within_limit"] for r in rows if r["change"] is not None}
    assert judged["open", "joules"] is False
    assert judged["open", "tpot_p99_pooled"] is False
    wide = modules.paired.mean_change(windows(factor=1.0, noise=0.03), "open", "joules", 0.005)
    assert wide["within_limit"] is False
    assert "NOT within 0.5%" in modules.paired.line(wide)


def test_half_a_block_is_not_used_and_a_zero_gives_no_ratio(modules: Any) -> None:
    made = windows(factor=1.0, noise=1e-3, blocks=3)
    assert modules.paired.mean_change(made[:-2], "burst", "joules")["blocks"] == 2
    made[0]["joules"] = 0.0
    row = modules.paired.mean_change(made, "open", "joules")
    assert (row["change"], row["reason"]) == (None, "not above 0 in every window")
    made[0]["tpot_microseconds"] = [0] * 100
    assert modules.paired.pooled_p99_change(made, "open")["change"] is None
    few = modules.paired.pooled_p99_change(made, "burst", 0.5)
    assert few["change"] is not None
    assert few["within_limit"] is None, "three blocks resampled allow no claim"


def test_the_reader_gives_the_energy_of_a_span_or_none(modules: Any) -> None:
    reader = modules.observer_effect.Reader(ModelledMeter(lambda ns: 400.0 * ns * 1e-9))
    try:
        time.sleep(2.5)  # the first second of it finds out when the counter is updated
        end = time.time()
        span = reader.joules(end - 0.6, end)
        assert span["flags"] == []
        assert span["joules"] == pytest.approx(240.0, rel=0.02), span["joules_deviation"]
        before = reader.joules(end - 60.0, end)
        assert before["joules"] is None
        assert before["flags"] == ["partial_coverage"]
    finally:
        reader.close()
    assert modules.observer_effect.Reader(None).joules(1.0, 2.0)["joules"] is None


def options(out: Path, **more: Any) -> argparse.Namespace:
    plain = {
        "rate": 12.0,
        "seconds": 12.0,
        "lead_seconds": 2.0,
        "open_shape": (512, 128),
        "burst": 256,
        "burst_shape": (256, 256),
        "highest_token": 120_000,
    }
    return argparse.Namespace(out=out, **{**plain, "resume": False, **more})


def test_blocks_are_added_only_to_a_result_of_the_same_settings(modules: Any, tmp_path: Path) -> None:
    observer = modules.observer_effect
    result = observer.begun(options(tmp_path))
    result["windows"] = windows(factor=1.0, noise=0.0, blocks=2)
    observer.save(result, tmp_path / "observer_effect.json")
    with pytest.raises(SystemExit, match="--resume adds"):
        observer.begun(options(tmp_path))
    assert observer.begun(options(tmp_path, resume=True)) == json.loads(json.dumps(result))
    with pytest.raises(SystemExit, match="other settings"):
        observer.begun(options(tmp_path, resume=True, rate=10.0))


EVENT = b'data: {"id":"a","choices":[{"index":0,"text":"\\"index\\":"}]}\n\n'
USAGE = b'data: {"id":"a","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def streamed(modules: Any, *pieces: bytes, pause: float = 0.05) -> Any:
    """What the client makes of one answer that comes in these pieces."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        assert len(body["prompt"]) == 3
        assert body["max_tokens"] == body["min_tokens"] == 2
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        writer.close()

    async def both() -> Any:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        endpoint = SimpleNamespace(
            model="m", host="127.0.0.1", port=server.sockets[0].getsockname()[1], base=""
        )
        async with server:
            plan = modules.streaming.at_once((3, 2), requests=1)
            (answered,) = await modules.streaming.play(endpoint, plan, "seed")
        return answered

    return asyncio.run(both())


def test_token_times_are_those_of_events_with_tokens_also_when_cut(modules: Any) -> None:
    cut = EVENT.index(b'"index":') + 4
    pieces = (HEAD, EVENT, EVENT[:cut], EVENT[cut:], USAGE + b"data: [DONE]\n\n")
    answered = streamed(modules, *pieces)
    assert (answered.prompt_tokens, answered.output_tokens) == (3, 2)
    assert answered.sent_unix < answered.first_token_unix < answered.last_token_unix < answered.end_unix
    # The second token's mark was whole with the fourth piece, two pauses after the first token.
    assert answered.last_token_unix - answered.first_token_unix == pytest.approx(0.1, abs=0.04)
    found = modules.streaming.figures([answered])
    assert found["output_tokens"] == 2
    assert found["tpot_microseconds"] == [round(1e6 * (answered.last_token_unix - answered.first_token_unix))]


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((b"HTTP/1.1 500 Oops\r\n\r\n{}",), "500 Oops"),
        ((HEAD, EVENT, EVENT), "not a whole stream"),
        ((HEAD, EVENT, b"data: [DONE]\n\n"), "without usage"),
        ((HEAD, EVENT, USAGE.replace(b":2}", b":1}"), b"data: [DONE]\n\n"), "not as planned"),
    ],
)
def test_what_is_not_the_planned_answer_is_an_error(
    modules: Any, pieces: tuple[bytes, ...], reason: str
) -> None:
    with pytest.raises(modules.streaming.StreamError, match=reason):
        streamed(modules, *pieces, pause=0.0)


def test_the_same_seed_sends_the_same_prompts(modules: Any) -> None:
    endpoint = SimpleNamespace(model="m", host="h", port=1, base="")
    plan = modules.streaming.constant((20, 5), rate=4.0, seconds=2.0)
    assert [planned.at_seconds for planned in plan] == [row / 4.0 for row in range(8)]
    first, again, other = (
        modules.streaming.request_bytes(endpoint, plan[0], seed) for seed in ("1-open", "1-open", "2-open")
    )
    assert first == again != other
