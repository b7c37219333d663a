"""What a step record costs: time on the engine's own thread, and on the recorder's thread, a step.

    python benchmarks/vllm_records.py [--requests 1 64 256 1024] [--steps 400] [--json FILE]

The scheduler outputs are objects of vLLM's own classes where vLLM is installed, and stand-ins with the same
fields where it is not; the output says which. Each size is measured twice: with the same requests in every
decoding step, and with one leaving and one arriving every second step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wattserve.vllm.records import StepRecorder

STEPS_A_FLUSH = 8  # 50 ms of 6 ms steps


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
    recorder = StepRecorder(lambda message: not sent.append(len(message)))
    on_engine, on_recorder = [], []
    outputs = made_steps(requests, steps, churn=churn)
    for start in range(0, steps, STEPS_A_FLUSH):
        for output in outputs[start : start + STEPS_A_FLUSH]:
            begin = time.perf_counter_ns()
            recorder.launched(output)
            recorder.ended(output, time.monotonic_ns(), None)
            on_engine.append(time.perf_counter_ns() - begin)
        begin = time.perf_counter_ns()
        recorder.flush()
        on_recorder.append(time.perf_counter_ns() - begin)
    return {
        "running_requests": requests,
        "requests_change": churn,
        "engine_thread_us_p50": statistics.median(on_engine) / 1e3,
        "engine_thread_us_p99": statistics.quantiles(on_engine, n=100)[98] / 1e3,
        "recorder_thread_us_mean": sum(on_recorder) / steps / 1e3,
        "message_bytes_a_step": sum(sent) / steps,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
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
