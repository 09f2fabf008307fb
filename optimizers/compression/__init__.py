"""Codecs: what is sent of a tensor, in how many bytes. `sim.payload.Dense` sends all of it."""

from optimizers.compression.combine import Chain, PerTensor
from optimizers.compression.feedback import ErrorFeedback
from optimizers.compression.quantize import Quantize, Sign
from optimizers.compression.sparsify import RandomK, Threshold, TopK
from optimizers.compression.transform import DCT, Blocks

__all__ = [
    "DCT",
    "Blocks",
    "Chain",
    "ErrorFeedback",
    "PerTensor",
    "Quantize",
    "RandomK",
    "Sign",
    "Threshold",
    "TopK",
]
