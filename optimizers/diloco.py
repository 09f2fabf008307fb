"""DiLoCo: local steps, then one outer step on the averaged drift (Douillard et al., 2311.08105)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from optimizers.local import SGD
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from optimizers.subset import Rounds, Subset
from sim.aggregation import Aggregation, Mean
from sim.compute.local_optimizer import LocalOptimizer
from sim.overlap import Overlap
from sim.payload import Compressor, Dense
from sim.reduction import Reduction, averaged, coder
from sim.simulation import Simulation
from sim.units import Quantity


def nesterov() -> SGD:
    """The paper's outer optimizer: SGD with Nesterov momentum, lr 0.7, momentum 0.9 (table 5)."""
    return SGD(lr=0.7, momentum=0.9, nesterov=True)


@dataclass(frozen=True)
class DiLoCo(GroupStrategy):
    """Algorithm 1 of arXiv 2311.08105.

    Local SGD (FedAvg) is the plain case: `outer=SGD(lr=1)`. Inner optimizer state stays on its
    node, is never sent and never reset; the outer state is shared and comes with the parameters
    of a joiner. A member that leaves during a round is absent from the mean.

    Args:
        inner_steps: H, local steps between two synchronisations.
        outer: steps on the mean of the outer gradients (theta minus the local parameters).
        compressor: how an outer gradient is written on the wire.
        aggregation: the rule by which outer gradients become one; `optimizers.aggregation` has
            those that members who lie cannot decide.
        reduction: how the mean is made: `sim.reduction.Hierarchical`, inside of sites and then
            across, or `CodedRing`, which encodes at every hop; None leaves it to the codec.
        nodes: only these take part; all if None.
        extra_first_step: the first round has H + 1 local steps, which is what the trainer of
            exo-explore/gym does; the paper has H.
        overlap, bucket, streams: how the reductions of a round overlap with the backward pass of
            its last step, see `sim.overlap.Overlap`.
    """

    inner_steps: int = 100
    outer: LocalOptimizer = field(default_factory=nesterov)
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)
    reduction: Reduction | None = None
    nodes: Subset | None = None
    extra_first_step: bool = False
    overlap: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1

    def __post_init__(self) -> None:
        self._overlap()
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")
        if self.reduction is not None:
            self.reduction.check(self.compressor, self.aggregation)

    @property
    def passes(self) -> float:
        return self.outer.passes + 3.0  # the outer step, and theta - params

    @property
    def node_state(self) -> NodeState:
        # Outer gradients that are sent as they are lie in the parameters until they are added up.
        return averaged(self.compressor, self.aggregation, self.reduction, own=True)

    def init(self, sim: Simulation) -> Shared:
        theta = sim.initial_params()
        return {"theta": theta, "outer": self.outer.init(theta)}

    def run(self, sim: Simulation) -> Program:
        s, late = sim.shared, int(self.extra_first_step)
        rounds, parts = Rounds(sim, self.nodes), self._overlap().bind(sim)
        while True:
            group = yield from rounds.next()
            theta = group.params = s["theta"]
            steps = group.train(self.inner_steps + late)
            delta = group.rows(lambda params, theta=theta: theta - params, "params").lasting()
            mean = yield group.average(
                delta,
                self.compressor,
                rule=self.aggregation,
                by=self.reduction,
                after=steps,
                parts=parts,
            )
            if mean is not None:
                s["theta"], s["outer"] = self.outer.step(s["theta"], mean, s["outer"])
            late = 0

    def _overlap(self) -> Overlap:
        overlap = Overlap(self.overlap, self.bucket, self.streams)
        return overlap.check(coder(self.compressor, self.reduction))

    def consensus(self, sim: Simulation) -> Tensor:
        """The outer parameters, as they were after the last outer step."""
        return sim.shared["theta"]
