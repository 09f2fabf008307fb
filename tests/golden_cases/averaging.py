"""Files of averages alone: push-sum, Moshpit and its rivals under failures, the int8 ring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden_cases.mlp import write
from golden_cases.sparse_loco import code_book


def push_sum(
    path: Path,
    n: int,
    peers: int = 1,
    graph: str = "NPeerDynamicDirectedExponentialGraph",
    T: int = 10,
    d: int = 4,
    dtype: str = "float64",
    seed: int = 7,
    even: bool = False,
) -> Path:
    """Each node keeps and sends 1 / (1 + peers) of its x and w."""
    rng, distances = np.random.default_rng(seed), []
    if graph == "NPeerDynamicDirectedExponentialGraph":
        i = 0
        while (peers + 1) ** i <= max(1, n - 1):
            distances += [j * (peers + 1) ** i for j in range(1, peers + 1)]
            i += 1
    elif graph == "DynamicDirectedExponentialGraph":
        distances = [sign * 2**i for i in range(int(np.log2(n - 1)) + 1) for sign in (1, -1)]
    x = rng.normal(size=(n, d)).astype(dtype)
    w = np.ones(n) if even else rng.uniform(0.5, 2, size=n)
    w = w.astype(dtype)
    starts, xs, ws, sent = {"x_init": x, "w_init": w}, [], [], []
    for t in range(T):
        turn = (peers * t + np.arange(peers)) % max(1, len(distances))
        ahead = np.array(distances)[turn] if distances else rng.integers(1, n, size=(n, peers))
        to = (np.arange(n)[:, None] + ahead) % n
        new_x, new_w = x / (1 + peers), w / (1 + peers)
        share_x, share_w = new_x.copy(), new_w.copy()
        for i in range(n):
            for j in to[i]:
                new_x[j] += share_x[i]
                new_w[j] += share_w[i]
        x, w = new_x.astype(dtype), new_w.astype(dtype)
        xs.append(x), ws.append(w), sent.append(to)
    meta = {"T": T, "algorithm": "push-sum mixing", "d": d, "graph": graph, "peers": peers}
    meta |= {"reference": "facebookresearch/stochastic_gradient_push@e682064d gossip.PushSum"}
    meta |= {"seed": seed, "workers": n}
    return write(
        path, meta, None, **starts, x=np.array(xs), w=np.array(ws), out_peers=np.array(sent)
    )


def moshpit(
    path: Path,
    size: int,
    dims: int,
    n: int,
    rounds: int = 7,
    failures: float = 0.3,
    neighbors: int = 2,
    seed: int = 2,
) -> Path:
    """Three protocols on scalars; who is not alive keeps its own."""
    rng = np.random.default_rng(seed)
    init, cells = rng.normal(size=n), rng.permutation(size**dims)[:n]
    alive = rng.random((rounds, n)) >= failures
    if failures:
        alive[rounds // 2] = False  # nobody
        alive[0] = True
    places = np.stack(np.unravel_index(cells, (size,) * dims))
    matrix = sum(np.roll(np.eye(n), s, 1) for s in range(-neighbors, neighbors + 1)) / neighbors
    values = dict.fromkeys(("moshpit", "gossip", "allreduce"), init)
    found: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for r, here in enumerate(alive, start=1):
        new = {name: old.copy() for name, old in values.items()}
        others = np.delete(places, r % dims, axis=0)
        for i in np.flatnonzero(here):
            same = here & (others == others[:, i : i + 1]).all(0)
            new["moshpit"][i] = values["moshpit"][same].mean()
            row = matrix[i] * here
            new["gossip"][i] = row / row.sum() @ values["gossip"]
        if here.all():
            new["allreduce"][:] = values["allreduce"].mean()
        values = new
        for name, after in values.items():
            found[name].append(after)
    meta = {"algorithm": "averaging protocols under failures", "failure_prob": failures}
    meta |= {"grid_dims": dims, "grid_size": size, "nodes": n, "np_seed_before_averager": 6}
    meta |= {"reference": "yandex-research/moshpit-sgd@949b60b8 averaging_experiments/averager.py"}
    arrays = {f"{name}_values": np.array(rows) for name, rows in found.items()}
    arrays |= {"alive": alive, "gossip_matrix": matrix, "init": init, "moshpit_cell": cells}
    return write(path, meta | {"rounds": rounds}, None, **arrays)


def int8_ring(
    path: Path, N: int, n: int, op: str = "SUM", scale: float = 0.01, seed: int = 57
) -> Path:
    """2 N chunks go round by two; every hop encodes what it has so far."""
    x = (scale * np.random.default_rng(seed).normal(size=(N, n))).astype(np.float32)
    length, whole = n // (2 * N), np.zeros(n, np.float32)
    assert length * 2 * N == n
    for chunk in range(2 * N):
        part, owner = slice(chunk * length, (chunk + 1) * length), chunk // 2
        total = x[(owner + 1) % N, part]
        for hop in range(2, N + 1):
            total = _decoded(total) + x[(owner + hop) % N, part]
        whole[part] = _decoded(total / np.float32(N) if op == "AVG" else total)
    books = [code_book(row, 256, 6, centred=False) for row in x]
    meta = {"algorithm": "int8 ring all-reduce", "dtype": "float32", "n": n, "op": op}
    meta |= {"reference": "PrimeIntellect-ai/prime src/zeroband ring_allreduce_py"}
    meta |= {"scale": scale, "seed": seed, "workers": N}
    arrays = {"input": x, "output": np.stack([whole] * N)}
    arrays |= {"quant_u8": np.stack([codes for codes, _, _ in books])}
    return write(path, meta, None, **arrays, quant_lookup=np.stack([book for _, _, book in books]))


def _decoded(values: np.ndarray) -> np.ndarray:
    codes, _, lookup = code_book(values, 256, 6, centred=False)
    return lookup[codes]
