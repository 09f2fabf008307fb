"""Strategies: distributed training algorithms, readable beside their papers."""

from optimizers.all_reduce import AllReduce, Single
from optimizers.demo import DeMo
from optimizers.diloco import DiLoCo
from optimizers.gossip import ADPSGD, DPSGD
from optimizers.local import SGD, AdamW
from optimizers.parameter_server import ParameterServer
from optimizers.schedule import WSD, Constant, WarmupCosine
from optimizers.streaming_diloco import StreamingDiLoCo

__all__ = [
    "ADPSGD",
    "DPSGD",
    "SGD",
    "WSD",
    "AdamW",
    "AllReduce",
    "Constant",
    "DeMo",
    "DiLoCo",
    "ParameterServer",
    "Single",
    "StreamingDiLoCo",
    "WarmupCosine",
]
