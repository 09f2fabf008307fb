"""Strategies: distributed training algorithms, readable beside their papers."""

from optimizers.aggregation import (
    CentredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    TrimmedMean,
)
from optimizers.all_reduce import AllReduce, Single
from optimizers.async_diloco import AsyncDiLoCo
from optimizers.choco import CHOCO
from optimizers.decoupled_diloco import DecoupledDiLoCo
from optimizers.delayed import DelayedDiLoCo, EagerDiLoCo
from optimizers.demo import DeMo
from optimizers.diloco import DiLoCo
from optimizers.error_feedback import EF21, EFSGD
from optimizers.fedavg import FedAvg
from optimizers.gossip import ADPSGD, DPSGD
from optimizers.local import SGD, AdamW, Lion
from optimizers.moshpit import Moshpit
from optimizers.muon import Muon
from optimizers.noloco import NoLoCo, Pairing, RandomGroups
from optimizers.one_bit_adam import OneBitAdam
from optimizers.parameter_server import ParameterServer
from optimizers.power_sgd import PowerSGD
from optimizers.psyche import PsycheDeMo
from optimizers.push_sum import SGP
from optimizers.schedule import WSD, Constant, WarmupCosine
from optimizers.server_rules import (
    Buffered,
    ByStaleness,
    DelayedNesterov,
    DyLU,
    Equal,
    Vanilla,
)
from optimizers.sign_sgd import SignSGD
from optimizers.sparse_loco import SparseLoCo
from optimizers.sparta import SPARTA, SPARTADiLoCo
from optimizers.streaming_diloco import StreamingDiLoCo
from optimizers.subset import Subset

__all__ = [
    "ADPSGD",
    "CHOCO",
    "DPSGD",
    "EF21",
    "EFSGD",
    "SGD",
    "SGP",
    "SPARTA",
    "WSD",
    "AdamW",
    "AllReduce",
    "AsyncDiLoCo",
    "Buffered",
    "ByStaleness",
    "CentredClipping",
    "Constant",
    "CoordinateMedian",
    "DeMo",
    "DecoupledDiLoCo",
    "DelayedDiLoCo",
    "DelayedNesterov",
    "DiLoCo",
    "DyLU",
    "EagerDiLoCo",
    "Equal",
    "FedAvg",
    "GeometricMedian",
    "Krum",
    "Lion",
    "Mean",
    "Moshpit",
    "Muon",
    "NoLoCo",
    "OneBitAdam",
    "Pairing",
    "ParameterServer",
    "PowerSGD",
    "PsycheDeMo",
    "RandomGroups",
    "SPARTADiLoCo",
    "SignSGD",
    "Single",
    "SparseLoCo",
    "StreamingDiLoCo",
    "Subset",
    "TrimmedMean",
    "Vanilla",
    "WarmupCosine",
]
