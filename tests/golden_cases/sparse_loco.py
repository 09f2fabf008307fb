"""SparseLoCo files in the form of CCLoco, by loops over rounds, workers and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.demo import mean_of_senders, split
from golden_cases.mlp import NAMES, Inner, Problem, Tape, write

ADAMW = "AdamW betas (0.9,0.95) eps 1e-8 wd 0.1, state kept across rounds"
SGD = "SGD momentum 0.9"


def sparse_loco(
    path: Path,
    problem: Problem,
    H: int,
    k: int,
    chunk: int,
    decay: float = 0.95,
    bins: int = 0,
    sigmas: float = 6,
    outer_lr: float = 1.0,
    inner: str = ADAMW,
    weight_decay: float = 0.0,
) -> Path:
    """Rounds of H local steps; then e = decay e + lr (theta - local), and k of each unit of it go.

    Args:
        bins: of the code book for what is sent; 0 sends it as it is.
    """
    N, T, tape = problem.N, problem.T // H, Tape()
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    kind, options = ("sgd", {"momentum": 0.9}) if inner == SGD else ("adamw", options)
    steppers = [Inner(kind, 0.01, **options) for _ in range(N)]
    theta, errors = list(problem.init), [[np.zeros_like(p) for p in problem.init] for _ in range(N)]
    loss = np.zeros((problem.T, N))
    for t in range(T):
        deltas = []
        for n in range(N):
            local = [p.copy() for p in theta]
            for step in range(t * H, t * H + H):
                loss[step, n], grads = problem.loss_and_grads(local, step, n)
                local = steppers[n].step(local, grads)
            deltas.append([p - q for p, q in zip(theta, local)])
        tape.add_workers("pseudograd", deltas)
        means = []
        for q, name in enumerate(NAMES):
            sent = []
            for n in range(N):
                e = decay * errors[n][q] + outer_lr * deltas[n][q]
                index, values, book = _selected(e, k, chunk, bins, sigmas)
                sent.append((index, book.get("decoded", values)))
                errors[n][q] = e - _dense(*sent[-1], e.shape)
                tape.add("idx", (name, index)), tape.add("val", (name, values))
                for what in set(book) - {"decoded"}:
                    tape.add(what, (name, book[what]))
            blank = np.zeros((*index.shape[:-1], theta[q].size // _units(index)), problem.dtype)
            means.append(mean_of_senders(sent, blank).reshape(theta[q].shape))
        kept = 1 - outer_lr * weight_decay
        theta = [(kept * p - outer_lr * m).astype(problem.dtype) for p, m in zip(theta, means)]
        (
            tape.add("agg", means),
            tape.add("params", list(theta)),
            tape.add_workers("residual", errors),
        )
    per_worker = ("idx", "val", "shift", "lookup")  # they came worker by worker
    arrays = {
        key: x.reshape(T, N, *x.shape[1:]) if key.split("_")[1] in per_worker else x
        for key, x in tape.arrays().items()
    }
    meta: dict[str, Any] = {"B": problem.B, "H": H, "T": T, "algorithm": "SparseLoCo/CCLoco"}
    meta |= {"bins": bins or 256, "chunk": chunk, "decay": decay, "dtype": problem.dtype}
    meta |= {"inner": inner, "inner_lr": 0.01, "k": k, "outer_lr": outer_lr, "quant": bins > 0}
    meta |= {"range": sigmas, "reference": "tplr-ai/CCLoco@c01a785e", "seed": problem.seed}
    meta |= {"shape": list(problem.shape), "workers": N}
    meta |= {"weight_decay": weight_decay} if weight_decay else {}
    return write(path, meta, problem, loss=loss, **arrays)


def _units(index: np.ndarray) -> int:
    return int(np.prod(index.shape[:-1]))


def _selected(
    e: np.ndarray, k: int, chunk: int, bins: int, sigmas: float
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Indices of the k largest of each unit, [units..., k]; values or codes; the code book."""
    first = split(len(e), chunk)
    units = e.reshape(len(e) // first, first, *e.shape[1:])  # of a matrix, whole rows
    k = max(1, min(k, units.shape[-1]))
    index = np.sort(np.argsort(-np.abs(units), axis=-1, kind="stable")[..., :k], axis=-1)
    values = np.take_along_axis(units, index, -1)
    if not bins:
        return index.astype(np.int32), values, {}
    codes, shift, lookup = code_book(values, bins, sigmas)
    decoded = (lookup[codes] + np.float32(shift)).astype(e.dtype)
    return index.astype(np.int32), codes, {"shift": shift, "lookup": lookup, "decoded": decoded}


def code_book(
    values: np.ndarray, bins: int, sigmas: float, centred: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uint8 around the mean (or zero), that mean, and the mean of each bin in float32."""
    shift = values.mean(dtype=np.float64).astype(values.dtype) if centred else values.dtype.type(0)
    flat = (values - shift).ravel().astype(np.float32)
    sigma = np.sqrt((flat.astype(np.float64) ** 2).sum() / max(1, flat.size - 1))
    width = np.float32(sigmas * sigma / bins) or np.float32(1)
    place = flat / width + np.float32(bins // 2)
    assert np.abs(place - np.floor(place) - 0.5).min() > 1e-4, "a code would hang on rounding"
    codes = np.clip(np.round(place), 0, bins - 1).astype(np.int64)
    sums = np.bincount(codes, flat.astype(np.float64), bins)
    lookup = (sums / np.maximum(1, np.bincount(codes, minlength=bins))).astype(np.float32)
    return codes.reshape(values.shape).astype(np.uint8), np.asarray(shift), lookup


def _dense(index: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros((*index.shape[:-1], int(np.prod(shape)) // _units(index)), values.dtype)
    np.put_along_axis(whole, index.astype(np.int64), values, -1)
    return whole.reshape(shape)
