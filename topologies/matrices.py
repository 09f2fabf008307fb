"""Topologies from matrices in CSV: latencies and bandwidths between every two of some hosts.

Measured matrices violate the triangle inequality; packets do not take the detour. So every pair
has a link of its own between two routers, and routes are those of the fewest hops.
"""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import numpy as np

from sim import units
from topologies.internet import Wan
from topologies.links import link, unlinked, validate
from topologies.tables import numbered_rows, read_matrix


def from_latency_csv(
    path: str | Path,
    bandwidth: units.Quantity = "1Gbps",
    *,
    latency_unit: str = "ms",
    round_trip: bool = True,
    backbone: units.Quantity = "inf",
    window: units.Quantity = "83Mbit",
    max_flow: units.Quantity = "1.15Gbps",
    max_size: units.Quantity = "16MB",
) -> nx.DiGraph:
    """Return hosts behind access links, with the pairwise latencies of a CSV matrix in between.

    Parameters
    ----------
    path : str or Path
        The header is `corner,name,...`, rows are `name,value,...`; row to column. Lines that start
        with # are comments. An empty cell means no direct link. The diagonal is ignored.
    bandwidth : str or float
        Of each host's own link, bytes/s in each direction; its latency is 0.
    latency_unit : str
        Of the values.
    round_trip : bool
        Whether the values are round-trip times, of which a link gets half.
    backbone, window, max_flow : str or float
        Of the links between every two, as in `topologies.regions`.
    max_size : str or float
        Bytes; larger files are refused.

    Returns
    -------
    networkx.DiGraph
        Host i has the `name` of row i and its own router n + i. Routes are the fewest hops, as
        measured latencies violate the triangle inequality.
    """
    wan, access = Wan.read(backbone, window, max_flow), link(bandwidth, 0.0)
    names, latency = read_matrix(path, max_size)
    graph = _hosts(names, [access["bandwidth"]] * len(names), [access["bandwidth"]] * len(names))
    wan.join(graph, range(len(names), len(graph)), latency * _seconds(latency_unit, round_trip))
    validate(graph)
    return graph


def from_matrices(
    latency: str | Path,
    bandwidth: str | Path,
    access: str | Path | units.Quantity = "inf",
    *,
    latency_unit: str = "ms",
    round_trip: bool = True,
    bandwidth_unit: str = "Mbps",
    per_connection: bool = False,
    max_size: units.Quantity = "16MB",
) -> nx.DiGraph:
    """Return hosts with the pairwise latencies and bandwidths of two CSV matrices.

    Parameters
    ----------
    latency, bandwidth : str or Path
        Matrices as `from_latency_csv` reads them, with the same names in the same order; row to
        column, the two directions may differ. A pair has both values, or neither (no direct link).
    access : str, Path or float
        Of each host's own link. A quantity (`"1Gbps"`) is for all, in each direction; otherwise
        a CSV file with the header `name,up,down` and one row a host. Its latency is 0.
    latency_unit, bandwidth_unit : str
        Of the values; `bandwidth_unit` is also that of the access file.
    round_trip : bool
        Whether latencies are round-trip times, of which a link gets half.
    per_connection : bool
        What a bandwidth means. False: the capacity from one host to the other, which all
        connections between them share. True: what each connection gets, however many there are.
    max_size : str or float
        Bytes; larger files are refused.

    Returns
    -------
    networkx.DiGraph
        Host i has the `name` of row i and its own router n + i. Routes are the fewest hops.

    Notes
    -----
    Pairs share nothing but the access links. Give `access` where the pairs were measured one at a
    time: else a host would send to all others at once at the sum of what it reaches one by one.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "rtt.csv").write_text("ms,a,b\\na,,20\\nb,20,\\n")
    >>> _ = (folder / "rate.csv").write_text("Mbps,a,b\\na,,80\\nb,8,\\n")
    >>> graph = from_matrices(folder / "rtt.csv", folder / "rate.csv", "1Gbps")
    >>> graph.edges[2, 3], graph.edges[3, 2]["bandwidth"]
    ({'bandwidth': 10000000.0, 'latency': 0.01}, 1000000.0)
    """
    names, delays = read_matrix(latency, max_size)
    others, rates = read_matrix(bandwidth, max_size, positive=True)
    if names != others:
        raise ValueError(f"{bandwidth}: {_difference(others, names)} {latency}")
    delays *= _seconds(latency_unit, round_trip)
    rates *= units.bandwidth(f"1{bandwidth_unit}", "bandwidth_unit")
    _check_pairs(latency, bandwidth, names, delays, rates)
    graph = _hosts(names, *_access(access, names, bandwidth_unit, max_size))
    n = len(names)
    for i, j in np.argwhere(~np.isnan(delays)).tolist():
        rate, delay = float(rates[i, j]), float(delays[i, j])
        attributes = {"bandwidth": math.inf if per_connection else rate, "latency": delay}
        if per_connection:
            attributes["flow_bandwidth"] = rate
        graph.add_edge(n + i, n + j, **attributes)
    graph.graph["routing"] = "fewest_hops"
    validate(graph)
    return graph


