"""Two hundred texts for tokenizers: of many scripts, spaces, numbers, code, control text, and random sequences of such pieces."""

from __future__ import annotations

import numpy as np
from tiny_tokenizers import TEXTS

MORE = [
    "The quick brown fox jumps over the lazy dog.", "naïve café — “quotes” … 100%", "    indented\n\tcode()",
    "https://example.org/a?b=c&d=1", "你好，世界！今天天气很好。", "日本語のテキスト", "한국어 문장입니다",
    "Привет, мир! Как дела?", "مرحبا بالعالم", "שלום עולם",
    "हिन्दी में", "ไทย", "😀😃 👨‍👩‍👧‍👦 🏳️‍🌈", "a\u0301 e\u0308 n\u0303", "x" * 100, "1234567890" * 5, "\n\n\n\n", " " * 33, "\t\t\t",
    "\r\n\r\n", "def f(x): return x**2 # ok", "don't won't I'll we've they'd I'M", "ÄÖÜ ß ẞ ŁÓDŹ", "½ ² ³ Ⅳ ٠١٢", "\u00a0\u3000\u2009",
    "\x00\x01\x02\x7f", "\ufeffBOM", "snake_case camelCase", "<|im_end|> <s> </s> [INST]", "▁ ▁a", "a▁b", "(a)[b]{c}", "!!!???...",
    "email@host.tld", "C++ & C#", "3.14e-10", "2024-01-31T12:00:00Z",
]  # fmt: skip
WORDS = ["The", " cat", "s", "'t", " isn", "  ", "\n", "12", "345", "é", "ß", "世界", "한", "😀", "(x)", "-", ".", "\t", "a\u0301", " ½"]
MANY_TEXTS = [*TEXTS, *MORE, *("".join(np.random.default_rng(seed).choice(WORDS, size=1 + seed % 12)) for seed in range(150))]
