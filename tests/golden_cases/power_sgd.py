"""PowerSGD files in the form of the authors' package, by loops over workers and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.mlp import NAMES, Arrays, Problem, Tape, write


def power_sgd(
    path: Path,
    problem: Problem,
    rank: int,
    iters: int = 1,
    mcr: float = 1.0,
    warm: int = 0,
    lr: float = 0.05,
    m: float = 0.9,
    nesterov: bool = False,
    columns: bool = False,
) -> Path:
    """Half-steps that take turns, each with one side's basis; what is left stays on its worker.

    Args:
        columns: what would be sent of a vector is counted as of a matrix of one column.
    """
    N, dtype, rng = problem.N, problem.dtype, np.random.default_rng(problem.seed + 1)
    params, half = list(problem.init), 0
    sides = [(*p.shape, 1)[:2] if columns else p.shape for p in params]
    masked = [_compressed(shape, rank, iters, mcr) for shape in sides]
    factors, starts = _start(params, masked, rank, rng)
    rest = [[np.zeros_like(p) for p in params] for _ in range(N)]
    momentum = [np.zeros_like(p) for p in params]
    tape, loss = Tape(), np.zeros((problem.T, N))
    for t in range(problem.T):
        passed = [problem.loss_and_grads(params, t, n) for n in range(N)]
        loss[t] = [value for value, _ in passed]
        tape.add_workers("grad", [grads for _, grads in passed])
        agg: Arrays = []
        for q, p in enumerate(params):
            left = [(rest[n][q] + passed[n][1][q]).reshape(len(p), -1) for n in range(N)]
            if t < warm or not masked[q]:
                agg.append((sum(left) / N).reshape(p.shape))
                left = [np.zeros_like(M) for M in left]
            else:
                out, left, factors[q] = _half_steps(left, factors[q], half, iters)
                agg.append(out.reshape(p.shape))
            for n in range(N):
                rest[n][q] = left[n].reshape(p.shape)
        half += iters if t >= warm else 0
        momentum = [m * v + g for v, g in zip(momentum, agg)]
        moves = [g + m * v if nesterov else v for v, g in zip(momentum, agg)]
        params = [(p - lr * move).astype(dtype) for p, move in zip(params, moves)]
        tape.add("params", list(params)), tape.add("agg", agg), tape.add_workers("residual", rest)
    meta: dict[str, Any] = {"B": problem.B, "T": problem.T, "algorithm": "PowerSGD"}
    meta |= {"compressed_mask": dict(zip(NAMES, masked)), "dtype": dtype, "iters": iters}
    meta |= {"lr": lr, "m": m, "mcr": mcr, "rank": rank, "reference": "epfml/powersgd@f07be924"}
    meta |= {"seed": problem.seed, "shape": list(problem.shape), "warm": warm, "workers": N}
    meta |= {"nesterov": True} if nesterov else {}
    return write(path, meta, problem, loss=loss, **starts, **tape.arrays())


def _compressed(shape: tuple[int, ...], rank: int, iters: int, mcr: float) -> bool:
    """By the tensor's own shape, also a vector's."""
    return bool(np.prod(shape) / (0.5 * iters * min(rank, *shape) * sum(shape)) > mcr)


def _start(
    params: Arrays, masked: list[bool], rank: int, rng: np.random.Generator
) -> tuple[dict[int, Arrays], dict[str, np.ndarray]]:
    """P and Q of each tensor to begin with; and as the file has them, by shape."""
    groups: dict[tuple[int, int], list[int]] = {}
    for q, p in enumerate(params):
        if masked[q]:
            groups.setdefault(p.reshape(len(p), -1).shape, []).append(q)
    factors, arrays = {}, {}
    for j, ((n, m), members) in enumerate(groups.items()):
        r = min(rank, n, m)
        batch = [rng.standard_normal((len(members), side, r)) for side in (n, m)]
        P, Q = (factor.astype(params[0].dtype) for factor in batch)
        arrays |= {f"P0_group{j}": P, f"Q0_group{j}": Q}
        factors |= {q: [P[i], Q[i]] for i, q in enumerate(members)}
    return factors, arrays


def _half_steps(
    left: Arrays, factors: Arrays, half: int, iters: int
) -> tuple[np.ndarray, Arrays, Arrays]:
    """What is found of the mean of matrices, what is left of each, and the factors afterwards."""
    out, factors = np.zeros_like(left[0]), list(factors)
    for turn in range(half, half + iters):
        side = turn % 2  # 0: P is the basis and Q is found; 1: the other way round
        basis, triangle = np.linalg.qr(factors[side])
        scales = np.abs(triangle.diagonal())
        assert scales.min() > 1e-4 * scales.max(), "columns that depend on each other"
        turned = [M.T if side else M for M in left]
        found = [M.T @ basis for M in turned]
        turned = [M - basis @ F.T for M, F in zip(turned, found)]
        left = [M.T if side else M for M in turned]
        mean = sum(found) / len(left)
        out = out + (mean @ basis.T if side else basis @ mean.T)
        factors[side], factors[1 - side] = basis, sum(found)
    return out, left, factors
