"""Measures CTranslate2 at int8: python -m benchmarks.engines.ctranslate2 --model FILE --states FOLDER.

The file is converted once and kept in the states folder. It generates whole answers and calls back at each token: the first
one's time is the prompt's, what follows is decoding, a greedy choice included. Runs in an interpreter with ctranslate2 and gguf.
"""

from __future__ import annotations

import time
from pathlib import Path

import ctranslate2

from benchmarks.engines.ctranslate2_model import convert
from benchmarks.engines.work import CannotDo, Measured, Work, convert_once, peak_memory_mb, run_program

MAX_FILE_BYTES = 1 << 30  # the conversion holds all values as float32


def measure(work: Work) -> Measured:
    if work.before:
        raise CannotDo("its times are of whole answers; no part of a prompt is measured")
    if Path(work.model).stat().st_size > MAX_FILE_BYTES:
        raise CannotDo("its conversion would take more memory than is sensible for a model of this size")
    folder = convert_once(work, convert, suffix="ctranslate2")
    start = time.perf_counter()
    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8", intra_threads=work.threads, inter_threads=1)
    load_seconds = time.perf_counter() - start
    vocab_size = len((folder / "vocabulary.json").read_text().split(","))
    token_times(generator, [["0"]], new_tokens=2)
    prompt = [[str(token) for token in work.tokens(work.prefill, vocab_size=vocab_size)]]
    prefill = [token_times(generator, prompt, new_tokens=1)[0] for _ in range(work.repeats if work.prefill else 0)]
    decode = [decode_seconds(generator, work, vocab_size=vocab_size) for _ in range(work.repeats if work.decode else 0)]
    details: dict[str, object] = {"compute_type": generator.compute_type}
    return Measured(prefill, decode, load_seconds, peak_memory_mb(), ctranslate2.__version__, details)


def decode_seconds(generator: ctranslate2.Generator, work: Work, *, vocab_size: int) -> float:
    """Seconds a token of all streams together, after their first tokens, which come with the context."""
    prompts = [[str(token) for token in work.tokens(max(1, work.context), vocab_size=vocab_size)]] * work.streams
    times = token_times(generator, prompts, new_tokens=1 + work.decode)
    return (times[-1] - times[0]) / (work.decode * work.streams)


def token_times(generator: ctranslate2.Generator, prompts: list[list[str]], *, new_tokens: int) -> list[float]:
    """Seconds until all of greedy answers of exactly so many tokens had their first token, their second, and so on."""
    times = [0.0] * new_tokens
    start = time.perf_counter()

    def note(result: ctranslate2.GenerationStepResult) -> bool:
        times[result.step] = time.perf_counter() - start
        return False

    generator.generate_batch(
        prompts, max_length=new_tokens, min_length=new_tokens, sampling_topk=1, include_prompt_in_result=False, callback=note
    )
    return times


if __name__ == "__main__":
    run_program(measure, description=__doc__)
