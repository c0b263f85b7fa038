"""Run MiniCPM4 and other models of the Llama family on the machine at hand.

from minicpm4 import LLM

with LLM("default") as llm:
    print(llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text)
"""

from minicpm4.engine import LLM, Completion, SamplingParams, Stream
from minicpm4.errors import CapacityError, CheckpointError, ConfigError, MiniCPMError, RequestError, UnsupportedError

__all__ = [
    "LLM",
    "CapacityError",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "MiniCPMError",
    "RequestError",
    "SamplingParams",
    "Stream",
    "UnsupportedError",
]
