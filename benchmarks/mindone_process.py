"""MindONE as a process of its own that decodes in rounds: starts `mindone.py` in the interpreter that has it, and talks to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from benchmarks.runner import ROOT
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.parameters import parameter_shapes
from minicpm4.quant import dequantize


class MindONE:
    """tokens: chosen since the prompt. facts: its versions, and the processor seconds until it could decode.

    RuntimeError, with what it said last, where it ends.
    """

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.process, self.log = process, log
        self.tokens: list[int] = []
        self.facts = self.answer()

    def decode(self, count: int) -> float:
        """Processor seconds a token, of the next so many."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        answer = self.answer()
        self.tokens = answer["tokens"]
        return float(answer["seconds"])

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"MindONE ended with status {status}: {self.log.read()[-2000:]}")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def mindone(interpreter: str, folder: Path, *, mode: str, num_tokens: int) -> Iterator[MindONE]:
    """folder: see `write_folder`. mode: of `mindone.MODES`. num_tokens: of all rounds together. The end of its input ends it."""
    command = [interpreter, "-m", "benchmarks.mindone", "--folder", str(folder), "--mode", mode, "--tokens", str(num_tokens)]
    pipe = subprocess.PIPE
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=log, bufsize=1) as process,
    ):
        yield MindONE(process, log)


def write_folder(folder: Path, config: ModelConfig, weights: Callable[[str], PackedTensor], *, prompt: np.ndarray) -> None:
    """The model as `mindone.py` reads it: its own names of the numbers, scales of 1, and each parameter as a float32 array."""
    numbers = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "scale_emb": 1,
        "dim_model_base": config.hidden_size,
        "scale_depth": config.num_layers**0.5,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(numbers))
    np.save(folder / "prompt.npy", prompt)
    for name in parameter_shapes(config):
        np.save(folder / f"{name}.npy", dequantize(weights(name)))
