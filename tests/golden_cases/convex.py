"""CHOCO-SGD and D-PSGD files in the form of their authors' convex code, by loops over nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.mlp import write

CODECS = ("full", "top", "random-biased", "random-unbiased", "qsgd-biased", "qsgd-unbiased")


def ring(n: int) -> np.ndarray:
    if n == 2:
        return np.full((2, 2), 0.5)
    return sum(np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1)) / 3


def torus(side: int) -> np.ndarray:
    step = np.roll(np.eye(side), 1, axis=1) + np.roll(np.eye(side), -1, axis=1)
    return (np.kron(step, np.eye(side)) + np.kron(np.eye(side), step) + np.eye(side**2)) / 5


def weighted(n: int, seed: int = 0) -> np.ndarray:
    """A graph of its own, with symmetric weights that are nobody's formula."""
    rng, W = np.random.default_rng(seed), np.zeros((n, n))
    for _ in range(2 * n):
        i, j = rng.choice(n, 2, replace=False)
        part = rng.uniform(0, 0.5 * min(W[i].sum() < 0.5, W[j].sum() < 0.5, key=float))
        W[i, j], W[j, i] = W[i, j] + part, W[j, i] + part
    return W + np.diag(1 - W.sum(1))


MATRICES = {
    "ring": ring(6),
    "torus": torus(3),
    "centralized": np.full((4, 4), 0.25),
    "disconnected": np.eye(3),
    "of our own": weighted(5),
}


def convex(
    path: Path,
    method: str,
    topology: str,
    kind: str = "full",
    W: np.ndarray | None = None,
    dtype: str = "float64",
    steps: int = 9,
    d: int = 7,
    k: int = 2,
    s: int = 4,
    gamma: float = 0.1,
    lr: float = 0.3,
    penalty: float = 1e-3,
    scale: float = 1.0,
    seed: int = 0,
) -> Path:
    """`plain` adapts, then combines; `choco` mixes the replicas as they were, then quantises.

    Args:
        scale: of the features.
    """
    W = MATRICES[topology] if W is None else W
    rng, n = np.random.default_rng(seed), len(W)
    a = (scale * rng.normal(size=(5, d))).astype(dtype)
    y = np.sign(rng.normal(size=5)).astype(dtype)
    x, xhat = rng.normal(size=(2, n, d)).astype(dtype).astype(float)
    starts = {"x_init": x.astype(dtype), "xhat_init": xhat.astype(dtype)}
    chosen, xs, replicas = rng.integers(5, size=(steps, n)), [], []
    for t in range(steps):
        rows, signs = a[chosen[t]].astype(float), y[chosen[t]].astype(float)
        margin = np.clip(signs * (rows * x).sum(1), -700, 700)
        stepped = x + lr * ((signs / (1 + np.exp(margin)))[:, None] * rows - penalty * x)
        if method == "plain":
            x = W @ stepped
        else:
            x = stepped + gamma * (W - np.eye(n)) @ xhat
            xhat = xhat + np.array([_quantised(rng, v, kind, k, s) for v in x - xhat])
        xs.append(x.astype(dtype)), replicas.append(xhat.astype(dtype))
    loss = "log(1+exp(-y a.x)) on one sample per worker per step, plus regularizer/2 |x|^2"
    meta: dict[str, Any] = {"algorithm": method, "dim": d, "loss": loss, "lr": lr}
    meta |= {"consensus_lr": gamma if method == "choco" else None, "quantization": kind}
    meta |= {"reference": "epfml/ChocoSGD@3cb976a5 convex_code/logistic.py"}
    meta |= {"regularizer": penalty, "steps": steps, "topology": topology, "workers": n}
    meta |= {"coordinates_to_keep": k} if kind.startswith(("top", "random")) else {}
    meta |= {"num_levels": s} if kind.startswith("qsgd") else {}
    arrays = {"A": a, "y": y, "W": W, "sample_idx": chosen, "x": np.array(xs)}
    return write(path, meta, None, **starts, **arrays, xhat=np.array(replicas))


def _quantised(rng: np.random.Generator, v: np.ndarray, kind: str, k: int, s: int) -> np.ndarray:
    """One node's difference [d]."""
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
