"""How byte-pair tokenizers cut text before they merge: the rules that GGUF files name in `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizer files. Each is applied to the pieces that the one before it left; what
an expression does not match stays a piece too.
"""

from __future__ import annotations

from dataclasses import dataclass

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
ONE_DIGIT = r"\p{N}"


@dataclass(frozen=True)
class PreTokenizer:
    """ignores_merges: a piece that is a token is taken whole, whatever the merges say. adds_bos: where the file does not say."""

    expressions: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((GPT_2,)),
    "smollm": PreTokenizer((ONE_DIGIT, GPT_2)),
    "llama-bpe": PreTokenizer((LLAMA_3,), ignores_merges=True, adds_bos=True),
    "qwen2": PreTokenizer((QWEN_2,)),
}
