"""The model said once: config, forward pass, the operations it is written in, and what a step of it needs."""

from minicpm4.model.config import ModelConfig
from minicpm4.model.forward import forward
from minicpm4.model.model import Model, assemble
from minicpm4.model.step import PAGE_TOKENS, Segment, Step, make_step, pages_for
from minicpm4.model.tensors import PackedTensor

__all__ = [
    "PAGE_TOKENS",
    "Model",
    "ModelConfig",
    "PackedTensor",
    "Segment",
    "Step",
    "assemble",
    "forward",
    "make_step",
    "pages_for",
]
