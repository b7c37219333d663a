"""What `compare.py` compares: for each load generator, how it is started and where it keeps what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure_self import CHUNKS

PROMPT = 100


@dataclass
class Seen:
    """What a client recorded: starts (any clock), TTFTs and, where it keeps them, gaps, one entry a
    request.
    """

    starts: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gaps: list[list[float]] | None = None
    lag: list[float] | None = None


@dataclass
class Job:
    url: str
    rate: float
    seconds: float
    folder: Path
    cache: Path
    vllm_python: str | None

    @property
    def count(self) -> int:
        return round(self.rate * self.seconds)


def wattload(job: Job) -> list[str]:
    trace = job.folder / "trace.csv"
    rows = "".join(f"{i},{PROMPT},{CHUNKS}\n" for i in range(job.count * 2))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + rows)
    return [
        sys.executable, "-m", "wattload.cli", "run", job.url, "--trace", str(trace),
        "--rate", f"{job.rate:g}", "--arrivals", "poisson", "--duration", f"{job.seconds:g}",
        "--energy", "none", "--progress", "none", "--out", str(job.folder / "run"), "--no-report",
        "--warmup", "0",
    ]  # fmt: skip


def read_wattload(job: Job) -> Seen:
    rows = pq.read_table(job.folder / "run" / "requests.parquet").to_pylist()
    done = [row for row in rows if row["outcome"] == "completed"]
    return Seen(
        [row["sent_unix"] for row in done],
        [row["first_token_unix"] - row["sent_unix"] for row in done],
        [row["itl_seconds"] for row in done],
        [row["sent_unix"] - row["due_unix"] for row in rows if row["sent_unix"] is not None],
    )


# Its `vllm` script looks for a distribution of that name, which the build for the CPU has not.
VLLM = "; ".join(
    (
        "import argparse",
        "from vllm.benchmarks.serve import add_cli_args, main",
        "parser = argparse.ArgumentParser()",
        "add_cli_args(parser)",
        "main(parser.parse_args())",
    )
)


def vllm(job: Job) -> list[str]:
    return [
        str(job.vllm_python), "-c", VLLM, "--backend", "openai", "--base-url", job.url, "--endpoint",
        "/v1/completions", "--model", "mock", "--tokenizer", tokenizer(job), "--dataset-name", "random",
        "--random-input-len", str(PROMPT), "--random-output-len", str(CHUNKS), "--ignore-eos",
        "--request-rate", f"{job.rate:g}", "--num-prompts", str(job.count), "--save-result",
        "--save-detailed", "--result-dir", str(job.folder), "--result-filename", "vllm.json",
        "--disable-tqdm",
    ]  # fmt: skip


def read_vllm(job: Job) -> Seen:
    said = json.loads((job.folder / "vllm.json").read_text())
    return Seen(said["start_times"], said["ttfts"], said["itls"])


def aiperf(job: Job) -> list[str]:
    return [
        peer(job, "aiperf"), "profile", "-m", "mock", "--url", job.url, "--endpoint-type", "completions",
        "--streaming", "--request-rate", f"{job.rate:g}", "--arrival-pattern", "poisson", "--request-count",
        str(job.count), "--tokenizer", tokenizer(job), "--isl", str(PROMPT), "--osl", str(CHUNKS),
        "--extra-inputs", "ignore_eos:true", "--ui", "none", "--artifact-dir", str(job.folder / "aiperf"),
    ]  # fmt: skip


def read_aiperf(job: Job) -> Seen:
    lines = (job.folder / "aiperf" / "profile_export.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return Seen(
        [row["metadata"]["request_start_ns"] / 1e9 for row in rows],
        [row["metrics"]["time_to_first_token"]["value"] / 1e3 for row in rows],
        [[gap / 1e3 for gap in row["metrics"]["inter_chunk_latency"]["value"]] for row in rows],
    )


def guidellm(job: Job) -> list[str]:
    return [
        peer(job, "guidellm"), "run", "--backend", f"kind=openai_http,target={job.url},model=mock",
        "--profile", f"kind=poisson,rate={job.rate:g}", "--disable-console",
        "--constraint", f"kind=max_duration,seconds={job.seconds:g}",
        "--tokenizer", f"kind=hf_auto,model={tokenizer(job)}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={CHUNKS}",
        "--output", f"kind=json,path={job.folder / 'guidellm.json'}",
    ]  # fmt: skip


def read_guidellm(job: Job) -> Seen:
    said = json.loads((job.folder / "guidellm.json").read_text())
    rows = said["benchmarks"][0]["requests"]["successful"]
    timings = [row["info"]["timings"] for row in rows]
    return Seen(
        [row["request_start_time"] for row in rows],
        [row["time_to_first_token_ms"] / 1e3 for row in rows],
        lag=[t["request_start"] - t["targeted_start"] for t in timings],
    )


def inference_perf(job: Job) -> list[str]:
    def lengths(tokens: int) -> dict[str, int]:
        return {"min": tokens, "max": tokens, "mean": tokens, "std_dev": 0, "total_count": job.count * 2}

    settings = {
        "load": {
            "type": "poisson",
            "stages": [{"rate": job.rate, "duration": round(job.seconds)}],
            "num_workers": 1,
            # Its limit of 100 would be a queue in the client.
            "worker_max_concurrency": 5000,
        },
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": "mock", "base_url": job.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": tokenizer(job)},
        "data": {
            "type": "random",
            "input_distribution": lengths(PROMPT),
            "output_distribution": lengths(CHUNKS),
        },
        "report": {"request_lifecycle": {"summary": True, "per_stage": False, "per_request": True}},
        "storage": {"local_storage": {"path": str(job.folder / "inference-perf")}},
    }
    # JSON is YAML.
    (job.folder / "inference-perf.yaml").write_text(json.dumps(settings))
    return [peer(job, "inference-perf"), "-c", str(job.folder / "inference-perf.yaml")]


def read_inference_perf(job: Job) -> Seen:
    rows = json.loads((job.folder / "inference-perf" / "per_request_lifecycle_metrics.json").read_text())
    times = [(row["start_time"], row["info"]["response_metrics"]["chunk_times"]) for row in rows]
    return Seen(
        [start for start, _ in times],
        [chunks[0] - start for start, chunks in times],
        [np.diff(chunks).tolist() for _, chunks in times],
    )


def peer(job: Job, name: str) -> str:
    """The command of a peer, installed on first use."""
    place = job.cache / name
    command = place / "bin" / name
    if not command.exists():
        python = next((p for p in ("python3.12", sys.executable) if found(p)), sys.executable)
        subprocess.run([python, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin" / "pip"), "install", "-q", name], check=True)
    return str(command)


def found(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def tokenizer(job: Job) -> str:
    """A tokenizer of 32,000 words, so that no model has to be fetched."""
    place = job.cache / "tokenizer"
    if not (place / "tokenizer.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        words = {"[UNK]": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 32000)}}
        model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
        body: dict[str, Any] = {"version": "1.0", "model": model, "added_tokens": []}
        body["pre_tokenizer"] = {"type": "WhitespaceSplit"}
        (place / "tokenizer.json").write_text(json.dumps(body))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "bos_token": "<s>"}
        template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        settings |= {"eos_token": "</s>", "chat_template": template}
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(place)


CLIENTS: dict[str, tuple[Callable[[Job], list[str]], Callable[[Job], Seen]]] = {
    "wattload": (wattload, read_wattload),
    "vllm bench serve": (vllm, read_vllm),
    "AIPerf": (aiperf, read_aiperf),
    "guidellm": (guidellm, read_guidellm),
    "inference-perf": (inference_perf, read_inference_perf),
}
