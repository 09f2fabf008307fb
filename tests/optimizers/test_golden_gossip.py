"""Golden files of other codecs, graphs and sizes, made by a plain loop in numpy."""

import json

import numpy as np
import pytest

from experiments.validate.golden.judge import judge

LR, PENALTY = 0.3, 1e-3


def _write(path, meta, **arrays):
    np.savez(path, meta=np.array(json.dumps({"reference": "numpy"} | meta)), **arrays)
    return path


def _quantised(rng, v, kind, k, s):
    """As `logistic.py` of epfml/ChocoSGD quantises one node's difference [d]."""
    d, q = len(v), np.zeros_like(v)
    if kind == "full":
        return v
    if kind == "top":
        kept = np.argsort(np.abs(v))[::-1][:k]
        q[kept] = v[kept]
    elif kind.startswith("random"):
        kept = rng.choice(d, k, replace=False)
        q[kept] = v[kept] * (d / k if kind == "random-unbiased" else 1)
    else:
        norm = np.linalg.norm(v)
        level = s * np.abs(v) / norm
        level = np.floor(level) + (rng.random(d) < level - np.floor(level))
        shrunk = 1 + min(d / s**2, np.sqrt(d) / s) if kind == "qsgd-biased" else 1
        q = np.sign(v) * norm * level / s / shrunk
    return q


def _ring(n):
    return sum(np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1)) / 3


def _torus(side):
    step = np.roll(np.eye(side), 1, axis=1) + np.roll(np.eye(side), -1, axis=1)
    return (np.kron(step, np.eye(side)) + np.kron(np.eye(side), step) + np.eye(side**2)) / 5


MATRICES = {
    "ring": _ring(6),
    "torus": _torus(3),
    "centralized": np.full((4, 4), 0.25),
    "disconnected": np.eye(3),
}
CODECS = ("full", "top", "random-biased", "random-unbiased", "qsgd-biased", "qsgd-unbiased")


def _logistic(path, method, topology, kind, dtype="float64", steps=9, d=7, k=2, s=4, gamma=0.1):
    """A file as the convex code would make it."""
    rng, w = np.random.default_rng(0), MATRICES[topology]
    n = len(w)
    a, y = rng.normal(size=(5, d)).astype(dtype), np.sign(rng.normal(size=5)).astype(dtype)
    x, xhat = rng.normal(size=(2, n, d)).astype(dtype).astype(float)
    arrays = {"x_init": x.astype(dtype), "xhat_init": xhat.astype(dtype), "W": w}
    chosen, xs, replicas = rng.integers(5, size=(steps, n)), [], []
    for t in range(steps):
        rows, signs = a[chosen[t]], y[chosen[t]]
        margin = signs * (rows * x).sum(1)
        stepped = x + LR * ((signs / (1 + np.exp(margin)))[:, None] * rows - PENALTY * x)
        if method == "plain":
            x = w @ stepped
        else:
            x = stepped + gamma * (w - np.eye(n)) @ xhat
            xhat = xhat + np.array([_quantised(rng, v, kind, k, s) for v in x - xhat])
        xs.append(x.astype(dtype))
        replicas.append(xhat.astype(dtype))
    meta = {"algorithm": method, "quantization": kind, "topology": topology, "workers": n}
    meta |= {"steps": steps, "lr": LR, "regularizer": PENALTY, "consensus_lr": gamma}
    meta |= {"coordinates_to_keep": k, "num_levels": s, "dtype": dtype}
    arrays |= {"A": a, "y": y, "sample_idx": chosen, "x": np.array(xs), "xhat": np.array(replicas)}
    return _write(path, meta, **arrays)


@pytest.mark.parametrize("topology", MATRICES)
@pytest.mark.parametrize("kind", CODECS)
def test_choco_with_every_codec_and_graph_of_the_code(tmp_path, topology, kind):
    rows = judge(_logistic(tmp_path / "case.npz", "choco", topology, kind))
    assert [row.what for row in rows if not row.holds] == []
    assert len(rows) == 3


