"""Runs requests on a loaded model: scheduling, pages, sampling, and the Python interface `LLM`."""

from minicpm4.engine.answer import Completion
from minicpm4.engine.llm import LLM
from minicpm4.engine.load import LoadPlan, LoadProgress, plan_load, read_text_side
from minicpm4.engine.memory import MemoryPlan
from minicpm4.engine.options import LoadOptions
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.stream import Stream

__all__ = [
    "LLM",
    "Completion",
    "LoadOptions",
    "LoadPlan",
    "LoadProgress",
    "MemoryPlan",
    "SamplingParams",
    "Stream",
    "plan_load",
    "read_text_side",
]
