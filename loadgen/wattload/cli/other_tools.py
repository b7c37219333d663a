"""Flags and commands that people know from other load generators, and what wattload has in their place.

Names whose values mean the same are further names of a flag (`flags` in the stage's options). Here are those
that need a sentence: of `vllm bench serve`, AIPerf, guidellm, k6 and Locust.
"""

from __future__ import annotations

_CONCURRENCY = "--concurrency N keeps N requests in flight"
_WORKLOAD = "--trace NAME|FILE chooses the workload (conv, code, agent, random:prompt=512,output=128, a file)"
_LENGTHS = "--trace random:prompt=512,output=128 draws prompts and outputs of these lengths"
_OUT = "--out DIR is the run directory; it holds run.json, report.html and the tables"
_HTTP = "the URL is the first argument: wattload run http://localhost:8000"
_BURST = "--arrivals gamma:cv=2 sends in bursts; cv is 1/sqrt(burstiness)"
_RAMP = "--arrivals ramp:from=1,to=10 raises the rate over the run"
_PERCENTILES = "mean, p50, p90, p95 and p99 are always reported"
_TOKENIZER = "--tokenizer FILE counts text prompts; lengths are exact without it"
_API = "--api completions, chat, responses, messages, embeddings, rerank or score chooses the endpoint"

FLAGS: dict[str, str] = {
    # vllm bench serve
    "--host": _HTTP,
    "--port": _HTTP,
    "--endpoint": _API,
    "--backend": f"{_API}; every server of these APIs is driven alike",
    "--endpoint-type": _API,
    "--dataset-name": _WORKLOAD,
    "--dataset-path": _WORKLOAD,
    "--dataset": _WORKLOAD,
    "--burstiness": _BURST,
    "--random-input-len": _LENGTHS,
    "--random-output-len": _LENGTHS,
    "--input-len": _LENGTHS,
    "--output-len": _LENGTHS,
    "--save-result": _OUT,
    "--result-dir": _OUT,
    "--result-filename": _OUT,
    "--percentile-metrics": _PERCENTILES,
    "--metric-percentiles": _PERCENTILES,
    "--ignore-eos": "--exact-output (the default) sends ignore_eos and min_tokens",
    "--ramp-up-strategy": _RAMP,
    "--disable-tqdm": "--progress none shows no progress",
    "--served-model-name": "--model NAME is the name that the endpoint lists",
    # AIPerf
    "--endpoint-path": _API,
    "--streaming": "responses are always streamed",
    "--benchmark-duration": "--duration 60s sends for 60 seconds",
    "--warmup-request-count": "--warmup 10s leaves the first 10 seconds out; the default is detected",
    "--input-file": _WORKLOAD,
    "--public-dataset": "`wattload traces` lists the traces to fetch; --trace FILE replays one",
    "--custom-dataset-type": "the format of a trace file is recognised by its header; `wattload traces"
    " check FILE`",
    "--isl": _LENGTHS,
    "--osl": _LENGTHS,
    "--synthetic-input-tokens-mean": _LENGTHS,
    "--output-tokens-mean": _LENGTHS,
    "--fixed-schedule": "--arrivals trace sends at the trace's own times",
    "--gpu-telemetry": "--energy dcgm+http://HOST:9400/metrics reads a DCGM exporter",
    "--extra-inputs": "--body JSON is merged into every request",
    "--random-seed": "--seed N fixes the schedule",
    "--output-artifact-dir": _OUT,
    "--artifact-dir": _OUT,
    # guidellm
    "--data": _WORKLOAD,
    "--rate-type": "--arrivals poisson, constant or closed:concurrency=N; `wattload sweep` runs several"
    " rates",
    "--profile": "--rate R, --concurrency N or --arrivals PROCESS; `wattload sweep` runs several rates",
    "--max-seconds": "--duration 60s sends for 60 seconds",
    "--max-requests": "--requests N sends at most N requests",
    "--outputs": _OUT,
    "--output-path": _OUT,
    "--processor": _TOKENIZER,
    "--backend-kwargs": "--body JSON is merged into every request, --header adds a header",
    "--warmup-percent": "--warmup 10s leaves the first 10 seconds out; the default is detected",
    # k6 and Locust
    "--vus": _CONCURRENCY,
    "--users": _CONCURRENCY,
    "--iterations": "--requests N sends at most N requests",
    "--stages": "--arrivals steps:rates=1/5/10 changes the rate in steps",
    "--run-time": "--duration 60s sends for 60 seconds",
    "--spawn-rate": _RAMP,
    "--threshold": "--assert 'latency.ttft_seconds.p99 < 500ms' exits 1 unless it holds",
    "--thresholds": "--assert 'latency.ttft_seconds.p99 < 500ms' exits 1 unless it holds",
    "--html": _OUT,
    "--csv": _OUT,
    "--json": "--progress json writes progress as JSON; `wattload report RUN --json` prints run.json",
    "--headless": "wattload has no web page of its own; `locust -f locustfile.py` has one",
    # General
    "--api-key": "--api-key-env NAME names the environment variable that holds the key: everybody sees a"
    " command line",
    "--timeout": "--total-timeout, --first-token-timeout and --between-tokens-timeout limit a request",
    "--output": _OUT,
    "--output-dir": _OUT,
    "--format": "`wattload report RUN --json` prints run.json; report.html and the Parquet tables are in"
    " the run",
    "--tokens": _LENGTHS,
    "--quiet": "--progress none shows no progress",
    "--gpus": "--energy URL?gpu=0 selects GPUs of a source of energy",
}
COMMANDS: dict[str, str] = {
    "bench": "`wattload run URL` runs one load test",
    "benchmark": "`wattload run URL` runs one load test",
    "test": "`wattload run URL` runs one load test",
    "start": "`wattload run URL` runs one load test",
    "serve": "`wattserve sim` serves on a simulated GPU, `wattserve vllm MODEL` on a real one",
    "sim": "`wattserve sim` serves on a simulated GPU",
    "vllm": "`wattserve vllm MODEL` serves with a meter",
    "meter": "`wattserve meter` meters any other server's GPUs",
    "version": "`wattload --version` prints the version",
    "help": "`wattload --help` lists the commands, `wattload COMMAND --help` their flags",
    "ls": "`ls runs` lists runs; `wattload traces` lists workloads",
    "list": "`wattload traces` lists workloads",
    "datasets": "`wattload traces` lists workloads",
    "workloads": "`wattload traces` lists workloads",
    "diff": "`wattload compare RUN RUN` compares runs",
    "check": "`wattload doctor URL` checks an endpoint, `wattload traces check FILE` a trace",
    "show": "`wattload report RUN` prints a run, `wattload traces show NAME` a workload",
    "html": "`wattload report RUN` writes report.html",
    "analyze": "`wattload report RUN` computes a run's figures again",
}


def flag_advice(flag: str) -> str | None:
    """What wattload has in the place of another tool's flag; None for one that none of them has."""
    return FLAGS.get(flag.partition("=")[0])


def command_advice(name: str) -> str | None:
    """What wattload has in the place of a command that it does not have."""
    return COMMANDS.get(name)
