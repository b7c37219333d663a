"""The shape of a model, from its Hugging Face config.json:

parameters, FLOPs of a token, bytes of weights and cache.

Decoder-only transformers: dense and mixture of experts; multi-head, grouped-query and multi-query attention.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wattload.errors import InputError

_OWN = Path(__file__).with_name("model_shape.toml")
_BYTES = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "float32": 4.0,
    "fp8": 1.0,
    "float8_e4m3fn": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`body_parameters`:

    of all layers, without embedding and output head; `active_parameters`: those of them that one token uses
    (fewer for a mixture of experts); `head_parameters`: of the output head.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    body_parameters: float
    active_parameters: float
    head_parameters: float
    weight_bytes_per_parameter: float
    cache_bytes_per_value: float = 2.0

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in all layers."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * self.cache_bytes_per_value

    @property
    def step_weight_bytes(self) -> float:
        """The least that any step must read of the weights: what one token uses, and the output head."""
        return (self.active_parameters + self.head_parameters) * self.weight_bytes_per_parameter

    @property
    def attention_flops(self) -> float:
        """FLOPs of attention for one token and one token of its context:

        scores and weighted values, 2 x 2 each.
        """
        return 4.0 * self.layers * self.heads * self.head_dim

    def flops(self, prompt: Any, output: Any, cached: Any = 0.0) -> Any:
        """FLOPs of a request (or arrays of them): `prompt` tokens, `cached` of which needed no computing.

        2 a parameter and token (Kaplan et al. 2020, 2.1). The first output token comes from the prompt's last
        position, so the layers run for prompt - cached + output - 1 tokens and the head for `output` of them.
        """
        fresh = prompt - cached
        tokens = fresh + output - 1
        read = _sum_to(prompt) - _sum_to(cached) + (output - 1) * prompt + _sum_to(output - 1)
        return (
            2 * self.active_parameters * tokens
            + 2 * self.head_parameters * output
            + self.attention_flops * read
        )

    def kv_bytes(self, prompt: Any, output: Any, cached: Any = 0.0) -> Any:
        """Least traffic of the cache:

        every fresh token written once, each decode step reading its whole context.

        Prefill may keep its keys on the chip, so it is counted as writing only.
        """
        written = prompt - cached + output - 1
        read = (output - 1) * prompt + _sum_to(output - 1)
        return self.kv_bytes_per_token * (written + read)


def _sum_to(n: Any) -> Any:
    return n * (n + 1) / 2


def shape_from_config(config: dict[str, Any], where: str) -> ModelShape:
    """Raises InputError naming `where` and the field that is missing or no whole number above 0."""
    text = config.get("text_config")
    fields = {**config, **text} if isinstance(text, dict) else config

    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            value = fields.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{where}: {name} = {value!r}, which is no whole number above 0")
            return value
        if default is None:
            raise InputError(f"{where}: lacks {names[0]}")
        return default

    hidden, layers = number("hidden_size", "n_embd"), number("num_hidden_layers", "n_layer")
    heads = number("num_attention_heads", "n_head")
    kv_heads = number("num_key_value_heads", default=heads)
    head_dim = number("head_dim", default=hidden // heads)
    inner = number("intermediate_size", "n_inner", default=4 * hidden)
    vocabulary = number("vocab_size")
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    gated = 2 if config.get("model_type") in {"gpt2", "opt", "gpt_neox", "bloom", "falcon"} else 3
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=1)
    used = number("num_experts_per_tok", default=1) if experts > 1 else 1
    expert_inner = number("moe_intermediate_size", default=inner) if experts > 1 else inner
    shared = gated * hidden * expert_inner * (fields.get("n_shared_experts") or 0) if experts > 1 else 0
    expert = gated * hidden * expert_inner
    dense_layers = int(fields.get("first_k_dense_replace") or 0) if experts > 1 else 0
    moe_layers = layers - dense_layers
    dense = dense_layers * gated * hidden * inner
    router = hidden * experts if experts > 1 else 0
    common = layers * attention + dense + moe_layers * (shared + router)
    dtype = str(fields.get("torch_dtype") or fields.get("dtype") or "bfloat16")
    if dtype not in _BYTES:
        raise InputError(f"{where}: torch_dtype {dtype!r} is not known")
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        body_parameters=float(common + moe_layers * expert * experts),
        active_parameters=float(common + moe_layers * expert * used),
        head_parameters=float(vocabulary * hidden),
        weight_bytes_per_parameter=_quantised(fields, where) or _BYTES[dtype],
    )


def _quantised(fields: dict[str, Any], where: str) -> float | None:
    """Bytes a weight where config.json says that they are quantised."""
    quantisation = fields.get("quantization_config")
    if not isinstance(quantisation, dict):
        return None
    method = str(quantisation.get("quant_method"))
    bits = quantisation.get("bits")
    if isinstance(bits, int) and bits > 0:
        return bits / 8
    if "fp8" in method:
        return 1.0
    raise InputError(f"{where}: quantization_config of method {method!r} does not say its bits")


def shape_from_file(path: Path) -> ModelShape:
    """A config.json, or a folder that has one. Raises InputError naming the file."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: does not exist") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}:{getattr(error, 'lineno', 1)}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: holds no object")
    return shape_from_config(config, str(file))


@cache
def _known() -> tuple[tuple[tuple[str, ...], ModelShape], ...]:
    entries = tomllib.loads(_OWN.read_text(encoding="utf-8"))["model"]
    return tuple((tuple(e["names"]), shape_from_config(e["config"], str(e["names"][0]))) for e in entries)


def known_shape(model: str) -> ModelShape | None:
    """The shape of a model by its served name, where the table has it."""
    text, best = model.lower(), (0, None)
    for names, shape in _known():
        length = max((len(name) for name in names if name in text), default=0)
        if length > best[0]:
            best = (length, shape)  # type: ignore[assignment]
    return best[1]
