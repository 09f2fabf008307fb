"""Mixing matrices of gossip: Metropolis, uniform, push; spectral gap; what remains under churn.

A mixing matrix W is a sparse [n, n] array, doubly stochastic (that of push-sum: by columns only);
W[i, j] is the weight of what i hears from j, so one round of gossip is `x <- W @ x` on x [n, P].
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from scipy import sparse

from topologies.links import n_hosts


def metropolis_weights(graph: nx.Graph) -> sparse.csr_array:
    """W[i, j] = 1 / (1 + max(degree of i, degree of j)); the rest of a row is its own weight.

    Symmetric and doubly stochastic on any undirected graph of hosts.

    References:
        L. Xiao, S. Boyd, S.-J. Kim, "Distributed average consensus with least-mean-square
        deviation", J. Parallel and Distributed Computing 67 (2007), 33-46.
    """
    adjacency = _adjacency(graph)
    if graph.is_directed():
        raise ValueError("Metropolis weights need an undirected graph; use uniform_weights")
    degree = np.asarray(adjacency.sum(axis=1))
    pairs = adjacency.tocoo()
    weights = 1 / (1 + np.maximum(degree[pairs.row], degree[pairs.col]))
    return _with_own(sparse.coo_array((weights, (pairs.row, pairs.col)), adjacency.shape).tocsr())


def uniform_weights(graph: nx.Graph) -> sparse.csr_array:
    """Equal weights 1 / (1 + d) for each host and those it hears from, on a d-regular graph.

    Directed graphs may be used if every host sends to d others and hears from d. On an irregular
    graph equal weights would not be doubly stochastic (the average would drift): ValueError.
    """
    adjacency = _adjacency(graph)
    heard, sent = np.asarray(adjacency.sum(axis=1)), np.asarray(adjacency.sum(axis=0))
    degrees = np.unique(np.concatenate([heard, sent]))
    if len(degrees) > 1:
        raise ValueError(
            f"degrees from {degrees[0]:g} to {degrees[-1]:g}: uniform weights need a regular "
            "graph; use metropolis_weights"
        )
    return _with_own((adjacency / (1 + degrees[0])).tocsr())


def push_weights(links: sparse.sparray) -> sparse.csr_array:
    """P[i, j] = 1 / (1 + d_j) for each of the d_j hosts i that hear from j, and for j itself.

    Columns sum to 1: what a host sends and keeps is what it had, so x <- P @ x conserves the sum
    of x on any directed graph, though not the mean of all as a fixed point: that needs push-sum.

    Args:
        links: [n, n], how often i hears from j in a round, at (i, j); on the diagonal, what j sends
            to itself.

    References:
        D. Kempe, A. Dobra, J. Gehrke, "Gossip-based computation of aggregate information",
        FOCS 2003, 482-491.
    """
    shares = 1 / (1 + np.asarray(links.sum(axis=0)).ravel())
    own = sparse.eye_array(len(shares), format="csr")
    return ((own + links) @ sparse.diags_array(shares)).tocsr()


def hears(graph: nx.Graph) -> sparse.csr_array:
    """A[i, j] = 1 if host i hears from host j, [n, n]; in a directed graph along the edges."""
    return _adjacency(graph)


def spectral_gap(weights: sparse.sparray | np.ndarray) -> float:
    """1 - |lambda_2|: how much of the disagreement one round of gossip removes, at least.

    lambda_2 is the eigenvalue of second largest modulus. 1 is consensus in one round, 0 never.
    Dense linear algebra, O(n^3): about a second at n = 1000 if W is symmetric.
    """
    dense = weights if isinstance(weights, np.ndarray) else weights.toarray()
    sums = dense.sum(axis=1)
    if dense.shape[0] != dense.shape[1] or not np.allclose(sums, 1.0):
        raise ValueError(f"weights {dense.shape}: must be square with rows that sum to 1")
    symmetric = np.array_equal(dense, dense.T)
    values = np.linalg.eigvalsh(dense) if symmetric else np.linalg.eigvals(dense)
    moduli = np.sort(np.abs(values))[::-1]
    return float(1 - moduli[1]) if len(moduli) > 1 else 1.0


def restrict(weights: sparse.sparray, members: Sequence[int]) -> sparse.csr_array:
    """The matrix [m, m] among m members, in their order; the weight of the others returns to self.

    A symmetric W stays doubly stochastic; of another one only the rows still sum to 1.
    """
    rows = np.asarray(members, dtype=np.intp)
    kept = sparse.csr_array(weights)[rows][:, rows]
    lost = 1 - np.asarray(kept.sum(axis=1))
    return (kept + sparse.diags_array(lost)).tocsr()


def _adjacency(graph: nx.Graph) -> sparse.csr_array:
    """A[i, j] = 1 if i hears from j, [n, n]; hosts only, in the order of their ids."""
    n = len(graph)
    if n_hosts(graph) != n:
        raise ValueError(
            f"{n - n_hosts(graph)} of {n} nodes are routers: mixing weights need a graph of hosts; "
            "give an overlay, for example topologies.ring"
        )
    adjacency = nx.to_scipy_sparse_array(graph, nodelist=list(range(n)), weight=None).astype(float)
    heard = (adjacency - sparse.diags_array(adjacency.diagonal())).T.tocsr()
    heard.eliminate_zeros()
    return heard


def _with_own(neighbors: sparse.csr_array) -> sparse.csr_array:
    """Add the diagonal that makes every row sum to 1."""
    own = 1 - np.asarray(neighbors.sum(axis=1))
    return (neighbors + sparse.diags_array(own)).tocsr()
