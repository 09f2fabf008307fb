"""State sync: how a joiner gets the state; here from one donor, drawn at random.

A download that is cut off because the donor left begins again at another donor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.compute.work import Program
from sim.network.network import TransferLost

if TYPE_CHECKING:
    from sim.simulation import Simulation


def state_nbytes(sim: Simulation) -> int:
    """Bytes of what every member knows: `sim.shared`, fragments included, counters not."""
    values = [list(v.values()) if isinstance(v, dict) else [v] for v in sim.shared.values()]
    sizes = [tensor.numel() for tensors in values for tensor in tensors if tensor.numel() > 1]
    return sim.workload.state_nbytes(sum(sizes) / sim.fleet.layout.numel)


def download_from_donor(sim: Simulation, node: int, holders: set[int]) -> Program:
    """Bring the state to a joiner over the network.

    Args:
        holders: the nodes that hold it; read again at each attempt.

    Returns:
        True once the node holds the state, False if it left before. If nobody holds the state
        any more, the joiner begins anew from the initial state.
    """
    attempt = 0
    while node in sim.online:
        donors = sorted(holders & sim.online - {node})
        if not donors:
            sim.restart()
            return True
        draw = sim.rng("donor", node, sim.joined, attempt)
        donor = int(draw.choice(donors))
        try:
            yield sim.network.transfer(donor, node, state_nbytes(sim))
        except TransferLost:
            attempt += 1
            continue
        sim.fleet.copy_params(donor, node)
        return True
    return False
