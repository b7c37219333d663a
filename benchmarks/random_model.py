"""Writes a model of random weights that vLLM can serve with `--load-format dummy`: configuration, tokenizer.

    python benchmarks/random_model.py SHAPE FOLDER [--weights]

Random weights cost what trained ones of the same shape cost; only the words make no sense. `tiny` has two
layers, for the CPU. The tokenizer has one token a byte, numbered ones up to the size of the vocabulary, and a
chat template. Needs the package `tokenizers` (which vLLM brings). What is there already is left as it is.

`--weights` also writes the weights in bf16, for servers that have no dummy format (transformers); it needs
torch and transformers, and room: 2 bytes a parameter. Its tokenizer also has common words, which such a
server is sent instead of token ids.
"""

from __future__ import annotations

import argparse
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
OLMO: dict[str, Any] = {
    "architectures": ["OlmoForCausalLM"],
    "model_type": "olmo",
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "clip_qkv": None,
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
    # meta-llama/Llama-3.2-1B, the draft model beside it.
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    # allenai/OLMo-1B-hf and OLMo-7B-hf: dense, of OLMoE's active and of its total size.
    "olmo-1b": {
        **OLMO,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    },
    "olmo-7b": {
        **OLMO,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    # allenai/OLMoE-1B-7B-0924: 64 experts, 8 of them active.
    "olmoe-1b-7b": {
        **OLMO,
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "max_position_embeddings": 4096,
    },
}
COMMON_WORDS = Path(__file__).parents[1] / "loadgen" / "wattload" / "prompts" / "words.txt"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def write(shape: str, folder: Path, *, words: bool = False) -> None:
    """Writes config.json, tokenizer.json and tokenizer_config.json into `folder`.

    `words`: common words are one token each, so that text of an exact length can be made. Raises KeyError for
    an unknown shape.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = COMMON | SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    vocabulary = {"<bos>": 0, "<eos>": 1}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    for word in COMMON_WORDS.read_text().split() if words else ():
        for token in (word, f"Ġ{word}"):  # as a byte-level vocabulary writes a blank
            vocabulary.setdefault(token, len(vocabulary))
    for number in range(len(vocabulary), config["vocab_size"]):
        vocabulary[f"t{number}."] = number
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
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


def write_weights(folder: Path, seed: int = 0) -> None:
    """Writes random weights in bf16 for the configuration in `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # Long answers are planned: a model of random weights would end some early, by chance.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", action="store_true", help="write the weights too")
    options = parser.parse_args(arguments)
    if not (options.folder / "tokenizer_config.json").exists():
        write(options.shape, options.folder, words=options.weights)
    if options.weights and not list(options.folder.glob("*.safetensors")):
        write_weights(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
