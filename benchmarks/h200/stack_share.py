"""How much of an API process's time is wattload's own: a stack sampler beside a closed loop.

    python benchmarks/h200/stack_share.py URL --out FILE.json [--window closed:256] [--seconds 8]

py-spy (0.4 or newer) samples the processes that listen on the port 200 times a second, only threads that
hold the interpreter lock. A sample is ours where, from its innermost frame outwards, one of wattload comes
before one of the app or its server: what the app does beneath the middleware is the app's. Prints our share
of the main thread's samples and of all, and the ten functions of ours that were seen most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import traffic
from production_load import listeners, load

RATE_HZ = 200
# Frames of the app and its server: beneath one of them nothing is ours, unless a frame of ours follows.
THEIRS = ("starlette/", "uvicorn/", "vllm/", "fastapi/", "uvloop", "asyncio/", "prometheus_fastapi")


def ours(frames: list[str]) -> str | None:
    """The innermost function of ours that the sample's time is spent for; None where it is the app's."""
    for frame in reversed(frames):
        if "wattserve/" in frame or "wattmeter/" in frame:
            return frame
        if any(part in frame for part in THEIRS):
            return None
    return None


def counted(raw: str) -> dict[str, object]:
    """Shares of samples in py-spy's raw format: `frame;frame;... count` a line, the thread first."""
    samples: Counter[str] = Counter()
    own: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for row in raw.splitlines():
        stack, _, number = row.rpartition(" ")
        if not number.isdigit():
            continue
        frames = stack.split(";")
        thread = "main" if "MainThread" in frames[0] else "others"
        samples[thread] += int(number)
        function = ours(frames)
        if function is not None:
            own[thread] += int(number)
            functions[function.rpartition(":")[0]] += int(number)
    everything = sum(samples.values())
    return {
        "samples": dict(samples),
        "ours": dict(own),
        "share_of_main": own["main"] / samples["main"] if samples["main"] else None,
        "share_of_all": sum(own.values()) / everything if everything else None,
        "functions": functions.most_common(10),
    }


async def sampled(
    endpoint: traffic.Endpoint, window: str, seconds: float, sampler: str, folder: Path
) -> list[str]:
    """Loads the endpoint and samples its processes in the middle of it; the raw output of each."""
    working = asyncio.create_task(load(endpoint, window, seconds + 4.0, "stack-share"))
    await asyncio.sleep(5.0)
    running = []
    for pid in listeners(endpoint.port):
        command = [
            sampler,
            "record",
            "--pid",
            str(pid),
            "--rate",
            str(RATE_HZ),
            "--duration",
            f"{seconds:.0f}",
        ]
        command += ["--format", "raw", "--gil", "--threads", "--full-filenames", "--nonblocking"]
        out = folder / f"{pid}.txt"
        process = await asyncio.create_subprocess_exec(
            *command, "--output", str(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        running.append((process, out))
    texts = []
    for process, out in running:
        _, errors = await process.communicate()
        if process.returncode:
            print(f"stack_share: {errors.decode().strip()[-300:]}", file=sys.stderr)
        texts.append(out.read_text() if out.exists() else "")
    await working
    return texts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--window", default="closed:256")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--sampler", default=shutil.which("py-spy") or "py-spy")
    parser.add_argument("--highest-token", type=int, default=traffic.VOCABULARY[1], help="for small models")
    options = parser.parse_args(arguments)
    if options.highest_token < traffic.VOCABULARY[1]:
        traffic.VOCABULARY = (300, options.highest_token)
    endpoint = traffic.Endpoint(options.url)
    with tempfile.TemporaryDirectory() as folder:
        texts = asyncio.run(sampled(endpoint, options.window, options.seconds, options.sampler, Path(folder)))
    result = {"schema": "wattload.stack_share/1", "window": options.window, **counted("\n".join(texts))}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if result["samples"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
