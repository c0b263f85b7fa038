"""What the native executor is told, and how its arithmetic is chosen where it was not asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minicpm4.executors.backend import Preferences
from minicpm4.executors.base import ThreadedOptions
from minicpm4.hardware import Choice
from minicpm4.model import ModelConfig
from minicpm4.model.tensors import STORAGE_FORMATS

CODE_BYTES = {"int8": 1, "int16": 2, "f32": 0}  # of an activation that a quantized weight is multiplied with
SMALL_HIDDEN_SIZE = 1024  # of models whose activations are kept in sixteen bits


@dataclass(frozen=True, kw_only=True)
class NativeOptions(ThreadedOptions):
    """threads: of the CPU. isa: instruction set, None for the best. activations: "int8", "int16" or "f32", what quantized weights are
    multiplied with. prompt_activations: "same", or "bf16", where rows of a prompt and weights of layers, but float32 ones, are rounded to
    bfloat16. tile_cache: the file that keeps the packed weights between loads; None for nowhere."""

    isa: str | None = None
    activations: str = "f32"
    prompt_activations: str = "same"
    tile_cache: Path | None = None


def choose_activations(preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None) -> Choice:
    """What quantized weights are multiplied with.

    Eight bits cost a small model answers: they move SmolLM2-135M's logits by 0.1 to 1, which turns near-ties. Sixteen bits leave
    them where they were; decoding waits for memory and is as fast, prompts take 1.5 times as long, of which a small model needs
    little (docs/lab_notes.md).
    """
    what = "activations"
    if preferences.activations is not None:
        return Choice(what, preferences.activations, "asked for")
    if formats is not None and all(STORAGE_FORMATS[name].is_dense for name in formats):
        return Choice(what, "f32", "nothing is quantized")
    if config.hidden_size < SMALL_HIDDEN_SIZE:
        return Choice(what, "int16", "eight bits show in the answers of a model this small")
    return Choice(what, "int8", "fast, and exact enough for a model of this size")


def choose_prompt_activations(
    preferences: Preferences, activations: str, *, config: ModelConfig, formats: Iterable[str] | None, can_be_bf16: bool
) -> Choice:
    """What weights are multiplied with in the rows of prompts; activations: what quantized ones are in all others.

    bfloat16 is more exact than eight bits, and where the CPU has a unit for matrices of it faster, but for the shortest prompts. It is
    less exact than sixteen bits (docs/lab_notes.md): there it is opt-in. Weights in bfloat16 meet it too: it is what a model of such
    weights was trained with.
    """
    what = "prompt activations"
    if preferences.prompt_activations is not None:
        return Choice(what, preferences.prompt_activations, "asked for")
    has_bf16_weights = preferences.activations is None and formats is not None and "bf16" in formats
    if activations == "f32" and not has_bf16_weights:
        return Choice(what, "same", "nothing is rounded")
    if not can_be_bf16:
        return Choice(what, "same", "no unit for matrices of bfloat16")
    if activations == "int16":
        return Choice(what, "same", "bfloat16 is less exact than sixteen bits")
    if activations == "f32" and config.hidden_size < SMALL_HIDDEN_SIZE:
        return Choice(what, "same", "bfloat16 shows in the answers of a model this small")
    if activations == "f32":
        return Choice(what, "bf16", "as the weights are, and faster on this CPU")
    return Choice(what, "bf16", "faster and more exact than eight bits on this CPU")
