"""Files of the asynchronous server, by the event loop of its notebook, and of Muon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.mlp import Problem, Tape, write


def async_diloco(
    path: Path,
    problem: Problem,
    seconds: list[float],
    events: int = 20,
    inner_steps: int = 5,
    wait: float = 0.5,
    by: str = "polynomial",
    method: str = "vanilla",
    outer: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Next is who finishes first; past the window those who wait start again at the clock."""
    K, rng = len(seconds), np.random.default_rng(problem.seed + 1)
    outer = outer or {"lr": 0.07, "momentum": 0.9, "nesterov": True}
    mu, ahead = outer.get("momentum", 0.0), outer.get("nesterov", False)
    theta, momentum = [p.copy() for p in problem.init], [np.zeros_like(p) for p in problem.init]
    buffer = [np.zeros_like(p) for p in theta]
    now, version, opened = 0.0, 0, None
    finish = [inner_steps * s for s in seconds]
    base, out = [0] * K, [True] * K
    tape, log = Tape(), []
    while version < events:
        due = [finish[w] if out[w] else np.inf for w in range(K)]
        w = int(np.argmin(due))
        if not any(out) or (opened is not None and due[w] - opened > wait):
            opened = None
            for other in range(K):
                if not out[other]:
                    out[other], base[other] = True, version
                    finish[other] = now + inner_steps * seconds[other]
            continue
        now = max(now, due[w])
        opened = now if opened is None else opened
        staleness = version - base[w]
        weight = np.sqrt(K) / K * ((1 + staleness) ** -0.5 if by == "polynomial" else 1.0)
        deltas = [(0.1 * rng.standard_normal(p.shape)).astype(p.dtype) for p in theta]
        grads = [np.asarray(weight, p.dtype) * d for p, d in zip(theta, deltas)]
        if method == "delayed_sgd":
            buffer = [b + np.asarray(1 / K, b.dtype) * d for b, d in zip(buffer, deltas)]
            grads = buffer
        if method == "vanilla" or version % K == K - 1:
            momentum = [mu * m + g for m, g in zip(momentum, grads)]
            moves = [g + mu * m if ahead else m for g, m in zip(grads, momentum)]
            theta = [p - outer["lr"] * move for p, move in zip(theta, moves)]
            buffer = [np.zeros_like(p) for p in theta]
        log.append((w, staleness, base[w], now, finish[w], inner_steps, weight))
        tape.add("pseudograd", deltas)
        tape.add("server", list(theta))
        version, out[w] = version + 1, False
    names = ["worker", "staleness", "base_version", "time", "finish_time", "inner_steps"]
    columns = dict(zip([*names, "sync_weight"], zip(*log)))
    arrays = {f"event_{name}": np.array(column) for name, column in columns.items()}
    meta = {
        "algorithm": "asynchronous local SGD server",
        "dtype": problem.dtype,
        "events": events,
        "inner_steps": inner_steps,
        "max_wait_time": wait,
        "outer": outer,
        "reference": "google-deepmind/asyncdiloco@e783a307 notebook",
        "sec_per_step": seconds,
        "sync_method": method,
        "sync_time": 0.0,
        "sync_weight_method": by,
        "workers": K,
    }
    starts = {f"{name}_init": p for name, p in zip(tape.names, problem.init)}
    return write(path, meta | more, None, **starts, **tape.arrays(), **arrays)


def muon(
    path: Path,
    shapes: dict[str, tuple[int, int]],
    T: int = 5,
    lr: float = 0.02,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    ns_steps: int = 5,
    dtype: str = "float32",
    seed: int = 0,
    **more: Any,
) -> Path:
    """Newton-Schulz in float32, rounded to bfloat16 after each product, as its tensors are."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        W = (0.3 * rng.standard_normal(shape)).astype(dtype)
        M, tape = np.zeros_like(W), Tape((name,))
        arrays[f"{name}_init"] = W
        for _ in range(T):
            g = rng.standard_normal(shape).astype(dtype)
            M = momentum * M + (1 - momentum) * g
            u = (1 - momentum) * g + momentum * M if nesterov else M
            orth = newton_schulz(u, ns_steps)
            step = bfloat16(orth * max(1.0, shape[0] / shape[1]) ** 0.5)
            W = (W * (1 - lr * weight_decay) - lr * step).astype(dtype)
            for what, value in {"grad": g, "momentum": M, "orth": orth, "params": W}.items():
                tape.add(what, (name, value.astype(dtype)))
        arrays |= tape.arrays()
    meta = {
        "algorithm": "Muon (inner optimizer of MuLoCo)",
        "lr": lr,
        "momentum": momentum,
        "nesterov": nesterov,
        "note": "Newton-Schulz runs in bfloat16",
        "ns_steps": ns_steps,
        "reference": "KellerJordan/Muon@857d1adc SingleDeviceMuon",
        "weight_decay": weight_decay,
    }
    return write(path, meta | more, None, **arrays)


def newton_schulz(u: np.ndarray, steps: int) -> np.ndarray:
    tall = u.shape[0] > u.shape[1]
    X = bfloat16(u.T if tall else u)
    X = bfloat16(X / bfloat16(bfloat16(np.linalg.norm(X)) + 1e-7))
    for _ in range(steps):
        A = bfloat16(X @ X.T)
        B = bfloat16(bfloat16(-4.7750 * A) + bfloat16(bfloat16(2.0315 * A) @ A))
        X = bfloat16(bfloat16(3.4445 * X) + bfloat16(B @ X))
    return X.T if tall else X


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest of 8 bits, ties to even; in float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
