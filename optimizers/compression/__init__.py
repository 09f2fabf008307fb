"""Codecs: what is sent of a tensor, in how many bytes. `sim.payload.Dense` sends all of it."""

from optimizers.compression.chunks import Chunks
from optimizers.compression.codebook import CodeBook, Quantiles
from optimizers.compression.combine import Chain, PerTensor
from optimizers.compression.feedback import ErrorFeedback
from optimizers.compression.floats import Float4, Float8
from optimizers.compression.low_rank import LowRank
from optimizers.compression.quantize import Quantize
from optimizers.compression.shared import RandomBlocks, RandomK, SharedMask
from optimizers.compression.sign import Sign
from optimizers.compression.sparsify import Threshold, TopK
from optimizers.compression.stochastic import QSGD, Natural, TernGrad
from optimizers.compression.transform import DCT, Blocks

__all__ = [
    "DCT",
    "QSGD",
    "Blocks",
    "Chain",
    "Chunks",
    "CodeBook",
    "ErrorFeedback",
    "Float4",
    "Float8",
    "LowRank",
    "Natural",
    "PerTensor",
    "Quantiles",
    "Quantize",
    "RandomBlocks",
    "RandomK",
    "SharedMask",
    "Sign",
    "TernGrad",
    "Threshold",
    "TopK",
]
