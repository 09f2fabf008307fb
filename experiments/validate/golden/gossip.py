"""D-PSGD and CHOCO-SGD as the convex code of epfml/ChocoSGD computes them.

`plain` adapts, then combines; `choco` mixes with the replicas as they were, then quantises. What
the code draws at random is not stored, but can be read off the replicas of the file.

Legend: T steps, n nodes, d parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from scipy import sparse
from torch import Tensor

from experiments.errors import unknown
from experiments.experiment import Experiment
from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Logistic
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import CHOCO, DPSGD
from optimizers.compression import QSGD, TopK
from optimizers.strategy import GroupStrategy
from sim.budget import Budget
from sim.compute.options import ComputeOptions
from sim.payload import Compressor, Context, Dense, Payload
from topologies import complete
from topologies.weights import metropolis_weights

_TOPOLOGIES = ("ring", "torus", "centralized", "disconnected")
"""Those whose matrix of the authors' code has Metropolis weights."""
_LOSS = "log(1+exp(-y a.x))"
_CODECS = ("full", "top", "random-biased", "random-unbiased", "qsgd-biased", "qsgd-unbiased")


def rows(case: Case) -> Iterator[Row]:
    """The mixing matrix, and all nodes' parameters, and replicas, after every step."""
    if not str(case.given("loss", _LOSS)).startswith(_LOSS):
        raise ValueError(f"{case.name}: meta.loss={case.meta['loss']!r}: must begin with {_LOSS}")
    if case.given("topology", "of the file") in _TOPOLOGIES:
        ours = torch.from_numpy(metropolis_weights(_links(case["W"])).toarray())
        yield case.compare("W", ours, case["W"])
    names = ("params", "xhat") if case.given("algorithm") == "choco" else ("params",)
    rounds = RecordedRounds(lambda sim: torch.stack([rows_of(sim, name) for name in names]))
    sim = Experiment(
        Logistic(case),
        complete(case.workers),
        _strategy(case),
        coordinator=rounds,
        budget=Budget(steps=case.steps),
        compute=ComputeOptions(workers=1),  # a codec sees all nodes of a step in one call
    ).build()
    sim.group().params = case["x_init"]  # each node starts elsewhere
    if case.given("algorithm") == "choco":
        sim.group()["xhat"] = case["xhat_init"] - sim.initial_params()
    sim.start()
    sim.run(until=sim.done)
    yield case.compare("x", rounds.after_rounds[:, 0], case["x"])
    if case.given("algorithm") == "choco":
        replicas = rounds.after_rounds[:, 1] + sim.initial_params()
        yield case.compare("xhat", replicas, case["xhat"])
    elif "xhat" in case:  # there are none, and what the file calls so stays as it was
        yield case.compare("xhat", case["xhat_init"].expand_as(case["xhat"]), case["xhat"])


def _strategy(case: Case) -> GroupStrategy:
    lr, weights = case.number("lr"), sparse.csr_array(case["W"].numpy())
    if case.given("algorithm") == "plain":
        return DPSGD(lr, "adapt_then_combine", weights)
    return CHOCO(lr, case.number("consensus_lr"), "mix_first", _codec(case), weights)


def _links(matrix: Tensor) -> nx.Graph:
    """Who hears from whom by a symmetric mixing matrix."""
    links = nx.from_numpy_array((matrix != 0).numpy())
    links.remove_edges_from(list(nx.selfloop_edges(links)))
    nx.set_node_attributes(links, "host", "kind")
    return links


def _codec(case: Case) -> Compressor:
    kind, _, bias = (name := case.given("quantization")).partition("-")
    if name == "full":
        return Dense("native")
    if name == "top":
        return TopK(case.count("coordinates_to_keep"), value_dtype="native")
    before = torch.cat([case["xhat_init"][None], case["xhat"][:-1]])
    sent, whole = case["xhat"] - before, case["x"] - before  # [T, n, d]
    if name in ("random-biased", "random-unbiased"):
        top_k = TopK(k := case.count("coordinates_to_keep"), value_dtype="native")
        index = sent.abs().topk(k, dim=-1).indices.sort(dim=-1).values
        return Chosen(top_k, index, sent.shape[-1] / k if bias == "unbiased" else 1.0)
    if name in ("qsgd-biased", "qsgd-unbiased"):
        qsgd = QSGD(case.count("num_levels"), None, bias == "biased", norm_dtype="native")
        return Redrawn(qsgd, kind, _draws(qsgd, sent, whole))
    raise ValueError(unknown(f"{case.name}: meta.quantization", "codec", name, list(_CODECS)))


def _draws(qsgd: QSGD, sent: Tensor, whole: Tensor) -> Tensor:
    """Draws with which QSGD rounds up and down where the file did: 0 and 1."""
    d, s = whole.shape[-1], qsgd.levels
    shrunk = 1 + min(d / s**2, d**0.5 / s) if qsgd.shrink else 1.0
    norm = whole.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(whole.dtype).tiny)
    level, wanted = s * whole.abs() / norm, (s * shrunk * sent.abs() / norm).round()
    return 1.0 - (wanted > level.floor()).to(whole.dtype)


@dataclass(frozen=True, eq=False)
class Chosen(Compressor):
    """The coordinates that another program chose at random, of each node its own.

    Args:
        top_k: how they are written.
        index: those of each step and node, int64 [T, n, k].
        scale: of the values.
    """

    top_k: TopK
    index: Tensor
    scale: float

    deterministic = False

    def encode(self, x: Tensor, state: Any, ctx: Context) -> tuple[Payload, Any]:
        if x.is_meta:
            return self.top_k.encode(x, state, ctx)
        index = self.index[ctx.step, torch.from_numpy(ctx.nodes)]
        return self.top_k.payload(x.shape[1:], self.scale * x.gather(-1, index), index), state

    def decode(self, payload: Payload) -> Tensor:
        return self.top_k.decode(payload)


@dataclass(frozen=True, eq=False)
class Redrawn(Compressor):
    """A codec with the draws of another program.

    Args:
        inner: the codec.
        name: of its draws.
        draws: of each step and node, [T, n, d].
    """

    inner: Compressor
    name: str
    draws: Tensor

    deterministic = False

    def encode(self, x: Tensor, state: Any, ctx: Context) -> tuple[Payload, Any]:
        if x.is_meta:
            return self.inner.encode(x, state, ctx)
        draws = self.draws[ctx.step, torch.from_numpy(ctx.nodes)]
        return self.inner.encode(x, state, replace(ctx, recorded={self.name: draws}))

    def decode(self, payload: Payload) -> Tensor:
        return self.inner.decode(payload)
