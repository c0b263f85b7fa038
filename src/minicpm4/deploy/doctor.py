"""Is everything in order? Each check says what was found and, where something is wrong, what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal

import numpy as np

from minicpm4.checkpoint import Checkpoint, hash_files, open_checkpoint, resolve
from minicpm4.deploy.random_weights import random_weights
from minicpm4.engine import LoadProgress, read_text_side
from minicpm4.errors import MiniCPMError
from minicpm4.executors import EXECUTORS, CacheSize, Preferences, backend, create_executor, resolve_options
from minicpm4.hardware import Choice, available_memory, cache_folder, cpu_name, num_cores
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.step import single_step
from minicpm4.quant import dequantize

SCAN_ELEMENTS = 1 << 22  # decoded at once
MAX_SHOWN = 5
State = Literal["ok", "note", "wrong"]
TRIAL = ModelConfig(  # two layers with MiniCPM's scales; logits of about one
    vocab_size=128, hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, context_length=256,
    embedding_scale=12.0, residual_scale=0.4, logit_divisor=1.5,
)  # fmt: skip
TRIAL_TOKENS = 50
NEAR_FLOAT32, NEAR_BFLOAT16 = 1e-4, 0.1  # sums of 512 products in another order; numbers of 8 bits through two layers


@dataclass(frozen=True)
class Check:
    """state: "ok", "note" (works, but less is possible), or "wrong"."""

    what: str
    state: State
    found: str


def check_machine() -> list[Check]:
    """The build, the CPU, the memory, the executors, the cache."""
    checks = [Check("minicpm4", "ok", f"{version('minicpm4')}, numpy {np.__version__}")]
    checks.append(Check("cpu", "ok", f"{cpu_name()}, {num_cores()} cores"))
    free = available_memory()
    checks.append(Check("memory", "note" if free is None else "ok", "unknown" if free is None else f"{free / 1e9:.1f} GB free"))
    checks.extend(check_executor(name) for name in EXECUTORS)
    return [*checks, check_cache()]


def check_executor(name: str) -> Check:
    try:
        capabilities = backend(name).capabilities
    except MiniCPMError as error:
        return Check(f"executor {name}", "wrong" if name == "native" else "note", str(error))
    isas = sorted(isa for isa in capabilities.isas if isa)
    devices = ", ".join(sorted(capabilities.devices))
    is_slow = name == "native" and isas == ["generic"]
    found = (
        f"on {devices}"
        + (f"; instruction sets {', '.join(isas)}" if isas else "")
        + ("; no vector kernels for this CPU" if is_slow else "")
    )
    return Check(f"executor {name}", "note" if is_slow else "ok", found)


def try_executor(name: str, *, device: str = "cpu") -> list[Check]:
    """What an executor chooses on a device, with reasons, and how far a small random model's logits there are from the reference's; also
    with prompts in bfloat16 where it does those by a unit of the CPU."""
    preferences = Preferences(kv_format="f32" if device == "cpu" else "bf16", device=device)
    is_native = name == "native"
    checks = run_trial(name, replace(preferences, activations="f32", prompt_activations="same") if is_native else preferences)
    if is_native and None in backend(name).capabilities.bf16_isas:
        checks.append(run_trial(name, replace(preferences, activations="f32", prompt_activations="bf16"))[-1])
    return checks


def run_trial(name: str, preferences: Preferences) -> list[Check]:
    what = f"executor {name}"
    weights, formats = random_weights(TRIAL, "q4_0", seed=0)
    tokens, cache = np.arange(TRIAL_TOKENS, dtype=np.int32), CacheSize(TRIAL.context_length, num_pages=4, max_step_tokens=64)

    def logits_of(executor: str, preferences: Preferences) -> tuple[np.ndarray, tuple[Choice, ...]]:
        options, _ = resolve_options(executor, preferences, TRIAL, formats=formats)
        runner = create_executor(executor, TRIAL, weights, options=options, cache=cache, formats=formats)
        step = single_step(tokens, num_logits=TRIAL_TOKENS, numerics=runner.prompt_numerics)
        return runner.run(step).logits.copy(), runner.choices

    try:
        logits, choices = logits_of(name, preferences)
    except MiniCPMError as error:
        return [Check(what, "wrong", str(error))]
    wanted, _ = logits_of("reference", replace(preferences, device=None))
    difference = float(np.abs(logits - wanted).max())
    has_bf16 = preferences.prompt_activations == "bf16"
    state: State = "ok" if difference < (NEAR_FLOAT32 if preferences.kv_format == "f32" and not has_bf16 else NEAR_BFLOAT16) else "wrong"
    trial = "a trial with prompts in bfloat16" if has_bf16 else "a trial"
    checks = [Check(f"{what}: {choice.what}", "ok", f"{choice.value} ({choice.reason})") for choice in choices]
    return [*checks, Check(f"{what}: {trial}", state, f"logits differ from the reference's by {difference:.1e}")]


def check_cache() -> Check:
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Check("cache", "wrong", f"{existing} cannot be written; set MINICPM4_CACHE to a folder of yours")
    models = sorted(path.name for path in (folder / "models").glob("*.gguf"))
    return Check("cache", "ok", f"{folder}: {', '.join(models) or 'no models yet'}")


def check_model(model: str, *, offline: bool = False, progress: LoadProgress | None = None) -> list[Check]:
    """That a model opens, that its files have the sums that somebody states, that its tokenizer loads, that every weight is a number."""
    try:
        download = None if progress is None else lambda done, total: progress("downloading", done, total)
        with open_checkpoint(resolve(model, offline=offline, progress=download)) as checkpoint:
            checks = [
                Check("model", "ok", f"{checkpoint.name}, {len(checkpoint.tensors)} tensors of {', '.join(sorted(checkpoint.formats))}")
            ]
            checks += [Check("config", "note", warning) for warning in checkpoint.warnings]
            checks += check_sums(checkpoint, progress)
            return [*checks, check_text(checkpoint), check_numbers(checkpoint, progress)]
    except MiniCPMError as error:
        return [Check("model", "wrong", str(error))]


def check_sums(checkpoint: Checkpoint, progress: LoadProgress | None) -> Iterator[Check]:
    told = None if progress is None else lambda done, total: progress("hashing", done, total)
    for file in hash_files(checkpoint.files, progress=told):
        if file.is_wrong:
            yield Check(f"sum of {file.path.name}", "wrong", f"sha256 {file.found}, {file.source} says {file.expected}; download it again")
        elif file.expected is None:
            yield Check(f"sum of {file.path.name}", "note", f"sha256 {file.found}; {file.source}")
        else:
            yield Check(f"sum of {file.path.name}", "ok", f"sha256 {file.found}, as {file.source} says")


def check_text(checkpoint: Checkpoint) -> Check:
    try:
        tokenizer, template = read_text_side(checkpoint, None)
    except MiniCPMError as error:
        return Check("tokenizer", "wrong", str(error))
    kind = "has a chat template" if template is not None else "has no chat template; generate works, chat does not"
    return Check("tokenizer", "ok" if template is not None else "note", f"{tokenizer.vocab_size} tokens; {kind}")


def check_numbers(checkpoint: Checkpoint, progress: LoadProgress | None) -> Check:
    """Decodes every weight once and looks for infinities and NaN."""
    total, done, broken = sum(info.nbytes for info in checkpoint.tensors.values()), 0, []
    for name, info in checkpoint.tensors.items():
        if not is_finite(checkpoint.load(name)):
            broken.append(name)
        checkpoint.release()
        done += info.nbytes
        if progress is not None:
            progress("scanning", done, total)
    if broken:
        more = f" and {len(broken) - MAX_SHOWN} more" if len(broken) > MAX_SHOWN else ""
        return Check("weights", "wrong", f"NaN or infinity in {', '.join(broken[:MAX_SHOWN])}{more}; download the file again")
    return Check("weights", "ok", f"all {len(checkpoint.tensors)} tensors hold finite numbers")


def is_finite(tensor: PackedTensor) -> bool:
    if len(tensor.shape) == 1:
        return bool(np.isfinite(dequantize(tensor)).all())
    step = max(1, SCAN_ELEMENTS // tensor.shape[-1])
    return all(bool(np.isfinite(dequantize(tensor, slice(row, row + step))).all()) for row in range(0, tensor.num_rows, step))
