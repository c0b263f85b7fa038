"""The original example's flags, and what they mean here.

Attention is always paged: that is how the executor works on every device. Answers do not depend on it, nor on the cache, which is
always used.
"""

from __future__ import annotations

import argparse
import ast


def parse_flags(description: str, *, model: str) -> argparse.Namespace:
    """model: the default of --model_name: a folder, a .gguf file, a hub id, or "default"."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--prompt", default="Write an article about Artificial Intelligence.")
    parser.add_argument("--model_name", default=model)
    parser.add_argument("--attn_implementation", choices=("paged", "flash", "eager"), default="paged")
    parser.add_argument("--use_cache", type=ast.literal_eval, default=True)
    parser.add_argument("--do_sample", type=ast.literal_eval, default=False)
    flags = parser.parse_args()
    if flags.attn_implementation != "paged":
        parser.error(f"--attn_implementation {flags.attn_implementation} is not offered: attention is paged; the answers are the same")
    if not flags.use_cache:
        parser.error("--use_cache False is not offered: the cache is always used; the answers are the same")
    return flags