def _seconds(unit: str, round_trip: bool) -> float:
    """One way, of a value of 1."""
    return units.seconds(f"1{unit}", "latency_unit") / (2 if round_trip else 1)


def _hosts(names: list[str], up: list[float], down: list[float]) -> nx.DiGraph:
    """Hosts with their names and access links (bytes/s), and a router for each one."""
    n = len(names)
    graph = unlinked(nx.DiGraph, n, n)
    nx.set_node_attributes(graph, dict(enumerate(names)), "name")
    for i in range(n):
        graph.add_edge(i, n + i, bandwidth=up[i], latency=0.0)
        graph.add_edge(n + i, i, bandwidth=down[i], latency=0.0)
    return graph


def _difference(found: list[str], expected: list[str]) -> str:
    """Where two headers differ, in words."""
    for i, (one, other) in enumerate(zip(found, expected)):
        if one != other:
            return f"column {i + 1} is {one!r}, not {other!r} as in"
    return f"{len(found)} names, not {len(expected)} as in"


def _check_pairs(
    latency: str | Path,
    bandwidth: str | Path,
    names: list[str],
    delays: np.ndarray,
    rates: np.ndarray,
) -> None:
    """Raise if a pair has one of its two values only."""
    for path, here, there in ((latency, delays, rates), (bandwidth, rates, delays)):
        gaps = np.argwhere(np.isnan(here) & ~np.isnan(there))
        if len(gaps):
            src, dst = (names[i] for i in gaps[0].tolist())
            other = bandwidth if path == latency else latency
            raise ValueError(
                f"{path}, row {src!r}, column {dst!r}: empty, but not so in {other}; "
                "a pair has both values or neither"
            )


def _access(
    access: str | Path | units.Quantity, names: list[str], unit: str, max_size: units.Quantity
) -> tuple[list[float], list[float]]:
    """Up and down of each host, bytes/s."""
    if isinstance(access, int | float) or not Path(access).suffix.lower().endswith("csv"):
        rate = units.bandwidth(str(access) if isinstance(access, Path) else access, "access")
        return [rate] * len(names), [rate] * len(names)
    rows = numbered_rows(access, max_size)
    if not rows or [cell.strip() for cell in rows[0][1]] != ["name", "up", "down"]:
        raise ValueError(f"{access}: expected the header `name,up,down`")
    found: dict[str, tuple[float, float]] = {}
    for line, row in rows[1:]:
        where, name = f"{access}, line {line}", row[0].strip()
        if len(row) != 3 or name not in names or name in found:
            close = units.nearest(name, [n for n in names if n not in found])
            raise ValueError(
                f"{where}: {','.join(row)!r}; expected `name,up,down`, each name of the matrices "
                f"once; did you mean {close!r}?"
            )
        up, down = (
            units.bandwidth(f"{cell.strip()}{unit}", f"{where}, column {key!r}: {key}")
            for key, cell in zip(("up", "down"), row[1:])
        )
        found[name] = up, down
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{access}: no row for {missing[0]!r}; expected one for each name")
    return [found[name][0] for name in names], [found[name][1] for name in names]
