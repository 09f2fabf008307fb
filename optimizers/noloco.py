"""NoLoCo: DiLoCo whose outer step is between random pairs (Kolehmainen et al., 2506.10911).

Legend: n members of a round, P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.group import Group
from sim.mixing import Heard
from sim.payload import Compressor, Dense
from sim.rows import Lazy, mean_params, spread
from sim.simulation import Simulation

EXACT = Dense("native")
"""How slow weights travel."""
Groups = Sequence[Sequence[int]]
"""Ids of nodes, in groups that have none in common."""


class Pairing(ABC):
    """Who exchanges with whom in an outer step; everybody must come to the same answer."""

    @abstractmethod
    def groups(
        self, members: Sequence[int], step: int, rng: np.random.Generator
    ) -> list[list[int]]:
        """The members in groups; who is in none, or alone in one, exchanges with nobody.

        Args:
            members: ids, ascending.
            step: number of the outer step.
            rng: of this step, the same for all members.
        """


@dataclass(frozen=True)
class RandomGroups(Pairing):
    """Other groups in each step, by a permutation; the rest that is left over is a smaller group.

    So of an odd number of nodes, in pairs, one has nobody in a step.

    Args:
        size: of a group.
    """

    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"strategy.pairing.size={self.size}: must be >= 2; the paper has 2")

    def groups(
        self, members: Sequence[int], step: int, rng: np.random.Generator
    ) -> list[list[int]]:
        order = rng.permutation(np.array(members, dtype=np.int64)).tolist()
        return [order[i : i + self.size] for i in range(0, len(order), self.size)]


@dataclass(frozen=True)
class NoLoCo(GroupStrategy):
    """Equations 1 and 2 of arXiv 2506.10911; no collective, and no two nodes are ever equal.

        D_i = params_i - phi_i                                           (new minus old)
        delta_i <- alpha delta_i + beta mean_G(D) - gamma (phi_i - mean_G(phi))
        phi_i <- phi_i + delta_i;  params_i <- phi_i

    G is a node's group of the step. Slow weights phi travel while the nodes train, so that only
    P values are on the critical path. A group that loses a member or a message skips the
    exchange: each is then its own group. Rows `phi` and `delta`; a joiner has phi of its donor and
    delta of a random member. In a round all wait for the slowest node; in the paper, for their
    partner only.

    Args:
        inner_steps: H, local steps between two exchanges.
        alpha: of the momentum delta, which is plain ("heavy ball").
        beta: of the mean drift.
        gamma: pulls the slow weights of a group together; with groups of n it is stable (theorem
            of the paper) from `alpha c` to `(2 + alpha) c`, where c = sqrt(n / (2 (n - 1))).
            The authors' code has beta and gamma equal.
        pairing: draws the groups.
        compressor: how D is written on the wire. A node's own D is exact, and so is phi, in
            4 bytes per value: what is wanted of it are small differences.
    """

    inner_steps: int = 50
    alpha: float = 0.5
    beta: float = 0.7
    gamma: float = 0.7
    pairing: Pairing = field(default_factory=RandomGroups)
    compressor: Compressor = field(default_factory=Dense)

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"strategy.alpha={self.alpha}: must be in [0, 1); the paper has 0.5")
        for name in ("beta", "gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"strategy.{name}={getattr(self, name)}: must be >= 0")

    @property
    def passes(self) -> float:
        return 11.0  # drift 3; delta: it and four others read, it written; phi: 2

    @property
    def node_state(self) -> NodeState:
        # The payload of phi is there at the same time as that of D.
        return NodeState(named=("phi", "delta"), sends=self.compressor, results=1, gathers=True)

    def init(self, sim: Simulation) -> Shared:
        params = sim.initial_params()
        return {"params": params, "delta": torch.zeros_like(params)}

    def run(self, sim: Simulation) -> Program:
        group = sim.group([])
        while True:
            before, group = group, (yield sim.coordinator.round())
            welcome(group, before)
            groups = self._groups(group)
            group.change(Tensor.copy_, "phi", "params")
            # In no round: it does not count as what the members want to hear in this one.
            everybody = sim.group(group.ids)
            slow = everybody.neighbor_gather(group["phi"], links(groups, group), EXACT)
            yield group.train(self.inner_steps)
            here = group.online
            drift = here.rows(torch.sub, "params", "phi")
            fast = here.neighbor_gather(drift, links(groups, here), self.compressor)
            yield slow & fast
            stayed = here.online
            heard: tuple[Any, Any] = (fast.value, slow.value)
            met = complete(groups, stayed, *heard)
            others = [others_of(met, each) for each in heard]
            stayed.change(self._momentum, "delta", "params", "phi", *others, shares(met, stayed))
            stayed.change(_moved, "params", "phi", "delta")

    def _momentum(self, delta: Tensor, *rows: Tensor) -> None:
        """Step delta, given a node's rows, the sums of D and phi of its group, and 1 / size."""
        params, phi, drifts, phis, share = rows  # the sums are nobody else's
        drift = drifts.add_(params).sub_(phi).mul_(share)
        mean = phis.add_(phi).mul_(share)
        delta.mul_(self.alpha).add_(drift, alpha=self.beta)
        delta.sub_(mean.sub_(phi).neg_(), alpha=self.gamma)

    def _groups(self, group: Group) -> Groups:
        number = 0 if group.round is None else group.round.number
        return self.pairing.groups(group.ids, number, group.sim.rng("noloco", number))

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the slow weights of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from that mean."""
        return {"spread": spread(sim)}


def _moved(params: Tensor, phi: Tensor, delta: Tensor) -> None:
    torch.add(phi, delta, out=params)


def welcome(group: Group, before: Group) -> None:
    """Give those who were not members of the round before the momentum of one who was."""
    sim, stayed = group.sim, set(before.online.ids) & set(group.ids)
    new = set(group.ids) - stayed
    if new and stayed and group.round is not None:
        donor = int(sim.rng("noloco/donor", group.round.number).choice(sorted(stayed)))
        sim.group(new)["delta"] = sim.group([donor])["delta"].tensor()[0].clone()


def links(groups: Groups, members: Group) -> scipy.sparse.csr_array:
    """1 at (i, j) where two members are in one group, and all of it are members, [n, n]."""
    here = set(members.ids)
    whole = [members.positions(some).tolist() for some in groups if here.issuperset(some)]
    pairs = np.array([(i, j) for some in whole for i in some for j in some if i != j])
    rows, columns = pairs.reshape(-1, 2).T.astype(np.int64)
    shape = len(members), len(members)
    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def complete(groups: Groups, members: Group, *exchanges: Heard) -> Groups:
    """The groups of which all are members, and have heard all of the others in the exchanges."""
    here = set(members.ids)
    for heard in exchanges:
        missing = heard.missing(links(groups, heard.group)).sum(axis=1)
        here -= set(heard.group.index[np.asarray(missing).ravel() > 0].tolist())
    return [some for some in groups if here.issuperset(some)]


def others_of(groups: Groups, heard: Heard) -> Lazy:
    """Sums of what members heard of the others in their groups, decoded block by block, [n, P]."""
    sim, payload, group = heard.group.sim, heard.payload, heard.group
    mates = np.full((len(group), max(map(len, groups), default=1) - 1), -1)
    for some in groups:
        at = group.positions(some).numpy()
        for k, i in enumerate(at):
            mates[i, : len(at) - 1] = np.delete(at, k)

    def rows(ids: np.ndarray) -> Tensor:
        block = mates[group.positions(ids).numpy()]
        if payload is not None and block.shape[1] == 1 and (block >= 0).all():
            return payload.rows(block[:, 0]).decode()  # pairs: nothing to add up
        total = sim.initial_params().new_zeros((len(ids), sim.fleet.layout.numel))
        for column in block.T:
            at = np.flatnonzero(column >= 0)
            if payload is not None and len(at):
                to = torch.from_numpy(at).to(total.device)
                total.index_add_(0, to, payload.rows(column[at]).decode())
        return total

    return Lazy(sim.fleet, group.index, rows)


def shares(groups: Groups, members: Group) -> Tensor:
    """One over the size of each member's group, [n, 1]; 1 for who is in none."""
    like, found = members.sim.initial_params(), np.ones(len(members))
    for some in groups:
        found[members.positions(some).numpy()] = 1 / len(some)
    return torch.from_numpy(found)[:, None].to(like)
