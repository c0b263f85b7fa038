"""Measures OpenVINO GenAI, which reads GGUF files itself: python -m benchmarks.engines.openvino --model FILE.

It generates whole answers and reports their times: the first token's is the prompt's, the mean of the others is decoding's, a
greedy choice included. A context is computed anew in each repeat. Runs in an interpreter that has openvino_genai.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import openvino
import openvino_genai

from benchmarks.engines.work import CannotDo, Measured, Work, peak_memory_mb, run_program


def measure(work: Work) -> Measured:
    if work.before:
        raise CannotDo("its times are of whole answers; no part of a prompt is measured")
    if work.streams > 1:
        raise CannotDo("its times are of single answers; no batch is measured")
    start = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(work.model, "CPU", INFERENCE_NUM_THREADS=work.threads)
    load_seconds = time.perf_counter() - start
    vocab_size = len(pipeline.get_tokenizer().get_vocab())
    prompts = itertools.count()

    def prompt(length: int) -> list[int]:
        """Another one each time: what it computed of an earlier prompt, it would use again."""
        return replace(work, seed=work.seed + next(prompts)).tokens(length, vocab_size=vocab_size)

    prefill, decode = list[float](), list[float]()
    if work.prefill:
        answer(pipeline, prompt(work.prefill), new_tokens=1)  # the first run of a shape compiles for it
        prefill = [answer(pipeline, prompt(work.prefill), new_tokens=1).get_ttft().mean / 1e3 for _ in range(work.repeats)]
    if work.decode:
        answer(pipeline, prompt(1), new_tokens=2)
        depth = max(1, work.context)
        decode = [answer(pipeline, prompt(depth), new_tokens=work.decode + 1).get_tpot().mean / 1e3 for _ in range(work.repeats)]
    details: dict[str, object] = {"openvino": openvino.get_version()}
    return Measured(prefill, decode, load_seconds, peak_memory_mb(), version("openvino-genai"), details)


def answer(pipeline: openvino_genai.LLMPipeline, prompt: list[int], *, new_tokens: int) -> openvino_genai.PerfMetrics:
    """The times, in milliseconds, of an answer of exactly so many tokens."""
    config = openvino_genai.GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, ignore_eos=True)
    ids = np.array([prompt], np.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    return pipeline.generate(inputs, config).perf_metrics


if __name__ == "__main__":
    run_program(measure, description=__doc__)
