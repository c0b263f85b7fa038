"""How byte-pair tokenizers cut text before they merge: the rules that GGUF files name in `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizer files. Each is applied to the pieces that the one before it left; what
an expression does not match stays a piece too. Which names share a rule was found by asking llama.cpp (tests/text/test_pre_tokenizers.py).
"""

from __future__ import annotations

from dataclasses import dataclass

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA_3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_3_5 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|{REST}"
GPT_4O = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?|" + REST.replace(
    r"\p{N}|", r"\p{N}{1,3}|", 1
)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|"""
    r"\s+(?!\S)|\s+"
)
ONE_DIGIT, THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"


@dataclass(frozen=True)
class PreTokenizer:
    """ignores_merges: a piece that is a token is taken whole, whatever the merges say. adds_bos: where the file does not say."""

    expressions: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False


DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT_2.removesuffix(r"|\s+"), r"\p{N}+", "[0-9][0-9][0-9]")
PRE_TOKENIZERS = {
    "default": PreTokenizer(DEFAULT),
    "minicpm5": PreTokenizer((THREE_DIGITS, LLAMA_3), ignores_merges=True),
    "qwen35": PreTokenizer((QWEN_3_5,)),
    "tekken": PreTokenizer((TEKKEN,), ignores_merges=True, adds_bos=True),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        PreTokenizer((LLAMA_3,), ignores_merges=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer((LLAMA_3,))),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), PreTokenizer((THREE_DIGITS, CJK, DEEPSEEK_V3))),
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "exaone4", "trillion"), PreTokenizer((GPT_2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), PreTokenizer((ONE_DIGIT, GPT_2))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan"), PreTokenizer((QWEN_2,))),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), PreTokenizer((GPT_4O,))),
}
