"""How well a model does: needles hidden in long texts, bits per byte. Everything goes through the public interface of the engine."""

from minicpm4.evaluate.heat_map import draw_heat_map
from minicpm4.evaluate.needle import TASKS, NeedleOptions, NeedleResult, run_needle
from minicpm4.evaluate.perplexity import PerplexityOptions, PerplexityResult, run_perplexity
from minicpm4.evaluate.prose import read_text

__all__ = [
    "TASKS",
    "NeedleOptions",
    "NeedleResult",
    "PerplexityOptions",
    "PerplexityResult",
    "draw_heat_map",
    "read_text",
    "run_needle",
    "run_perplexity",
]