@pytest.mark.parametrize("topology", MATRICES)
def test_dpsgd_on_every_graph_of_the_code(tmp_path, topology):
    rows = judge(_logistic(tmp_path / "case.npz", "plain", topology, "full"))
    assert [row.what for row in rows if not row.holds] == []


def test_single_precision(tmp_path):
    rows = judge(_logistic(tmp_path / "case.npz", "choco", "ring", "top", "float32"))
    assert [row.what for row in rows if not row.holds] == []


def test_another_consensus_rate_than_that_of_the_file_fails(tmp_path):
    path = _logistic(tmp_path / "case.npz", "choco", "ring", "top")
    with np.load(path) as stored:
        found = dict(stored)
    meta = json.loads(str(found.pop("meta"))) | {"consensus_lr": 0.11}
    assert not all(row.holds for row in judge(_write(path, meta, **found)))


@pytest.mark.parametrize("graph", ["DynamicDirectedExponentialGraph", "of our own"])
@pytest.mark.parametrize(("n", "peers"), [(6, 1), (9, 2)])
def test_push_sum_along_the_receivers_of_the_file(tmp_path, graph, n, peers):
    rng, steps = np.random.default_rng(1), 8
    if graph == "of our own":
        receivers = (np.arange(n)[:, None] + rng.integers(1, n, size=(steps, n, peers))) % n
    else:
        distances = [sign * 2**i for i in range(int(np.log2(n - 1)) + 1) for sign in (1, -1)]
        turns = (peers * np.arange(steps)[:, None] + np.arange(peers)) % len(distances)
        receivers = (np.arange(n)[:, None] + np.array(distances)[turns][:, None]) % n
    x, w = rng.normal(size=(n, 3)), rng.uniform(0.5, 2, size=n)
    arrays = {"x_init": x, "w_init": w, "out_peers": receivers}
    xs, ws, share = [], [], 1 / (1 + peers)
    for to in receivers:
        matrix = share * (np.eye(n) + sum(np.eye(n)[column].T for column in to.T))
        x, w = matrix @ x, matrix @ w
        xs.append(x)
        ws.append(w)
    meta = {"algorithm": "push-sum mixing", "workers": n, "T": steps, "peers": peers}
    meta |= {"graph": graph}
    rows = judge(_write(tmp_path / "case.npz", meta, x=np.array(xs), w=np.array(ws), **arrays))
    assert [row.what for row in rows if not row.holds] == []
    assert len(rows) == (3 if graph == "of our own" else 4)


@pytest.mark.parametrize(("size", "dims", "n"), [(4, 2, 13), (2, 4, 16), (5, 1, 5)])
def test_moshpit_on_grids_with_holes_and_failures(tmp_path, size, dims, n):
    rng, rounds = np.random.default_rng(2), 7
    values, cells = rng.normal(size=n), rng.permutation(size**dims)[:n]
    alive, found = rng.random((rounds, n)) > 0.3, []
    alive[3] = False  # nobody
    init, places = values.copy(), np.stack(np.unravel_index(cells, (size,) * dims))
    for r in range(rounds):
        others, after = np.delete(places, (r + 1) % dims, axis=0), values.copy()
        for i in np.flatnonzero(alive[r]):
            same = alive[r] & (others == others[:, i : i + 1]).all(0)
            after[i] = values[same].mean()
        values = after
        found.append(values)
    meta = {"algorithm": "averaging protocols under failures", "grid_size": size}
    meta |= {"grid_dims": dims, "nodes": n, "rounds": rounds}
    path = tmp_path / "case.npz"
    arrays = {"init": init, "alive": alive, "moshpit_cell": cells, "moshpit_values": found}
    rows = judge(_write(path, meta, **arrays))
    assert [row.what for row in rows if not row.holds] == []
    assert len(rows) == 1
