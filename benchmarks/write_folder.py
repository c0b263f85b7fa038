"""Writes a model folder of random ternary weights in our container: python -m benchmarks.write_folder SHAPE FORMAT OUT

SHAPE is 0.5B, 8B, or a config.json; FORMAT is ternary_g32, _g64, _g128 or _g256, of the projections. Embedding and head are f16,
since safetensors has no finer dtype than that for them. The tokenizer is that of `benchmarks.write_model`.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.write_model import CONTEXT_TOKENS, CONTROL_TOKENS, byte_pair_vocabulary
from minicpm4.checkpoint.write_folder import write_folder
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.errors import MiniCPMError
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.parameters import EMBEDDING, HEAD, parameter_shapes
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize, quantize

FORMATS = [name for name in STORAGE_FORMATS if name.startswith("ternary_")]


def write_random_folder(shape: str, format_name: str, folder: Path, *, seed: int = 0) -> None:
    config = shape_config(shape, context_length=CONTEXT_TOKENS)
    load, _ = random_weights(config, format_name, seed=seed)

    def load_for_folder(name: str) -> PackedTensor:
        tensor = load(name)
        return quantize(dequantize(tensor), "f16", name=name) if name in (EMBEDDING, HEAD) else tensor

    write_folder(folder, config=hf_values(config), names=parameter_shapes(config), load=load_for_folder)
    write_tokenizer(folder / "tokenizer.json", config.vocab_size)


def hf_values(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of the model; rope factors are left out: they cost no time."""
    return {
        "architectures": ["MiniCPMForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "scale_emb": config.embedding_scale,
        "scale_depth": config.residual_scale * math.sqrt(config.num_layers),
        "dim_model_base": round(config.hidden_size / config.logit_divisor),
        "tie_word_embeddings": config.has_tied_head,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_tokenizer(path: Path, vocab_size: int) -> None:
    tokens, merges = byte_pair_vocabulary(vocab_size)
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="0.5B, 8B, or a config.json")
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        write_random_folder(given.shape, given.format, given.out, seed=given.seed)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {sum(path.stat().st_size for path in given.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
