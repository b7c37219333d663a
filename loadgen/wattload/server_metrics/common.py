"""The names that engines' metrics have in common, and which metric of which engine each is read from.

This is the one place that knows an engine's names. What it does not know is kept under the engine's own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["gauge", "counter"]
# The row that every reading has, of this name: how long it took.
SCRAPE_SECONDS = "scrape_seconds"


@dataclass(frozen=True, slots=True)
class Common:
    """One metric that several engines have. A server's several engines are added up, or `averaged`."""

    name: str
    title: str
    unit: str
    kind: Kind
    meaning: str
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an engine shows a common metric: `metric` is a sample's name, with `_total` or `_sum`.

    `labels` are those that a sample must have. A value times `factor` is in the unit of the common metric.
    `before_engines`: it is of a router in front of engines, and not used where an engine shows its own.
    """

    common: str
    engine: str
    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)
    factor: float = 1.0
    before_engines: bool = False


COMMON: dict[str, Common] = {
    one.name: one
    for one in (
        Common("requests_running", "Batch size", "requests", "gauge", "Requests that are being computed."),
        Common("requests_waiting", "Queue", "requests", "gauge", "Requests that wait to be admitted."),
        Common(
            "requests_in_flight",
            "Requests at the router",
            "requests",
            "gauge",
            "Requests between a router's receipt and the end of its response.",
        ),
        Common(
            "kv_cache_used_fraction",
            "KV cache use",
            "fraction",
            "gauge",
            "Part of the KV cache that requests occupy.",
            averaged=True,
        ),
        Common(
            "prefix_cache_queries",
            "Prompt tokens looked up in the prefix cache",
            "tokens",
            "counter",
            "Prompt tokens that were looked up in the prefix cache.",
        ),
        Common(
            "prefix_cache_hits",
            "Prompt tokens found in the prefix cache",
            "tokens",
            "counter",
            "Those of them that were found.",
        ),
        Common(
            "prefix_cache_hit_fraction",
            "Prefix cache hit rate",
            "fraction",
            "gauge",
            "The hit rate as the engine computes it; not used where the two counters are known.",
            averaged=True,
        ),
        Common(
            "preemptions",
            "Preemptions",
            "requests",
            "counter",
            "Times a running request lost its place in the KV cache.",
        ),
        Common(
            "draft_steps",
            "Speculative steps",
            "steps",
            "counter",
            "Steps of requests in which drafts were made.",
        ),
        Common("draft_tokens", "Draft tokens", "tokens", "counter", "Tokens that were proposed by a draft."),
        Common(
            "draft_tokens_accepted",
            "Accepted draft tokens",
            "tokens",
            "counter",
            "Those of them that were accepted.",
        ),
        Common(
            "draft_acceptance_fraction",
            "Draft acceptance",
            "fraction",
            "gauge",
            "The accepted part as the engine computes it; not used where the counters are known.",
            averaged=True,
        ),
        Common("prompt_tokens", "Prompt tokens", "tokens", "counter", "Prompt tokens that were prefilled."),
        Common("output_tokens", "Output tokens", "tokens", "counter", "Output tokens that were generated."),
        Common(
            "sm_clock_hertz",
            "SM clock",
            "Hz",
            "gauge",
            "Clock of the GPUs' multiprocessors, mean over the GPUs.",
            averaged=True,
        ),
    )
}

_TRITON_REQUESTS = "nv_trt_llm_request_metrics"
# For each common metric the first of these that a server shows is taken.
ORIGINS: tuple[Origin, ...] = (
    Origin("requests_running", "vLLM", "vllm:num_requests_running"),
    Origin("requests_waiting", "vLLM", "vllm:num_requests_waiting"),
    Origin("kv_cache_used_fraction", "vLLM", "vllm:kv_cache_usage_perc"),
    Origin("kv_cache_used_fraction", "vLLM", "vllm:gpu_cache_usage_perc"),
    Origin("prefix_cache_queries", "vLLM", "vllm:prefix_cache_queries_total"),
    Origin("prefix_cache_queries", "vLLM", "vllm:gpu_prefix_cache_queries_total"),
    Origin("prefix_cache_hits", "vLLM", "vllm:prefix_cache_hits_total"),
    Origin("prefix_cache_hits", "vLLM", "vllm:gpu_prefix_cache_hits_total"),
    Origin("preemptions", "vLLM", "vllm:num_preemptions_total"),
    Origin("draft_steps", "vLLM", "vllm:spec_decode_num_drafts_total"),
    Origin("draft_tokens", "vLLM", "vllm:spec_decode_num_draft_tokens_total"),
    Origin("draft_tokens_accepted", "vLLM", "vllm:spec_decode_num_accepted_tokens_total"),
    Origin("prompt_tokens", "vLLM", "vllm:prompt_tokens_total"),
    Origin("output_tokens", "vLLM", "vllm:generation_tokens_total"),
    Origin("requests_running", "SGLang", "sglang:num_running_reqs"),
    Origin("requests_waiting", "SGLang", "sglang:num_queue_reqs"),
    Origin("kv_cache_used_fraction", "SGLang", "sglang:token_usage"),
    Origin("prefix_cache_queries", "SGLang", "sglang:prompt_tokens_total"),
    Origin("prefix_cache_hits", "SGLang", "sglang:cached_tokens_total"),
    Origin("prefix_cache_hit_fraction", "SGLang", "sglang:cache_hit_rate"),
    Origin("preemptions", "SGLang", "sglang:num_retracted_requests_total"),
    Origin("draft_acceptance_fraction", "SGLang", "sglang:spec_accept_rate"),
    Origin("prompt_tokens", "SGLang", "sglang:prompt_tokens_total"),
    Origin("output_tokens", "SGLang", "sglang:generation_tokens_total"),
    # Its running requests are all that were admitted; an iteration computes the scheduled ones.
    Origin("requests_running", "TensorRT-LLM", "trtllm_num_scheduled_requests"),
    Origin("requests_running", "TensorRT-LLM", "trtllm_num_requests_running"),
    Origin("requests_waiting", "TensorRT-LLM", "trtllm_num_requests_waiting"),
    Origin("kv_cache_used_fraction", "TensorRT-LLM", "trtllm_kv_cache_utilization"),
    Origin("prefix_cache_queries", "TensorRT-LLM", "trtllm_prompt_tokens_total"),
    Origin("prefix_cache_hits", "TensorRT-LLM", "trtllm_prompt_cached_tokens_total"),
    Origin("prefix_cache_hit_fraction", "TensorRT-LLM", "trtllm_kv_cache_hit_rate"),
    Origin("draft_tokens", "TensorRT-LLM", "trtllm_spec_decode_num_draft_tokens_total"),
    Origin("draft_tokens_accepted", "TensorRT-LLM", "trtllm_spec_decode_num_accepted_tokens_total"),
    Origin("prompt_tokens", "TensorRT-LLM", "trtllm_prompt_tokens_total"),
    Origin("output_tokens", "TensorRT-LLM", "trtllm_generation_tokens_total"),
    Origin("requests_running", "Triton", _TRITON_REQUESTS, {"request_type": "scheduled"}),
    Origin("requests_waiting", "Triton", _TRITON_REQUESTS, {"request_type": "waiting"}),
    Origin(
        "kv_cache_used_fraction",
        "Triton",
        "nv_trt_llm_kv_cache_block_metrics",
        {"kv_cache_block_type": "fraction"},
    ),
    Origin("requests_waiting", "Triton", "nv_inference_pending_request_count"),
    Origin("requests_running", "TGI", "tgi_batch_current_size"),
    Origin("requests_waiting", "TGI", "tgi_queue_size"),
    Origin("draft_steps", "TGI", "tgi_request_skipped_tokens_count"),
    Origin("draft_tokens_accepted", "TGI", "tgi_request_skipped_tokens_sum"),
    Origin("prompt_tokens", "TGI", "tgi_request_input_length_sum"),
    Origin("output_tokens", "TGI", "tgi_request_generated_tokens_sum"),
    Origin("requests_running", "llama.cpp", "llamacpp:requests_processing"),
    Origin("requests_waiting", "llama.cpp", "llamacpp:requests_deferred"),
    # Its prompt tokens are without those found in the cache, so there is no counter of what was looked up.
    Origin("prompt_tokens", "llama.cpp", "llamacpp:prompt_tokens_total"),
    Origin("output_tokens", "llama.cpp", "llamacpp:tokens_predicted_total"),
    Origin("draft_steps", "llama.cpp", "llamacpp:spec_decode_num_drafts_total"),
    Origin("draft_tokens", "llama.cpp", "llamacpp:spec_decode_num_draft_tokens_total"),
    Origin("draft_tokens_accepted", "llama.cpp", "llamacpp:spec_decode_num_accepted_tokens_total"),
    Origin("kv_cache_used_fraction", "Dynamo", "dynamo_component_gpu_cache_usage_percent"),
    Origin("kv_cache_used_fraction", "Dynamo", "dynamo_component_kvstats_gpu_cache_usage_percent"),
    Origin("prefix_cache_hit_fraction", "Dynamo", "dynamo_component_kvstats_gpu_prefix_cache_hit_rate"),
    Origin("requests_in_flight", "Dynamo", "dynamo_frontend_inflight_requests", before_engines=True),
    Origin("requests_waiting", "Dynamo", "dynamo_frontend_queued_requests", before_engines=True),
    Origin(
        "prefix_cache_queries", "Dynamo", "dynamo_frontend_input_sequence_tokens_sum", before_engines=True
    ),
    Origin("prefix_cache_hits", "Dynamo", "dynamo_frontend_cached_tokens_sum", before_engines=True),
    Origin("prompt_tokens", "Dynamo", "dynamo_frontend_input_sequence_tokens_sum", before_engines=True),
    Origin("output_tokens", "Dynamo", "dynamo_frontend_output_tokens_total", before_engines=True),
    Origin("sm_clock_hertz", "wattserve", "wattserve_device_sm_clock_hertz"),
    Origin("sm_clock_hertz", "dcgm-exporter", "DCGM_FI_DEV_SM_CLOCK", factor=1e6),
)
MAPPED: frozenset[str] = frozenset(origin.metric for origin in ORIGINS)
# Ranks of one engine that each show the whole engine's value: the first of them counts.
_SAME_ENGINE = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})


def chosen(shown: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], Origin]:
    """(target, common name) -> where it is read from, by the metrics that each target shows.

    A router's value is left out where any of the targets is an engine that shows its own.
    """
    found: dict[tuple[str, str], Origin] = {}
    for target, metrics in shown.items():
        names = frozenset(metrics)
        for origin in ORIGINS:
            if origin.metric in names:
                found.setdefault((target, origin.common), origin)
    of_engines = {common for (_, common), origin in found.items() if not origin.before_engines}
    return {
        place: origin
        for place, origin in found.items()
        if not (origin.before_engines and place[1] in of_engines)
    }


def series_of(origin: Origin, labels: Sequence[Mapping[str, str]]) -> list[int]:
    """The places of the series, by their `labels`, that make up the origin's metric: one for each engine."""
    first: dict[tuple[tuple[str, str], ...], tuple[str, int]] = {}
    for place, own in enumerate(labels):
        if any(own.get(name) != value for name, value in origin.labels.items()):
            continue
        engine = tuple(sorted((name, text) for name, text in own.items() if name not in _SAME_ENGINE))
        rank = ",".join(f"{name}={own[name]:>4}" for name in sorted(_SAME_ENGINE & own.keys()))
        if engine not in first or rank < first[engine][0]:
            first[engine] = (rank, place)
    return sorted(place for _, place in first.values())


def engines_of(metrics: Iterable[str]) -> list[str]:
    """The engines whose metrics these are."""
    names = frozenset(metrics)
    return list(dict.fromkeys(origin.engine for origin in ORIGINS if origin.metric in names))
