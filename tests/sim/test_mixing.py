"""Weighted sums of rows in place: beside a loop over nodes, and whatever is beside them."""

import numpy as np
import pytest
import scipy.sparse
import torch

from sim.compute.placed import Placed
from sim.compute.workers import Workers
from sim.mixing import _by_torch, _compiled, mix

N, M, P = 5, 7, 9


@pytest.fixture
def case():
    """stay [N], W [N, M], rows that were sent [M, P], rates [N, 1], gradients [N, P]; float64."""
    rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    off = scipy.sparse.random_array((N, M), density=0.5, rng=rng, format="csr")
    rows = (torch.randn(k, P, generator=draw, dtype=torch.float64) for k in (M, N))
    sent, grad = rows
    return rng.random(N), off, sent, torch.rand(N, 1, generator=draw, dtype=torch.float64), grad


@pytest.mark.parametrize("mixer", [_compiled, _by_torch])
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_some_columns_of_rows_that_lie_apart(case, mixer, steps, lies, dtype):
    stay, off, sent, rate, grad = case
    sent, rate, grad = (x.to(dtype) for x in (sent, rate, grad))
    memory, at, columns = torch.randn(9, P, dtype=dtype), np.array([1, 2, 5, 7, 8]), slice(2, 6)
    wanted, dense = memory.clone(), off.toarray()
    for i, place in enumerate(at):
        total = sum(float(dense[i, j]) * sent[j, columns] for j in range(M))
        wanted[place, columns] = stay[i] * memory[place, columns] + total
        if steps:
            wanted[place, columns] -= rate[i] * grad[i, columns]
    made = mixer(Placed(memory, at), stay, off, (rate, "grad") if steps else None)
    some = grad[:, columns].contiguous() if steps else None
    if lies:
        order = torch.randperm(M)
        made(columns, Placed(sent[order], order.argsort().numpy()), 2, some)
    else:
        made(columns, Placed.of(sent[:, columns].contiguous()), 0, some)
    torch.testing.assert_close(memory, wanted)


def test_mixing_has_the_same_bits_with_any_workers_and_tiles(idle, monkeypatch):
    sim = idle()
    group, rows, weights = sim.group(), torch.randn(4, 8), torch.rand(4, 4).double().numpy()
    found = []
    for workers, width in ((1, 8), (2, 3), (3, 1)):
        monkeypatch.setattr("sim.mixing._LEAST", width)
        monkeypatch.setattr("sim.mixing._VALUES", 4 * width)
        monkeypatch.setattr(sim.fleet.crew, "workers", Workers(workers))
        group["x"], group["sent"] = rows, rows.flip(0)
        off = scipy.sparse.csr_array(weights)
        mix(group, "x", np.ones(4), off, group.columns("sent"))
        found.append(group["x"].tensor())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
