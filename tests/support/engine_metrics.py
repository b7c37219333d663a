"""Short pages of /metrics in the format of each engine, and a server that shows what a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VLLM = """\
# HELP python_gc_collections_total Number of times this generation was collected
# TYPE python_gc_collections_total counter
python_gc_collections_total{generation="0"} 312.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 7.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in number of tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
# HELP vllm:prefix_cache_queries_created Prefix cache queries, in number of tokens.
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7952263047150173e+09
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in number of tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 400.0
# HELP vllm:num_preemptions_total Cumulative number of preemptions.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 90.0
# HELP vllm:spec_decode_num_accepted_tokens_total Number of accepted tokens.
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 60.0
# HELP vllm:time_to_first_token_seconds Time to first token.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 12.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 12.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.6
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 5000.0
"""
# One engine on two tensor-parallel ranks, both of which show the engine's values.
SGLANG = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 6.0
sglang:num_running_reqs{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="1"} 6.0
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 3.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 0.28
# HELP sglang:cache_hit_rate The prefix cache hit rate.
# TYPE sglang:cache_hit_rate gauge
sglang:cache_hit_rate{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 0.4
# HELP sglang:spec_accept_rate Speculative acceptance rate.
# TYPE sglang:spec_accept_rate gauge
sglang:spec_accept_rate{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 0.7
# HELP sglang:num_retracted_requests_total Total number of retracted requests.
# TYPE sglang:num_retracted_requests_total counter
sglang:num_retracted_requests_total{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 4.0
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{is_streaming="true",model_name="org/m"} 8.128902e+06
sglang:prompt_tokens_total{is_streaming="false",model_name="org/m"} 1000.0
# HELP sglang:cached_tokens_total Prompt tokens found in each kind of cache.
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="org/m"} 2.0e+06
sglang:cached_tokens_total{cache_source="host",model_name="org/m"} 5.0e+05
# HELP sglang:generation_tokens_total Number of generation tokens processed.
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="org/m"} 7.557572e+06
# HELP sglang:gen_throughput The generation throughput (token/s).
# TYPE sglang:gen_throughput gauge
sglang:gen_throughput{engine_type="unified",model_name="org/m",pp_rank="0",tp_rank="0"} 86.5
"""
TGI = """\
# TYPE tgi_request_count counter
tgi_request_count 41

# TYPE tgi_queue_size gauge
tgi_queue_size 5

# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 8

# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 16384

# TYPE tgi_request_skipped_tokens histogram
tgi_request_skipped_tokens_bucket{le="0"} 20
tgi_request_skipped_tokens_bucket{le="+Inf"} 100
tgi_request_skipped_tokens_sum 150
tgi_request_skipped_tokens_count 100

# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="+Inf"} 40
tgi_request_generated_tokens_sum 5120
tgi_request_generated_tokens_count 40
"""
TRITON = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 12
# HELP nv_inference_pending_request_count Instantaneous number of pending requests per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="tensorrt_llm",version="1"} 0
# HELP nv_trt_llm_request_metrics TRT LLM request metrics
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 9
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 12
# HELP nv_trt_llm_kv_cache_block_metrics TRT LLM KV cache block metrics
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.125
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 780
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6239
"""
TRTLLM = """\
# HELP trtllm_num_requests_running Requests that are active
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 14.0
# TYPE trtllm_num_scheduled_requests gauge
trtllm_num_scheduled_requests{engine_type="trtllm",model_name="m"} 11.0
# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 5.0
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.625
# TYPE trtllm_kv_cache_hit_rate gauge
trtllm_kv_cache_hit_rate{engine_type="trtllm",model_name="m"} 0.31
# TYPE trtllm_prompt_tokens_total counter
trtllm_prompt_tokens_total{engine_type="trtllm",model_name="m"} 20000.0
# TYPE trtllm_prompt_cached_tokens_total counter
trtllm_prompt_cached_tokens_total{engine_type="trtllm",model_name="m"} 6400.0
# TYPE trtllm_prompt_cache_hit_tokens_total counter
trtllm_prompt_cache_hit_tokens_total{cache_level="0",cache_tier="gpu",model_name="m"} 6000.0
trtllm_prompt_cache_hit_tokens_total{cache_level="1",cache_tier="host",model_name="m"} 400.0
# TYPE trtllm_generation_tokens_total counter
trtllm_generation_tokens_total{engine_type="trtllm",model_name="m"} 7000.0
# TYPE trtllm_spec_decode_num_draft_tokens_total counter
trtllm_spec_decode_num_draft_tokens_total{engine_type="trtllm",model_name="m"} 900.0
# TYPE trtllm_spec_decode_num_accepted_tokens_total counter
trtllm_spec_decode_num_accepted_tokens_total{engine_type="trtllm",model_name="m"} 540.0
"""
LLAMACPP = """\
# HELP llamacpp:prompt_tokens_total Prompt tokens that were computed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 12000
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total 30000
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 4000
# TYPE llamacpp:spec_decode_num_drafts_total counter
llamacpp:spec_decode_num_drafts_total 120
# TYPE llamacpp:spec_decode_num_draft_tokens_total counter
llamacpp:spec_decode_num_draft_tokens_total 480
# TYPE llamacpp:spec_decode_num_accepted_tokens_total counter
llamacpp:spec_decode_num_accepted_tokens_total 300
# TYPE llamacpp:predicted_tokens_seconds gauge
llamacpp:predicted_tokens_seconds nan
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 2
"""
DYNAMO = """\
# HELP dynamo_frontend_inflight_requests Number of inflight requests
# TYPE dynamo_frontend_inflight_requests gauge
dynamo_frontend_inflight_requests{model="org/m"} 11
# HELP dynamo_frontend_queued_requests Number of requests waiting in HTTP queue before the first response
# TYPE dynamo_frontend_queued_requests gauge
dynamo_frontend_queued_requests{model="org/m"} 4
# HELP dynamo_frontend_input_sequence_tokens Input sequence length in tokens
# TYPE dynamo_frontend_input_sequence_tokens histogram
dynamo_frontend_input_sequence_tokens_bucket{model="org/m",le="+Inf"} 20
dynamo_frontend_input_sequence_tokens_sum{model="org/m"} 9000
dynamo_frontend_input_sequence_tokens_count{model="org/m"} 20
# HELP dynamo_frontend_cached_tokens Tokens found in the prefix cache, by request
# TYPE dynamo_frontend_cached_tokens histogram
dynamo_frontend_cached_tokens_bucket{model="org/m",le="+Inf"} 20
dynamo_frontend_cached_tokens_sum{model="org/m"} 3600
dynamo_frontend_cached_tokens_count{model="org/m"} 20
# HELP dynamo_frontend_output_tokens_total Total number of output tokens generated
# TYPE dynamo_frontend_output_tokens_total counter
dynamo_frontend_output_tokens_total{model="org/m"} 1234
# HELP dynamo_component_kvstats_gpu_cache_usage_percent GPU cache usage as a percentage (0.0-1.0)
# TYPE dynamo_component_kvstats_gpu_cache_usage_percent gauge
dynamo_component_kvstats_gpu_cache_usage_percent{dynamo_component="backend",dynamo_namespace="d"} 0.75
"""
# Each engine's page, and the gauges that a reading of it has in common names.
PAGES: dict[str, tuple[str, dict[str, float]]] = {
    "vLLM": (VLLM, {"requests_running": 12, "requests_waiting": 2, "kv_cache_used_fraction": 0.375}),
    "SGLang": (
        SGLANG,
        {
            "requests_running": 6,
            "requests_waiting": 3,
            "kv_cache_used_fraction": 0.28,
            "prefix_cache_hit_fraction": 0.4,
            "draft_acceptance_fraction": 0.7,
        },
    ),
    "TGI": (TGI, {"requests_running": 8, "requests_waiting": 5}),
    "Triton": (TRITON, {"requests_running": 9, "requests_waiting": 3, "kv_cache_used_fraction": 0.125}),
    "TensorRT-LLM": (
        TRTLLM,
        {
            "requests_running": 11,
            "requests_waiting": 5,
            "kv_cache_used_fraction": 0.625,
            "prefix_cache_hit_fraction": 0.31,
        },
    ),
    "llama.cpp": (LLAMACPP, {"requests_running": 4, "requests_waiting": 2}),
    "Dynamo": (DYNAMO, {"requests_in_flight": 11, "requests_waiting": 4, "kv_cache_used_fraction": 0.75}),
}


@contextmanager
def showing(page: Callable[[], tuple[int, str]]) -> Iterator[str]:
    """The address of a server that answers GET /metrics with (status, text), whatever comes of it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, text = page()
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
