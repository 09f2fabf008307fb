"""SPARTA and NoLoCo files, by loops over workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.mlp import NAMES, Inner, Problem, Tape, write

ADAM = "torch.optim.Adam betas (0.9,0.999) eps 1e-8"


def sparta(
    path: Path,
    problem: Problem,
    p: float = 0.1,
    inner: tuple[str, dict[str, Any]] = ("sgd", {}),
    inner_lr: float = 0.05,
    said: str | None = None,
    **more: Any,
) -> Path:
    """A local step, then the mean of the entries of the step's mask."""
    N, rng = problem.N, np.random.default_rng(problem.seed + 1)
    local = [[x.copy() for x in problem.init] for _ in range(N)]
    steppers = [Inner(inner[0], inner_lr, **inner[1]) for _ in range(N)]
    tape, loss = Tape(), np.zeros((problem.T, N))
    for t in range(problem.T):
        passed = [problem.loss_and_grads(local[n], t, n) for n in range(N)]
        loss[t] = [value for value, _ in passed]
        tape.add_workers("grad", [grads for _, grads in passed])
        local = [steppers[n].step(local[n], passed[n][1]) for n in range(N)]
        masks = [rng.random(x.shape) < p for x in problem.init]
        for q, mask in enumerate(masks):
            mean = sum(local[n][q] for n in range(N)) / N
            for n in range(N):
                local[n][q] = np.where(mask, mean, local[n][q])
        tape.add("mask", masks)
        tape.add_workers("params", local)
    meta = {
        "B": problem.B,
        "T": problem.T,
        "algorithm": "sparta",
        "dtype": problem.dtype,
        **({"inner": said} if said else {}),
        "inner_lr": inner_lr,
        "p": p,
        "reference": "exo-explore/gym@9fa323c2",
        "seed": problem.seed,
        "shape": list(problem.shape),
        "strategy": "sparta",
        "workers": N,
    }
    return write(path, meta | more, problem, loss=loss, **tape.arrays())


def noloco(
    path: Path,
    problem: Problem,
    H: int,
    size: int = 2,
    inner: tuple[str, dict[str, Any]] = ("adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
    inner_lr: float = 0.01,
    outer_lr: float = 0.7,
    outer_m: float = 0.5,
    said: str = ADAM,
    **more: Any,
) -> Path:
    """Groups of so many; who is left over is alone: its own means."""
    N, rng = problem.N, np.random.default_rng(problem.seed + 1)
    local = [[x.copy() for x in problem.init] for _ in range(N)]
    slow = [[x.copy() for x in problem.init] for _ in range(N)]
    delta = [[np.zeros_like(x) for x in problem.init] for _ in range(N)]
    steppers = [Inner(inner[0], inner_lr, **inner[1]) for _ in range(N)]
    tape, loss, groups = Tape(), np.zeros((problem.T, N)), []
    gamma = more.get("gamma", outer_lr)
    for t in range(problem.T):
        passed = [problem.loss_and_grads(local[n], t, n) for n in range(N)]
        loss[t] = [value for value, _ in passed]
        tape.add_workers("grad", [grads for _, grads in passed])
        local = [steppers[n].step(local[n], passed[n][1]) for n in range(N)]
        if t % H == H - 1:
            order = rng.permutation(N)
            groups.append(order[: N // size * size].reshape(-1, size))
            for members in [*groups[-1].tolist(), *([n] for n in order[N // size * size :])]:
                for q in range(len(NAMES)):
                    drift = sum(local[n][q] - slow[n][q] for n in members) / len(members)
                    mean = sum(slow[n][q] for n in members) / len(members)
                    for n in members:
                        pull = gamma * (slow[n][q] - mean)
                        delta[n][q] = outer_m * delta[n][q] + outer_lr * drift - pull
                    for n in members:
                        slow[n][q] = slow[n][q] + delta[n][q]
            local = [[x.copy() for x in row] for row in slow]
        tape.add_workers("params", local)
        tape.add_workers("slow", slow)
        tape.add_workers("outer_momentum", delta)
    meta = {
        "B": problem.B,
        "H": H,
        "T": problem.T,
        "algorithm": "NoLoCo",
        "dtype": problem.dtype,
        "inner": said,
        "inner_lr": inner_lr,
        "outer_lr": outer_lr,
        "outer_m": outer_m,
        "reference": "gensyn-ai/noloco@a1b4a425 sparse_optimizer_c.py",
        "seed": problem.seed,
        "shape": list(problem.shape),
        "workers": N,
    }
    arrays = tape.arrays() | {
        "groups": np.array(groups, np.int64).reshape(len(groups), N // size, size)
    }
    return write(path, meta | more, problem, loss=loss, **arrays)
