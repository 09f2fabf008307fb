"""Who is in a round, and when it ends."""

from sim.coordinators.coordinator import Coordinator
from sim.coordinators.elastic import Elastic
from sim.coordinators.psyche import Psyche
from sim.coordinators.static import Static

__all__ = ["Coordinator", "Elastic", "Psyche", "Static"]
