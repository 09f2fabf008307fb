"""DiLoCo files: torchft's, with one fragment or several, and exo-gym's; by loops over workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden_cases.mlp import NAMES, Inner, Problem, Tape, write

ADAMW = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}


def torchft(
    path: Path,
    problem: Problem,
    H: int,
    fragments: list[list[str]] | None = None,
    tau: int = 0,
    alpha: float = 0.0,
    inner: str = "sgd",
    inner_lr: float = 0.05,
    options: dict[str, Any] | None = None,
    outer_lr: float = 0.7,
    outer_m: float = 0.9,
    nesterov: bool = True,
    **more: Any,
) -> Path:
    """A fragment in each slot of H over their number, taken tau steps before the slot ends."""
    fragments, options = fragments or [list(NAMES)], options or {}
    N, slot, syncs = problem.N, H // len(fragments), 0
    local = [[p.copy() for p in problem.init] for _ in range(N)]
    whole, momentum = [p.copy() for p in problem.init], [np.zeros_like(p) for p in problem.init]
    steppers = [Inner(inner, inner_lr, **options) for _ in range(N)]
    tape, loss, taken = Tape(), np.zeros((problem.T, N)), {}
    for t in range(problem.T):
        passed = [problem.loss_and_grads(local[n], t, n) for n in range(N)]
        loss[t] = [value for value, _ in passed]
        tape.add_workers("grad", [grads for _, grads in passed])
        local = [steppers[n].step(local[n], passed[n][1]) for n in range(N)]
        turn = [NAMES.index(name) for name in fragments[syncs % len(fragments)]]
        if t % slot == slot - 1 - tau:
            taken = {q: np.stack([whole[q] - local[n][q] for n in range(N)]) for q in turn}
            tape.add("prepare_step", *((NAMES[q], t) for q in turn))
        if t % slot == slot - 1:
            for q in turn:
                mean = taken[q].sum(0) / N
                momentum[q] = outer_m * momentum[q] + mean
                move = mean + outer_m * momentum[q] if nesterov else momentum[q]
                whole[q] = whole[q] - outer_lr * move
                for n in range(N):
                    local[n][q] = alpha * local[n][q] + (1 - alpha) * whole[q]
                tape.add("apply_step", (NAMES[q], t))
                tape.add("pseudograd_local", (NAMES[q], taken[q]))
                tape.add("pseudograd_mean", (NAMES[q], mean))
                tape.add("global", (NAMES[q], whole[q]))
                tape.add("outer_momentum", (NAMES[q], momentum[q]))
            syncs += 1
        tape.add_workers("params", local)
    meta = {
        "H": H,
        "algorithm": "StreamingDiLoCo" if len(fragments) > 1 or tau or alpha else "DiLoCo",
        "alpha": alpha,
        "batch": problem.B,
        "dtype": problem.dtype,
        "fragments": fragments,
        "inner": inner,
        "inner_adamw": options if inner == "adamw" else None,
        "inner_lr": inner_lr,
        "nesterov": nesterov,
        "outer_lr": outer_lr,
        "outer_m": outer_m,
        "reference": "pytorch/torchft@73dafea4 torchft/local_sgd.py",
        "shape_in_hidden_out": list(problem.shape),
        "steps": problem.T,
        "tau": tau,
        "workers": N,
    }
    return write(path, meta | more, problem, loss=loss, **tape.arrays())


def exo_gym(
    path: Path,
    problem: Problem,
    H: int,
    inner: tuple[str, dict[str, Any]] = ("sgd", {}),
    inner_lr: float = 0.05,
    outer_lr: float = 0.7,
    said: str | None = None,
    **more: Any,
) -> Path:
    """The average goes out when the count of former steps is a positive multiple of H."""
    N = problem.N
    local = [[p.copy() for p in problem.init] for _ in range(N)]
    whole, momentum = [p.copy() for p in problem.init], [np.zeros_like(p) for p in problem.init]
    steppers = [Inner(inner[0], inner_lr, **inner[1]) for _ in range(N)]
    mu, ahead = more.get("outer_m", 0.9), more.get("nesterov", True)
    tape, loss = Tape(), np.zeros((problem.T, N))
    for t in range(problem.T):
        passed = [problem.loss_and_grads(local[n], t, n) for n in range(N)]
        loss[t] = [value for value, _ in passed]
        tape.add_workers("grad", [grads for _, grads in passed])
        local = [steppers[n].step(local[n], passed[n][1]) for n in range(N)]
        if t and t % H == 0 and N > 1:  # alone it makes no outer steps
            for q in range(len(NAMES)):
                drift = whole[q] - sum(local[n][q] for n in range(N)) / N
                momentum[q] = mu * momentum[q] + drift
                whole[q] = whole[q] - outer_lr * (
                    drift + mu * momentum[q] if ahead else momentum[q]
                )
            local = [[p.copy() for p in whole] for _ in range(N)]
        tape.add_workers("params", local)
    meta = {
        "B": problem.B,
        "H": H,
        "T": problem.T,
        "algorithm": "diloco",
        "dtype": problem.dtype,
        **({"inner": said} if said else {}),
        "inner_lr": inner_lr,
        "outer_lr": outer_lr,
        "reference": "exo-explore/gym@9fa323c2",
        "seed": problem.seed,
        "shape": list(problem.shape),
        "strategy": "diloco",
        "workers": N,
    }
    return write(path, meta | more, problem, loss=loss, **tape.arrays())
