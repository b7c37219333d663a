"""Writes a model of random weights that vLLM can serve with `--load-format dummy`: configuration, tokenizer.

    python benchmarks/random_model.py {tiny,llama-3.1-8b} FOLDER

Random weights cost what trained ones of the same shape cost; only the words make no sense. `tiny` has two
layers, for the CPU. The tokenizer has one token a byte, numbered ones up to the size of the vocabulary, and a
chat template. Needs the package `tokenizers` (which vLLM brings).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_cache": True,
}
# The dimensions of meta-llama/Llama-3.1-8B's config.json (rope scaling aside, which costs nothing).
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
}
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def write(shape: str, folder: Path) -> None:
    """Writes config.json, tokenizer.json and tokenizer_config.json into `folder`. Raises KeyError for an
    unknown shape."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = COMMON | SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    vocabulary = {"<bos>": 0, "<eos>": 1}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    for number in range(len(vocabulary), config["vocab_size"]):
        vocabulary[f"t{number}."] = number
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    write(sys.argv[1], Path(sys.argv[2]))
