"""The MindSpore executor beside `transformers` on torch and MindONE: MiniCPM4-0.5B's shape in float32, one thread, random weights.

Decoding alternates between them, and what is compared is the processor's seconds, which other work on the machine disturbs least.
Weights have `--format`'s values for all. We compute from them as they are stored; the others have no such way on a CPU and get them
widened to float32, which changes no value of bf16. Logits are compared with the numpy reference, greedy tokens with each other, and time at
several depths of the cache. Run by the interpreter that has MindSpore, torch and transformers; MindONE's is another, with its own
versions of everything (`mindone.py`):

    .venv-mindspore-2.10.0/bin/python -m benchmarks.mindspore [--format f32] [--mindone PYTHON [--modes graph graph-O1]]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.mindone_process import MindONE, mindone, write_folder
from benchmarks.recipe import machine_facts, say
from minicpm4.deploy.random_weights import SHAPES, random_weights
from minicpm4.executors import CacheSize, Executor, backend, create_executor
from minicpm4.model import ModelConfig, pages_for
from minicpm4.model.step import single_step
from minicpm4.quant import dequantize

OURS, PROMPT, CONTEXT = "mindspore", 32, 4096
DEPTHS = (64, 1024, 4000)
FORMATS = ("bf16", "f32", "f16", "q8_0", "q4_0")  # the published checkpoint's first


class Contender(Protocol):
    """tokens: chosen since the prompt."""

    tokens: list[int]

    def decode(self, count: int) -> float:
        """Processor seconds a token, greedily."""


def plain_shape(layers: int) -> ModelConfig:
    """MiniCPM4-0.5B as a Llama, scales 1, since that is what `transformers` runs without others' code."""
    scales = {"embedding_scale": 1.0, "residual_scale": 1.0, "logit_divisor": 1.0}
    return replace(SHAPES["0.5B"], context_length=CONTEXT, num_layers=layers, sparse=None, **scales)


def executor_of(name: str, config: ModelConfig, format_name: str) -> Executor:
    weights, formats = random_weights(config, format_name, seed=0)
    options = backend(name).options(kv_format="f32")
    cache = CacheSize(CONTEXT, pages_for(CONTEXT))
    return create_executor(name, config, weights, options=options, cache=cache, formats=formats)


class Ours:
    """Each round begins with the prompt, so that a graph that was compiled twice would be seen."""

    def __init__(self, runner: Executor, prompt: np.ndarray) -> None:
        self.runner, self.prompt = runner, prompt
        self.tokens: list[int] = []

    def decode(self, count: int) -> float:
        self.tokens = [int(self.runner.run(single_step(self.prompt)).logits[0].argmax())]
        start = time.process_time()
        for index in range(count):
            step = single_step(np.array(self.tokens[-1:], np.int32), start=len(self.prompt) + index)
            self.tokens.append(int(self.runner.run(step).logits[0].argmax()))
        return (time.process_time() - start) / count


class Transformers:
    def __init__(self, config: ModelConfig, format_name: str, prompt: np.ndarray) -> None:
        torch.set_num_threads(1)
        self.model, self.prompt = llama_of(config, format_name), torch.from_numpy(prompt.astype(np.int64))[None]
        self.tokens: list[int] = []

    def decode(self, count: int) -> float:
        with torch.inference_mode():
            out = self.model(self.prompt, use_cache=True)
            self.tokens = [int(out.logits[0, -1].argmax())]
            start = time.process_time()
            for _ in range(count):
                out = self.model(torch.tensor([self.tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
                self.tokens.append(int(out.logits[0, -1].argmax()))
            return (time.process_time() - start) / count


def llama_of(config: ModelConfig, format_name: str) -> Any:
    plain = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=True,
    )
    model, (weights, _) = LlamaForCausalLM(plain).eval(), random_weights(config, format_name, seed=0)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(dequantize(weights(name))))
    return model


def seconds_at(runner: Executor, depth: int, count: int) -> float:
    runner.randomize_pages(np.arange(pages_for(CONTEXT), dtype=np.int32), seed=1)
    runner.run(single_step(np.zeros(1, np.int32), start=depth))
    start = time.process_time()
    for index in range(count):
        runner.run(single_step(np.zeros(1, np.int32), start=depth + index))
    return (time.process_time() - start) / count


def measure_first(config: ModelConfig, runner: Executor, format_name: str, prompt: np.ndarray) -> dict[str, float]:
    """The prompt's logits beside the reference's, and what the first prompt takes with its compiling."""
    reference = executor_of("reference", config, format_name)
    wanted = reference.run(single_step(prompt)).logits.copy()
    reference.close()
    start = time.process_time()
    difference = float(np.abs(runner.run(single_step(prompt)).logits - wanted).max())
    return {"logits_difference_from_reference": difference, "seconds_of_first_prompt": time.process_time() - start}


def agreed_tokens(ours: list[int], theirs: list[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = list(zip(ours, theirs, strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))


def measure_rounds(contenders: dict[str, Contender], *, repeats: int, count: int) -> dict[str, list[float]]:
    """Seconds a token of each round, all in turn; the first round is not counted, since it compiles."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        say(f"round {repeat} of {repeats}")
        for name, contender in contenders.items():
            seconds = contender.decode(count)
            if repeat:
                samples[name].append(seconds)
    return samples


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 24), ("tokens", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the weights as they are stored")
    parser.add_argument("--mindone", metavar="PYTHON", help="an interpreter with mindone 0.4.0 and MindSpore 2.7")
    parser.add_argument("--modes", nargs="+", default=["graph"], help="MindONE's; see mindone.py")
    return parser.parse_args()


def main() -> None:
    flags = parse()
    config = plain_shape(flags.layers)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT).astype(np.int32)
    with ExitStack() as stack:
        say("loading")
        runner = executor_of("mindspore", config, flags.format)
        first = measure_first(config, runner, flags.format, prompt)
        contenders: dict[str, Contender] = {OURS: Ours(runner, prompt), "transformers": Transformers(config, flags.format, prompt)}
        if flags.mindone:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="minicpm4-")))
            write_folder(folder, config, random_weights(config, flags.format, seed=0)[0], prompt=prompt)
        for mode in flags.modes if flags.mindone else ():
            say(f"MindONE compiles, {mode}")
            peer = mindone(flags.mindone, folder, mode=mode, num_tokens=flags.tokens * (flags.repeats + 1))
            contenders[f"mindone {mode}"] = stack.enter_context(peer)
        samples = measure_rounds(contenders, repeats=flags.repeats, count=flags.tokens)
        medians = {name: median(values) for name, values in samples.items()}
        result = {
            **machine_facts(),
            "command": " ".join(
                ["python -m benchmarks.mindspore", *("PYTHON" if word == flags.mindone else word for word in sys.argv[1:])]
            ),
            "versions": {name: version(name) for name in ("mindspore", "torch", "transformers", "numpy")},
            "layers": flags.layers,
            "format": flags.format,
            **first,
            "agreed_tokens": {name: agreed_tokens(contenders[OURS].tokens, other.tokens) for name, other in contenders.items()},
            "cpu_seconds_per_token": samples,
            "medians": medians,
            "times_ours": {name: seconds / medians[OURS] for name, seconds in medians.items()},
            "cpu_seconds_per_token_at": {depth: seconds_at(runner, depth, flags.tokens) for depth in DEPTHS},
            "graphs": runner.sizes,  # type: ignore[attr-defined]
            "facts": {name: peer.facts for name, peer in contenders.items() if isinstance(peer, MindONE)},
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
