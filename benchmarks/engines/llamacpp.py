"""Measures llama.cpp through the C functions of the package llama-cpp-python: python -m benchmarks.engines.llamacpp --model FILE.

Flash attention is on, a batch is 512 tokens, weights are mapped and repacked as it does by default, and only the last
token's logits are computed. Runs in an interpreter that has llama_cpp; knows nothing of minicpm4.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import llama_cpp

from benchmarks.engines.work import Work, measure_steps, run_program

BATCH_TOKENS = 512
CONTEXT_MULTIPLE = 256  # llama.cpp rounds a sequence's context up to it
COMPUTED_TOKENS = 16384  # the most that a context is computed to; longer ones repeat what was


class LlamaCpp:
    """See `work.Engine`. Stream s is sequence s, with a cache of its own."""

    def __init__(self, work: Work) -> None:
        llama_cpp.llama_backend_init()
        self.work = work
        self.model = llama_cpp.llama_model_load_from_file(work.model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {Path(work.model).name}; run the program by hand to see its log")
        self.context = llama_cpp.llama_init_from_model(self.model, context_params(work))
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context of that size; lower the context or the streams")
        silence()
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(max(BATCH_TOKENS, work.streams), 0, 1)
        self.version = f"{llama_cpp.llama_version().decode()} (llama-cpp-python {llama_cpp.__version__})"
        self.details: dict[str, object] = {"system": llama_cpp.llama_print_system_info().decode().strip()}

    def rewind(self, depth: int) -> None:
        for stream in range(self.work.streams):
            llama_cpp.llama_memory_seq_rm(self.memory, stream, depth, -1)

    def prefill(self, tokens: list[int], position: int) -> None:
        for first in range(0, len(tokens), BATCH_TOKENS):
            chunk = tokens[first : first + BATCH_TOKENS]
            wanted = [first + index == len(tokens) - 1 for index in range(len(chunk))]
            self.run(chunk, positions=range(position + first, position + first + len(chunk)), streams=[0] * len(chunk), wanted=wanted)

    def decode(self, tokens: list[int], position: int) -> None:
        count = len(tokens)
        self.run(tokens, positions=[position] * count, streams=range(count), wanted=[True] * count)

    def fill(self, depth: int) -> None:
        """By computing a prompt in the first stream, or reading what an earlier run computed; the other streams get copies."""
        if not depth:
            return
        computed = min(depth, COMPUTED_TOKENS)
        path = self.state_path(computed)
        if path is None or not self.read_state(path, computed):
            self.compute_state(computed)
            if path is not None:
                self.write_state(path, computed)
        self.repeat_state(computed, depth)
        for stream in range(1, self.work.streams):
            llama_cpp.llama_memory_seq_cp(self.memory, 0, stream, -1, -1)

    def run(self, tokens: Sequence[int], *, positions: Sequence[int], streams: Sequence[int], wanted: Sequence[bool]) -> None:
        """One llama_decode; returns once its logits are there."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, positions[index], wanted[index]
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, streams[index]
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}; the context may be too small")
        llama_cpp.llama_synchronize(self.context)

    def state_path(self, depth: int) -> Path | None:
        model = Path(self.work.model)
        name = f"{model.stem}-{model.stat().st_size}-{depth}-{self.work.seed}-{llama_cpp.__version__}.llamacpp"
        return Path(self.work.states) / name if self.work.states else None

    def compute_state(self, depth: int) -> None:
        """With all cores, whatever is measured with: this is not timed, and takes minutes at 16 thousand tokens."""
        cores = os.cpu_count() or 1
        llama_cpp.llama_set_n_threads(self.context, cores, cores)
        self.prefill(self.work.tokens(depth, vocab_size=self.vocab_size), 0)
        llama_cpp.llama_set_n_threads(self.context, self.work.threads, self.work.threads)

    def repeat_state(self, have: int, depth: int) -> None:
        """The first stream's tokens again and again, turned to later positions, until there are `depth`: to compute them takes hours."""
        if have == depth:
            return
        spare = self.work.streams
        size = llama_cpp.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.context, state, size, 0)
        for first in range(have, depth, have):
            if not llama_cpp.llama_state_seq_set_data(self.context, state, size, spare):
                raise RuntimeError(f"llama.cpp has no room for {depth} tokens; lower the context")
            llama_cpp.llama_memory_seq_add(self.memory, spare, -1, -1, first)
            llama_cpp.llama_memory_seq_cp(self.memory, spare, 0, -1, -1)
            llama_cpp.llama_memory_seq_rm(self.memory, spare, -1, -1)
        llama_cpp.llama_memory_seq_rm(self.memory, 0, depth, -1)

    def write_state(self, path: Path, depth: int) -> None:
        """Appears under its name when it is whole. A full disk costs the next run time, and is no error."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial")
        tokens = (llama_cpp.llama_token * depth)(*self.work.tokens(depth, vocab_size=self.vocab_size))
        if llama_cpp.llama_state_seq_save_file(self.context, str(partial_path).encode(), 0, tokens, depth):
            partial_path.replace(path)
        else:
            partial_path.unlink(missing_ok=True)

    def read_state(self, path: Path, depth: int) -> bool:
        """Whether the first stream's cache is now as `compute_state` left it."""
        tokens, count = (llama_cpp.llama_token * depth)(), ctypes.c_size_t()
        is_read = path.exists() and llama_cpp.llama_state_seq_load_file(
            self.context, str(path).encode(), 0, tokens, depth, ctypes.byref(count)
        )
        return bool(is_read) and count.value == depth


def silence() -> None:
    """No more logging: it writes many lines a step, which would be timed.

    A callback in Python would be timed as well, so C's `abs` is called back: it takes the level and does nothing with it.
    """
    nothing = ctypes.cast(ctypes.CDLL(None).abs, llama_cpp.llama_log_callback)
    llama_cpp.llama_log_set(nothing, ctypes.c_void_p(0))


def context_params(work: Work) -> llama_cpp.llama_context_params:
    params = llama_cpp.llama_context_default_params()
    tokens, is_repeated = work.sequence_tokens + 1, max(work.before, work.context) > COMPUTED_TOKENS
    if is_repeated:  # see repeat_state: whole copies, of one sequence more, in one cache
        tokens = -(-tokens // COMPUTED_TOKENS) * COMPUTED_TOKENS
    params.n_ctx = work.streams * -(-tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
    params.n_seq_max = work.streams + is_repeated
    params.kv_unified = is_repeated
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_threads = params.n_threads_batch = work.threads
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return params


if __name__ == "__main__":
    run_program(partial(measure_steps, LlamaCpp), description=__doc__)
