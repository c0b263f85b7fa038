"""llama.cpp as a judge, through the C functions of llama-cpp-python: what it makes of a GGUF file's vocabulary and weights.

Import it only after `pytest.importorskip("llama_cpp")`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

LOG: list[str] = []
KEEP_LOG = llama_cpp.llama_log_callback(lambda level, text, _: LOG.append(text.decode(errors="replace")))
llama_cpp.llama_log_set(KEEP_LOG, None)
llama_cpp.llama_backend_init()
F32 = 0  # as a type of the cache


@contextmanager
def opened(path: Path, *, vocab_only: bool = False) -> Iterator[Any]:
    """RuntimeError with its log where llama.cpp refuses the file."""
    LOG.clear()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError("".join(LOG)[-500:])
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def ids_of(model: Any, text: str, *, parses_special: bool = False, adds_special: bool = False) -> list[int]:
    data = text.encode()
    room = (llama_cpp.llama_token * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), data, len(data), room, len(room), adds_special, parses_special)
    return list(room[:count])


def ends_of(model: Any) -> set[int]:
    """The tokens that end a text or a turn."""
    vocab = llama_cpp.llama_model_get_vocab(model)
    return {i for i in range(llama_cpp.llama_vocab_n_tokens(vocab)) if llama_cpp.llama_vocab_is_eog(vocab, i)}


def logits_of(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """Logits [T, V] at every token, with a cache in float32."""
    with opened(path) as model:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 512, 512, 512, 1, 1
        params.type_k = params.type_v = F32
        params.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(model, params)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.n_seq_id[index], batch.logits[index] = int(token), index, 1, True
            batch.seq_id[index][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0, "".join(LOG)[-500:]
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), (size,)).copy() for index in range(len(tokens))]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return np.stack(rows)


def quantize_file(source: Path, target: Path, file_type: int) -> None:
    """llama.cpp's own quantization; file_type: of enum llama_ftype."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0, "".join(LOG)[-500:]
