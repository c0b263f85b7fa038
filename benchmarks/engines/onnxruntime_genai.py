"""Measures onnxruntime-genai at int4: python -m benchmarks.engines.onnxruntime_genai --model FILE --states FOLDER.

The file is converted once and kept in the states folder. Its generator takes tokens that are given, so it is stepped as the others
are; its cache is float32. Runs in an interpreter with onnxruntime_genai, and for the conversion onnx_ir, transformers, torch, gguf.
"""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai

from benchmarks.engines.onnxruntime_genai_model import convert
from benchmarks.engines.work import CannotDo, Measured, Work, convert_once, measure_steps, run_program

MAX_FILE_BYTES = 1 << 30  # the conversion holds all values several times


class OnnxRuntimeGenai:
    """See `work.Engine`; one stream. folder: of the converted model."""

    def __init__(self, folder: Path, work: Work) -> None:
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": work.threads}}}}))
        self.model = onnxruntime_genai.Model(config)
        self.vocab_size = int(json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"])
        params = onnxruntime_genai.GeneratorParams(self.model)
        params.set_search_options(max_length=work.sequence_tokens + 1, do_sample=False, past_present_share_buffer=True)
        self.generator = onnxruntime_genai.Generator(self.model, params)
        self.work = work
        self.version = version("onnxruntime-genai")
        self.details: dict[str, object] = {"onnxruntime": version("onnxruntime"), "weights": "int4, blocks of 32", "kv_format": "f32"}

    def rewind(self, depth: int) -> None:
        self.generator.rewind_to(depth)

    def prefill(self, tokens: list[int], position: int) -> None:
        self.generator.append_tokens(np.array([tokens], np.int32))

    def fill(self, depth: int) -> None:
        if depth:
            self.prefill(self.work.tokens(depth, vocab_size=self.vocab_size), 0)

    def decode(self, tokens: list[int], position: int) -> None:
        self.generator.append_tokens(np.array([tokens], np.int32))


def measure(work: Work) -> Measured:
    if work.streams > 1:
        raise CannotDo("its batches cannot be set back to a depth; no streams are measured")
    if Path(work.model).stat().st_size > MAX_FILE_BYTES:
        raise CannotDo("its conversion would take more memory than is sensible for a model of this size")
    folder = convert_once(work, convert, suffix="onnxruntime-genai")
    return measure_steps(partial(OnnxRuntimeGenai, folder), work)


if __name__ == "__main__":
    run_program(measure, description=__doc__)
