"""The MindSpore executor beside `transformers` on torch: MiniCPM4-0.5B's shape, float32, one thread, random weights, in one process.

Decoding alternates between the two, and what is compared is the processor's seconds, which other work on the machine disturbs least.
Logits are compared with the numpy reference, and time at several depths of the cache. Run by the interpreter that has MindSpore:

    .venv-mindspore-2.10.0/bin/python -m benchmarks.mindspore [--layers 24] [--tokens 16] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.recipe import machine_facts, say
from minicpm4.deploy.random_weights import SHAPES, random_weights
from minicpm4.executors import Executor, ExecutorOptions, create_executor
from minicpm4.model import ModelConfig, pages_for, single_step
from minicpm4.quant import dequantize

PROMPT, CONTEXT = 32, 4096
DEPTHS = (64, 1024, 4000)


def plain_shape(layers: int) -> ModelConfig:
    """MiniCPM4-0.5B as a Llama, scales 1, since that is what `transformers` runs without others' code."""
    scales = {"embedding_scale": 1.0, "residual_scale": 1.0, "logit_divisor": 1.0}
    return replace(SHAPES["0.5B"], context_length=CONTEXT, num_layers=layers, sparse=None, **scales)


def executor_of(name: str, config: ModelConfig) -> Executor:
    weights, formats = random_weights(config, "f32", seed=0)
    options = ExecutorOptions(CONTEXT, pages_for(CONTEXT), kv_format="f32", threads=1)
    return create_executor(name, config, weights, options=options, formats=formats)


def llama_of(config: ModelConfig) -> Any:
    torch.set_num_threads(1)
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
    model, (weights, _) = LlamaForCausalLM(plain).eval(), random_weights(config, "f32", seed=0)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(dequantize(weights(name))))
    return model


def decode_llama(model: Any, prompt: np.ndarray, count: int) -> tuple[float, list[int]]:
    """Processor seconds a token after the prompt, and the tokens, greedily."""
    with torch.inference_mode():
        out = model(torch.from_numpy(prompt.astype(np.int64))[None], use_cache=True)
        tokens = [int(out.logits[0, -1].argmax())]
        start = time.process_time()
        for _ in range(count):
            out = model(torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values, use_cache=True)
            tokens.append(int(out.logits[0, -1].argmax()))
        return (time.process_time() - start) / count, tokens


def decode_ours(runner: Executor, prompt: np.ndarray, count: int) -> tuple[float, list[int]]:
    tokens = [int(runner.run(single_step(prompt))[0].argmax())]
    start = time.process_time()
    for index in range(count):
        step = single_step(np.array(tokens[-1:], np.int32), start=len(prompt) + index)
        tokens.append(int(runner.run(step)[0].argmax()))
    return (time.process_time() - start) / count, tokens


def seconds_at(runner: Executor, depth: int, count: int) -> float:
    runner.randomize_pages(np.arange(pages_for(CONTEXT), dtype=np.int32), seed=1)
    runner.run(single_step(np.zeros(1, np.int32), start=depth))
    start = time.process_time()
    for index in range(count):
        runner.run(single_step(np.zeros(1, np.int32), start=depth + index))
    return (time.process_time() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 24), ("tokens", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    config = plain_shape(flags.layers)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT).astype(np.int32)
    say("loading")
    reference = executor_of("reference", config)
    wanted = reference.run(single_step(prompt)).copy()
    reference.close()
    runner, llama = executor_of("mindspore", config), llama_of(config)
    start = time.process_time()
    difference = float(np.abs(runner.run(single_step(prompt)) - wanted).max())
    first = time.process_time() - start
    ours: list[float] = []
    theirs: list[float] = []
    same = True
    for repeat in range(flags.repeats + 1):  # the first is not counted: it compiles
        say(f"decoding {repeat} of {flags.repeats}")
        (a, our_tokens), (b, their_tokens) = decode_ours(runner, prompt, flags.tokens), decode_llama(llama, prompt, flags.tokens)
        same &= our_tokens == their_tokens
        if repeat:
            ours.append(a)
            theirs.append(b)
    result = {
        **machine_facts(),
        "versions": {name: version(name) for name in ("mindspore", "torch", "transformers", "numpy")},
        "layers": flags.layers,
        "logits_difference_from_reference": difference,
        "are_greedy_tokens_equal": same,
        "seconds_of_first_prompt": first,
        "cpu_seconds_per_token": {"mindspore": ours, "transformers": theirs},
        "ratio_of_medians": median(ours) / median(theirs),
        "cpu_seconds_per_token_at": {depth: seconds_at(runner, depth, flags.tokens) for depth in DEPTHS},
        "graphs": runner.sizes,  # type: ignore[attr-defined]
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
