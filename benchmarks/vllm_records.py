"""What a step record costs: time on the engine's own thread, and on the recorder's thread, a step.

    python benchmarks/vllm_records.py [--requests 1 64 256 1024] [--steps 400] [--engine SECONDS]

With `--engine` a thread takes steps as an engine's does (2 ms of Python, then 5 ms in which it waits for the
device), and counted is how often it loses the interpreter lock to the recorder in the first part. To compare
with an older version put its `server` folder on PYTHONPATH.

The scheduler outputs are objects of vLLM's own classes where vLLM is installed, and stand-ins with the same
fields where it is not; the output says which. Each size is measured twice: with the same requests in every
decoding step, and with one leaving and one arriving every second step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wattserve.vllm.recorder import StepRecorder

STEPS_A_FLUSH = 8  # 50 ms of 6 ms steps
ENGINE_BUSY_NS = 2_000_000
ENGINE_WAITS_SECONDS = 0.005


def classes() -> tuple[Any, Any, Any, str]:
    """SchedulerOutput, CachedRequestData, NewRequestData and where they come from."""
    try:
        from vllm.v1.core.sched import output
        from vllm.version import __version__
    except ImportError:
        return SimpleNamespace, SimpleNamespace, SimpleNamespace, "stand-ins (vLLM is not installed here)"
    return output.SchedulerOutput, output.CachedRequestData, output.NewRequestData, f"vLLM {__version__}"


def made_steps(requests: int, steps: int, *, churn: bool) -> list[Any]:
    """`steps` decoding steps of `requests` requests; with `churn` every second step replaces one of them."""
    scheduler_output, cached_data, new_data, _ = classes()
    running = [f"cmpl-0123456789abcdef{i:08d}-0-{i:08x}" for i in range(requests)]
    born = requests
    made = []
    for step in range(steps):
        new, gone = [], set()
        # The first step introduces everybody; after that only the churn does.
        if step == 0:
            new, old = running, []
        elif churn and step % 2:
            gone = {running[0]}
            new = [f"cmpl-0123456789abcdef{born:08d}-0-{born:08x}"]
            born += 1
            old = running[1:]
            running = old + new
        else:
            old = running
        made.append(
            scheduler_output(
                scheduled_new_reqs=[
                    new_data(
                        req_id=i,
                        prompt_token_ids=[7] * 500,
                        mm_features=[],
                        sampling_params=None,
                        pooling_params=None,
                        block_ids=([],),
                        num_computed_tokens=0,
                        lora_request=None,
                    )
                    for i in new
                ],
                scheduled_cached_reqs=cached_data(
                    req_ids=list(old),
                    resumed_req_ids=set(),
                    new_token_ids=[],
                    all_token_ids={},
                    new_block_ids=[None] * len(old),
                    num_computed_tokens=[500 + step] * len(old),
                    num_output_tokens=[step] * len(old),
                ),
                num_scheduled_tokens=dict.fromkeys(old, 1) | dict.fromkeys(new, 500),
                total_num_scheduled_tokens=len(old) + 500 * len(new),
                scheduled_spec_decode_tokens={},
                scheduled_encoder_inputs={},
                num_common_prefix_blocks=[0],
                finished_req_ids=gone,
                free_encoder_mm_hashes=[],
            )
        )
    return made


def measure(requests: int, steps: int, *, churn: bool) -> dict[str, Any]:
    """Microseconds a step: median and 99th percentile on the engine's thread, mean on the recorder's."""
    sent: list[int] = []

    def send(message: list[bytes]) -> bool:
        sent.append(sum(map(len, message)))
        return True

    recorder = StepRecorder(send)
    on_engine, on_recorder = [], []
    outputs = made_steps(requests, steps, churn=churn)
    for start in range(0, steps, STEPS_A_FLUSH):
        for output in outputs[start : start + STEPS_A_FLUSH]:
            begin = time.perf_counter_ns()
            recorder.launched(output)
            recorder.ended(output, time.monotonic_ns(), None)
            on_engine.append(time.perf_counter_ns() - begin)
        # CPU time: other work on the machine must not count.
        begin = time.thread_time_ns()
        recorder.flush()
        on_recorder.append(time.thread_time_ns() - begin)
    return {
        "running_requests": requests,
        "requests_change": churn,
        "engine_thread_us_p50": statistics.median(on_engine) / 1e3,
        "engine_thread_us_p99": statistics.quantiles(on_engine, n=100)[98] / 1e3,
        "recorder_thread_us_mean": sum(on_recorder) / steps / 1e3,
        "message_bytes_a_step": sum(sent) / steps,
    }


def hand_overs(outputs: list[Any], recorder: StepRecorder) -> int:
    """How often the engine's thread lost the interpreter lock to the recorder in the Python part of a step.

    A thread that waits for a lock gives its core back by itself, which the kernel counts apart from what a
    busy machine takes from it.
    """
    lost = 0
    for number, output in enumerate(outputs):
        used = time.thread_time_ns()
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        recorder.launched(output)
        while time.thread_time_ns() - used < ENGINE_BUSY_NS:
            sum(range(100))
        lost += resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        time.sleep(ENGINE_WAITS_SECONDS)
        finished: Any = {"gone"} if number % 5 == 0 else ()
        recorder.ended(output, time.monotonic_ns(), None, finished=finished)
    return lost


def beside_an_engine(seconds: float, requests: int) -> dict[str, Any]:
    """Hand-overs of the interpreter lock per 100 steps of which each fifth ends a request, and messages."""
    outputs = made_steps(requests, max(100, round(seconds / 0.007)), churn=False)
    messages = 0

    def send(message: list[bytes]) -> bool:
        nonlocal messages
        messages += 1
        return True

    recorder = StepRecorder(send)
    recorder.start()
    lost = hand_overs(outputs, recorder)
    recorder.stop()
    return {
        "running_requests": requests,
        "steps": len(outputs),
        "hand_overs_per_100_steps": 100.0 * lost / len(outputs),
        "messages_per_100_steps": 100.0 * messages / len(outputs),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", type=float, metavar="SECONDS", help="measure beside an engine's thread")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.engine:
        for requests in options.requests:
            print(json.dumps(beside_an_engine(options.engine, requests)), flush=True)
        return 0
    print(f"scheduler outputs: {classes()[3]}; Python {sys.version.split()[0]}; microseconds a step")
    print(
        f"{'running':>8} {'change':>7} {'engine p50':>11} {'engine p99':>11} {'recorder mean':>14} {'sum':>7}"
    )
    rows = []
    for requests in options.requests:
        for churn in (False, True):
            row = measure(requests, options.steps, churn=churn)
            rows.append(row)
            both = row["engine_thread_us_p50"] + row["recorder_thread_us_mean"]
            print(
                f"{requests:8d} {'yes' if churn else 'no':>7} {row['engine_thread_us_p50']:11.2f}"
                f" {row['engine_thread_us_p99']:11.2f} {row['recorder_thread_us_mean']:14.1f} {both:7.1f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"classes": classes()[3], "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
