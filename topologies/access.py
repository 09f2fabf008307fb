"""Homes behind consumer access lines: fast down, slow up, unequal, tens of milliseconds away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import networkx as nx
import numpy as np

from sim import units
from topologies.draws import stream
from topologies.internet import Wan, place, region_latency
from topologies.limits import real, whole
from topologies.links import unlinked
from topologies.tables import DATA, read_records

CABLE_AND_FIBRE = MappingProxyType({"cable": 0.7, "fibre": 0.3})


def homes(
    n: int,
    technologies: Mapping[str, float] | str = CABLE_AND_FIBRE,
    country: str = "US",
    spread: float = 0.5,
    *,
    regions: Sequence[str] | str | None = None,
    backbone: units.Quantity = "inf",
    window: units.Quantity = "83Mbit",
    max_flow: units.Quantity = "1.15Gbps",
    seed: int = 0,
) -> nx.DiGraph:
    """Return n homes whose access lines have measured medians of speed and latency.

    Parameters
    ----------
    n : int
        Hosts, n >= 1.
    technologies : mapping of str to float, or str
        Weights of the access technologies (`access_lines()` lists those of each country). The
        numbers of homes follow them as closely as whole numbers can; which home has which is drawn.
        The default weights are an assumption.
    country : str
        Two letters; "WW" is the world.
    spread : float
        Sigma, >= 0, of log-normal factors with median 1: one for both speeds of a home, one for its
        latency. 0 gives every home the median. That lines are spread like this, and 0.5, are
        assumptions: published figures are medians only.
    regions : sequence of str, str or None
        Where the homes are, in equal blocks, with measured round-trip times in between
        (`topologies.regions`). None puts all around one core router.
    backbone, window, max_flow : str or float
        Of the wide area between regions, as in `topologies.regions`; the round trip that limits a
        connection is the one between the regions, without the access lines.
    seed : int
        Equal seeds give equal graphs; the two factors of home i depend on (seed, i) only.

    Returns
    -------
    networkx.DiGraph
        Hosts have `technology`. From a home runs its up link, to it its down link. With one core,
        `graph.graph["gateway"]` is that router.

    Notes
    -----
    Half of a line's latency, a round trip to a nearby test server, is that of each of its links:
    the server is taken to stand at the core.

    References
    ----------
    .. [1] Ookla and Ofcom medians as quoted by the pages that `topologies/data/access.csv` names,
       row by row. US cable: 184 Mbit/s down, 18.9 Mbit/s up, 14 ms.

    Examples
    --------
    >>> graph = homes(8, "cable", spread=0)
    >>> round(graph.edges[0, 8]["bandwidth"] * 8 / 1e6, 2)
    18.88
    """
    n, spread = whole("n", n, "a topology of homes", 1), real("spread", spread, "homes", 0.0)
    wan, lines = Wan.read(backbone, window, max_flow), access_lines(country)
    shares = {technologies: 1.0} if isinstance(technologies, str) else technologies
    names = quotas(n, _known(shares, lines, country))
    graph, router = _sites(n, regions, wan)
    for home, technology in enumerate(stream(seed, "technologies").permutation(names).tolist()):
        line = lines[technology]
        rate, delay = np.exp(spread * stream(seed, "homes", home).standard_normal(2)).tolist()
        graph.nodes[home]["technology"] = technology
        latency = line["latency"] * delay
        graph.add_edge(home, router[home], bandwidth=line["up"] * rate, latency=latency)
        graph.add_edge(router[home], home, bandwidth=line["down"] * rate, latency=latency)
    return graph


def access_lines(country: str = "US") -> dict[str, dict[str, float]]:
    """Technology -> `down` and `up` (bytes/s) and `latency` (seconds, one way), all medians."""
    records = read_records(DATA / "access.csv")
    lines = {
        row["technology"]: {
            "down": units.bandwidth(f"{row['down_mbps']}Mbps"),
            "up": units.bandwidth(f"{row['up_mbps']}Mbps"),
            "latency": units.seconds(f"{row['latency_ms']}ms") / 2,
        }
        for row in records
        if row["country"] == country
    }
    if not lines:
        known = sorted({row["country"] for row in records})
        close = units.nearest(str(country), known)
        raise ValueError(f"country={country!r}: one of {known}; did you mean {close!r}?")
    return lines


def quotas(n: int, shares: Mapping[str, float]) -> list[str]:
    """n names in the proportions of `shares`, by largest remainders (earlier names win ties).

    >>> quotas(5, {"cable": 0.7, "fibre": 0.3})
    ['cable', 'cable', 'cable', 'cable', 'fibre']
    """
    total = sum(shares.values())
    ideal = {name: n * share / total for name, share in shares.items()}
    counts = {name: math.floor(value) for name, value in ideal.items()}
    by_remainder = sorted(ideal, key=lambda name: counts[name] - ideal[name])
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    return [name for name, count in counts.items() for _ in range(count)]


def _known(
    shares: Mapping[str, float], lines: Mapping[str, object], country: str
) -> Mapping[str, float]:
    """`shares`, after checking names and weights."""
    for technology, share in shares.items():
        if technology not in lines:
            close = units.nearest(str(technology), list(lines))
            raise ValueError(
                f"technologies: {technology!r} is not known in country={country!r}, "
                f"which has {list(lines)}; did you mean {close!r}?"
            )
        real(f"technologies[{technology!r}]", share, "a weight", 0.0)
    if not sum(shares.values()) > 0:
        raise ValueError(f"technologies={dict(shares)}: at least one weight must be > 0")
    return shares


def _sites(
    n: int, regions: Sequence[str] | str | None, wan: Wan
) -> tuple[nx.DiGraph, dict[int, int]]:
    """A graph of n unconnected hosts and linked routers, and host -> router."""
    if regions is None:
        graph = unlinked(nx.DiGraph, n, 1)
        graph.graph["gateway"] = n
        return graph, dict.fromkeys(range(n), n)
    graph, routers = place(nx.DiGraph, n, regions)
    router = {host: routers[graph.nodes[host]["region"]] for host in range(n)}
    return wan.join(graph, list(routers.values()), region_latency(list(routers))), router
