"""DeMo files, by dense cosine matrices and loops over workers and blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.mlp import NAMES, Problem, Tape, write


def demo(
    path: Path,
    problem: Problem,
    chunk: int,
    k: int,
    decay: float = 0.999,
    weight_decay: float = 0.0,
    lr: Any = 1e-2,
    residual: bool = True,
) -> Path:
    """The steps of section "DeMo arrays": all workers at the same parameters."""
    dtype, params = problem.dtype, [p.copy() for p in problem.init]
    rates = np.broadcast_to(np.asarray(lr, float), problem.T).copy()
    momenta = [[np.zeros_like(p) for p in params] for _ in range(problem.N)]
    tape, loss = Tape(), np.zeros((problem.T, problem.N))
    for t, rate in enumerate(rates.tolist()):
        passed = [problem.loss_and_grads(params, t, n) for n in range(problem.N)]
        loss[t] = [value for value, _ in passed]
        tape.add_workers("grad", [grads for _, grads in passed])
        params = [p * (1 - rate * weight_decay) for p in params] if weight_decay else params
        for q, name in enumerate(NAMES):
            sent = []
            for n in range(problem.N):
                delta = decay * momenta[n][q] + rate * passed[n][1][q]
                coefficients = to_blocks(delta, chunk)
                index, chosen = largest(coefficients, k), np.zeros_like(coefficients)
                values = np.take_along_axis(coefficients, index, -1)
                np.put_along_axis(chosen, index, values, -1)
                momenta[n][q] = delta - from_blocks(chosen, delta.shape, chunk).astype(dtype)
                sent.append((index.astype(np.int32), values))
            update = from_blocks(mean_of_senders(sent, coefficients), delta.shape, chunk)
            update = update.astype(dtype)
            params[q] = params[q] - np.asarray(rate * np.sign(update), dtype)
            tape.add("idx", (name, np.stack([i for i, _ in sent])))
            tape.add("val", (name, np.stack([v for _, v in sent])))
            tape.add("agg", (name, update))
        tape.add("params", list(params))
        tape.add_workers("residual", momenta)
    arrays = {k: v for k, v in tape.arrays().items() if residual or not k.endswith("_residual")}
    dims = {n for p in params for n in p.shape}
    count = sum(v[0, 0].size for k, v in arrays.items() if k.endswith("_val"))
    nbytes = int(count * (8 + np.dtype(dtype).itemsize))
    meta = {
        "algorithm": "DeMo",
        "batch": problem.B,
        "chunk_of_dim": {str(n): split(n, chunk) for n in sorted(dims)},
        "compression_chunk": chunk,
        "compression_decay": decay,
        "compression_topk": k,
        "dead_hidden_units": list(problem.dead) or None,
        "dtype": dtype,
        "ref_bytes_gathered_per_step_incl_own": problem.N * nbytes,
        "ref_bytes_sent_per_step_int64_index": nbytes,
        "reference": "bloc97/DeMo@0e48145d",
        "shape_in_hidden_out": list(problem.shape),
        "steps": problem.T,
        "weight_decay": weight_decay,
        "workers": problem.N,
    }
    return write(path, meta, problem, loss=loss, lr=rates, **arrays)


def split(n: int, target: int) -> int:
    """The largest divisor of n that is at most the target."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(1, target))


def basis(n: int) -> np.ndarray:
    """Orthonormal DCT-II, [frequency, place]."""
    f, j = np.arange(n)[:, None], np.arange(n)[None]
    rows = np.sqrt(2 / n) * np.cos(np.pi * (2 * j + 1) * f / (2 * n))
    rows[0] /= np.sqrt(2)
    return rows


def to_blocks(x: np.ndarray, chunk: int) -> np.ndarray:
    """Coefficients [rows / h, columns / w, h w], or [n / c, c] of a vector."""
    c = [split(n, chunk) for n in x.shape]
    B = [basis(n).astype(x.dtype) for n in c]
    if x.ndim == 1:
        return x.reshape(-1, c[0]) @ B[0].T
    h, w = c
    blocks = x.reshape(x.shape[0] // h, h, x.shape[1] // w, w).transpose(0, 2, 1, 3)
    return (B[0] @ blocks @ B[1].T).reshape(*blocks.shape[:2], h * w)


def from_blocks(coefficients: np.ndarray, shape: tuple[int, ...], chunk: int) -> np.ndarray:
    c = [split(n, chunk) for n in shape]
    B = [basis(n).astype(coefficients.dtype) for n in c]
    if len(shape) == 1:
        return (coefficients @ B[0]).reshape(shape)
    h, w = c
    blocks = coefficients.reshape(shape[0] // h, shape[1] // w, h, w)
    return (B[0].T @ blocks @ B[1]).transpose(0, 2, 1, 3).reshape(shape)


def largest(coefficients: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest of each block, ascending."""
    order = np.argsort(-np.abs(coefficients), axis=-1, kind="stable")
    return np.sort(order[..., : max(1, k)], axis=-1)


def mean_of_senders(sent: list[tuple[np.ndarray, np.ndarray]], like: np.ndarray) -> np.ndarray:
    total, count = np.zeros_like(like), np.zeros_like(like)
    for index, values in sent:
        for at in np.ndindex(index.shape[:-1]):
            total[at][index[at]] += values[at]
            count[at][index[at]] += 1
    return total / np.maximum(count, 1)
