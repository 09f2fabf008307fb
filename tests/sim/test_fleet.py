"""The fleet: batched gradients and local steps equal those that each node would compute alone."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from experiments.tasks.digits import Digits
from experiments.tasks.models import MLP
from optimizers import SGD, AdamW
from optimizers.compression import ErrorFeedback, TopK
from sim.compute.fleet import Fleet
from sim.compute.options import ComputeOptions

N = 6


def _ids(*ids):
    return np.array(ids, dtype=np.int64)


def _fleet(task, n=N, *, local=None, device="cpu", options=None):
    task.bind(0, n)
    initial = task.init(torch.Generator().manual_seed(0)).to(device)
    options = ComputeOptions(workers=1) if options is None else options
    return Fleet(task, n, local or AdamW(lr=0.05), initial, task.layout, options=options)


def _scatter(fleet, seed=1):
    """Give every node parameters of its own."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(fleet.n_nodes, fleet.layout.numel, generator=generator)
    fleet.put("params", np.arange(fleet.n_nodes), rows)
    return rows


def _grad(fleet, *ids):
    return fleet.request(_ids(*ids), 1, trains=False)


def _train(fleet, steps, *ids):
    """Train to the end, in simulated time too."""
    request = fleet.request(_ids(*ids), steps, trains=True)
    fleet.result(request, request.ids)
    fleet.release(request.ids)
    return request


def _alone(task, params, node, step):
    """The gradient of one node by torch's autograd."""
    batch = tuple(part[0] for part in task.batch(_ids(node), _ids(step)))
    params = params.clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(task.loss(params, batch), params)
    return grad


@pytest.fixture
def digits():
    return Digits(width=4, examples=3)


def test_gradients_are_those_of_autograd_node_by_node(digits):
    fleet = _fleet(digits)
    rows = _scatter(fleet)
    request = _grad(fleet, 0, 2, 5)
    got = fleet.result(request, request.ids)
    wanted = torch.stack([_alone(digits, rows[i], i, 0) for i in (0, 2, 5)])
    torch.testing.assert_close(got, wanted)


def test_gradients_at_one_shared_vector_are_the_same_as_at_copies_of_it(digits):
    fleet, copies = _fleet(digits), _fleet(digits)
    copies.put("params", np.arange(N), fleet.initial.repeat(N, 1))
    shared = fleet.result(_grad(fleet, *range(N)), np.arange(N))
    torch.testing.assert_close(shared, copies.result(_grad(copies, *range(N)), np.arange(N)))


def test_the_second_request_of_a_node_sees_its_second_batch(quadratic):
    fleet = _fleet(quadratic)
    first, second = _grad(fleet, 1), _grad(fleet, 1)
    for step, request in enumerate((first, second)):
        wanted = _alone(quadratic, fleet.initial, 1, step)
        torch.testing.assert_close(fleet.result(request, _ids(1))[0], wanted)


def test_the_loss_of_a_request_is_that_before_its_step(quadratic):
    fleet = _fleet(quadratic)
    request = _grad(fleet, 2)
    fleet.flush()
    batch = tuple(part[0] for part in quadratic.batch(_ids(2), _ids(0)))
    torch.testing.assert_close(request.losses[0], quadratic.loss(fleet.initial, batch))


def test_nothing_runs_until_a_value_is_read_and_then_everything_together(quadratic):
    fleet = _fleet(quadratic)
    requests = [_grad(fleet, node) for node in range(N)]
    assert fleet.crew.flushed_rows == 0
    fleet.result(requests[3], _ids(3))
    assert (fleet.flushes, fleet.crew.flushed_rows) == (1, N)
    assert all(request.executed for request in requests)


def test_one_by_one_gives_what_the_queue_gives(digits):
    values = []
    for lazy in (True, False):
        fleet = _fleet(digits, options=ComputeOptions(workers=1, lazy=lazy))
        _scatter(fleet)
        requests = [_grad(fleet, node) for node in range(N)]
        values.append([fleet.result(r, r.ids) for r in requests])
        assert fleet.flushes == (1 if lazy else N)
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("lazy", [True, False])
def test_a_waiting_request_keeps_the_parameters_of_when_it_was_made(quadratic, lazy):
    fleet = _fleet(quadratic, options=ComputeOptions(workers=1, lazy=lazy))
    rows = _scatter(fleet)
    request = _grad(fleet, 0, 1)
    fleet.put("params", _ids(1), torch.zeros(1, 8))
    fleet.put("params", _ids(1), torch.ones(1, 8))
    got = fleet.result(request, request.ids)
    torch.testing.assert_close(got[1], _alone(quadratic, rows[1], 1, 0))


@pytest.mark.parametrize("lazy", [True, False])
def test_a_waiting_gradient_does_not_see_the_local_steps_that_follow_it(quadratic, lazy):
    fleet = _fleet(quadratic, options=ComputeOptions(workers=1, lazy=lazy))
    request = _grad(fleet, 0)
    _train(fleet, 3, 0)
    got = fleet.result(request, request.ids)
    torch.testing.assert_close(got[0], _alone(quadratic, fleet.initial, 0, 0))


def test_a_node_that_leaves_costs_nothing(quadratic):
    fleet = _fleet(quadratic)
    request, other = _grad(fleet, 0), _grad(fleet, 1, 2)
    fleet.abandon(request, 0)
    fleet.abandon(other, 1)
    assert fleet.result(other, _ids(2)).shape == (1, 8)
    assert fleet.result(request, _ids()) is None
    assert fleet.crew.flushed_rows == 1


def test_local_steps_equal_adamw_of_torch_node_by_node(digits):
    local = AdamW(lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    fleet = _fleet(digits, local=local)
    rows = _scatter(fleet)
    _train(fleet, 4, *range(N))
    for node in range(N):
        params = rows[node].clone().requires_grad_()
        torch_adamw = torch.optim.AdamW([params], 0.02, (0.8, 0.9), 1e-6, 0.1)
        for step in range(4):
            params.grad = _alone(digits, params.detach(), node, step)
            torch_adamw.step()
        got = fleet.get("params", _ids(node))[0]
        torch.testing.assert_close(got, params.detach(), rtol=1e-4, atol=1e-5)


def test_rows_of_different_ages_train_together_as_they_would_alone(quadratic):
    together, alone = _fleet(quadratic), _fleet(quadratic)
    _train(together, 2, 0)
    _train(together, 3, 0, 1)
    _train(alone, 5, 0)
    _train(alone, 3, 1)
    torch.testing.assert_close(together.get("params", _ids(0, 1)), alone.get("params", _ids(0, 1)))


def test_requests_of_different_lengths_train_together_as_they_would_alone(quadratic):
    together, alone = (
        _fleet(quadratic),
        _fleet(quadratic, options=ComputeOptions(workers=1, lazy=False)),
    )
    for fleet in (together, alone):
        requests = [fleet.request(_ids(i), steps, trains=True) for i, steps in enumerate((4, 1, 3))]
        for request in requests:
            fleet.result(request, request.ids)
        fleet.release(_ids(0, 1, 2))
    torch.testing.assert_close(
        together.get("params", _ids(0, 1, 2)), alone.get("params", _ids(0, 1, 2))
    )
    assert together.flushes == 1


def test_optimizer_state_and_steps_go_on_from_one_request_to_the_next(quadratic):
    at_once, in_two = _fleet(quadratic), _fleet(quadratic)
    _train(at_once, 5, 0, 3)
    _train(in_two, 2, 0, 3)
    _train(in_two, 3, 0, 3)
    assert in_two.steps.tolist() == [5, 0, 0, 5, 0, 0]
    assert torch.equal(at_once.get("params", _ids(0, 3)), in_two.get("params", _ids(0, 3)))


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("engine", ["vmap", "loop", "stacked"])
def test_the_number_of_workers_does_not_change_a_bit(digits, workers, engine):
    found = []
    for n_workers in (1, workers):
        options = ComputeOptions(workers=n_workers, engine=engine)
        fleet = _fleet(digits, 20, options=options)
        _scatter(fleet)
        _train(fleet, 3, *range(20))
        request = _grad(fleet, *range(20))
        found.append((fleet.get("params", np.arange(20)), fleet.result(request, request.ids)))
    assert all(torch.equal(one, many) for one, many in zip(*found))


@pytest.mark.parametrize("engine", ["vmap", "stacked"])
def test_who_shares_a_batch_does_not_change_a_bit(digits, engine):
    options = ComputeOptions(workers=1, engine=engine)
    together, apart = (_fleet(digits, 70, options=options) for _ in range(2))
    rows = _scatter(together)
    assert torch.equal(rows, _scatter(apart))
    whole = _grad(together, *range(70))
    wanted = together.result(whole, whole.ids)
    for ids in ((3,), (0, 7, 8), tuple(range(9, 43))):
        request = _grad(apart, *ids)
        assert torch.equal(apart.result(request, request.ids), wanted[list(ids)])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_sum_of_gradients_leaves_out_whom_it_should(digits, workers):
    fleet = _fleet(digits, 40, options=ComputeOptions(workers=workers))
    rows, sums = _grad(fleet, *range(40)), fleet.request(np.arange(40), 1, trains=False)
    sums.first_steps[:] = 0
    sums.summed = True
    ids = np.array([0, 1, 2, 5, 17, 18, 30, 39])
    wanted = fleet.result(rows, ids).double().sum(0)
    torch.testing.assert_close(fleet.total(sums, ids).double(), wanted, rtol=1e-5, atol=1e-6)
    assert fleet.result(sums, ids) is None


@pytest.mark.parametrize("use", ["read", "write", "grad", "train"])
def test_a_row_in_training_cannot_be_used(quadratic, use):
    fleet = _fleet(quadratic)
    fleet.request(_ids(1, 2), 3, trains=True)
    actions = {
        "read": lambda: fleet.get("params", _ids(0, 2)),
        "write": lambda: fleet.put("params", _ids(2), torch.zeros(8)),
        "grad": lambda: _grad(fleet, 2),
        "train": lambda: fleet.request(_ids(1), 1, trains=True),
    }
    with pytest.raises(RuntimeError, match=r"nodes \[\d\] cannot be .*: they are training"):
        actions[use]()


def test_other_rows_and_other_nodes_are_free_meanwhile(quadratic):
    fleet = _fleet(quadratic)
    fleet.request(_ids(1), 3, trains=True)
    fleet.put("momentum", _ids(1), torch.ones(8))
    fleet.put("params", _ids(0), torch.ones(8))
    assert fleet.get("momentum", _ids(1)).sum() == 8


def test_a_node_that_left_is_as_new(quadratic):
    codec = ErrorFeedback(TopK(2))
    fleet, fresh = _fleet(quadratic), _fleet(quadratic)
    _train(fleet, 2, 0, 1)
    fleet.encode(codec, _ids(0, 1), torch.randn(2, 8))
    fleet.request(_ids(1), 1, trains=True)
    fleet.forget(1)
    for name in ("params", "local.mean", "local.square", "local.age"):
        assert torch.equal(fleet.get(name, _ids(1)), fresh.get(name, _ids(1)))
    x = torch.arange(1.0, 9.0)[None]
    again = fleet.encode(codec, _ids(1), x).decode()
    assert torch.equal(again, fresh.encode(codec, _ids(1), x).decode())
    assert fleet.get("local.age", _ids(0)).item() == 2


def test_codec_state_belongs_to_its_node(quadratic):
    fleet, codec = _fleet(quadratic), ErrorFeedback(TopK(2))
    x = torch.arange(1.0, 9.0)[None]
    first = fleet.encode(codec, _ids(4), x).decode()
    second = fleet.encode(codec, _ids(4), x).decode()
    assert torch.equal(first, fleet.encode(codec, _ids(2), x).decode())
    assert not torch.equal(first, second)


def test_what_follows_a_gradient_is_applied_to_all_nodes_of_a_flush_at_once(quadratic):
    fleet, blocks = _fleet(quadratic), []

    def double(rows, grad):
        blocks.append(rows.ids.tolist())
        rows["kept"] = grad
        return 2 * grad

    requests = [_grad(fleet, node) for node in (3, 0, 5)]
    for request in requests:
        request.then = double
    value = fleet.result(requests[0], _ids(3))
    assert blocks == [[0, 3, 5]]
    assert torch.equal(value, 2 * fleet.get("kept", _ids(3)))


def test_a_joiner_gets_a_copy_of_its_own(quadratic):
    fleet = _fleet(quadratic)
    rows = _scatter(fleet)
    fleet.copy_params(4, 1)
    fleet.put("params", _ids(4), torch.zeros(8))
    assert torch.equal(fleet.get("params", _ids(1))[0], rows[4])


def test_a_row_never_written_holds_zeros(quadratic):
    assert not _fleet(quadratic).get("momentum", _ids(0, 5)).any()


def test_on_the_meta_device_shapes_are_right_and_nothing_is_computed(quadratic):
    fleet = _fleet(quadratic, device="meta")
    request = _grad(fleet, 0, 2)
    value = fleet.result(request, request.ids)
    assert value.is_meta
    assert value.shape == (2, 8)
    _train(fleet, 3, 0, 2)
    assert fleet.get("params", _ids(0, 2)).shape == (2, 8)
    assert fleet.steps.tolist() == [4, 0, 4, 0, 0, 0]


def test_a_fleet_trains_sgd_as_the_quadratic_says(quadratic):
    """Error along eigenvalue s shrinks by 1 - lr s per step."""
    quadratic.noise = 0.0
    fleet = _fleet(quadratic, local=SGD(lr=0.5))
    _train(fleet, 10, 3)
    minimum = torch.from_numpy(quadratic.optimum + quadratic.offsets[3])
    spectrum = torch.logspace(0, np.log10(1 / 4.0), 8, dtype=torch.float64)
    wanted = minimum + (1 - 0.5 * spectrum) ** 10 * (fleet.initial.double() - minimum)
    torch.testing.assert_close(fleet.get("params", _ids(3))[0].double(), wanted, rtol=0, atol=1e-5)


def test_on_the_meta_device_rows_of_one_number_are_encoded_once(quadratic, monkeypatch):
    fleet, encoded, encode = _fleet(quadratic, device="meta"), [], TopK.encode
    monkeypatch.setattr(TopK, "encode", lambda *args: encoded.append(1) or encode(*args))
    codec = TopK(2)
    for ids in (_ids(0, 1), _ids(2, 3), _ids(0, 1, 2)):
        payload = fleet.encode(codec, ids, fleet.get("params", ids))
        assert payload.n == len(ids)
    assert len(encoded) == 2


@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_a_batch_norm_net_gets_the_same_bits_in_any_company(size):
    def net():
        image = nn.Unflatten(1, (1, 8, 8))
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        return nn.Sequential(image, *layers, nn.Linear(144, 10))

    task = Digits(model=net, examples=4)
    fleet = _fleet(task, 20, options=ComputeOptions(workers=1, engine="vmap"))
    whole = _grad(fleet, *range(20))
    wanted = fleet.result(whole, whole.ids)
    other = _fleet(task, 20, options=ComputeOptions(workers=1, engine="vmap"))
    for first in range(0, 20 - size + 1, size):
        request = _grad(other, *range(first, first + size))
        assert torch.equal(other.result(request, request.ids), wanted[first : first + size])


def test_models_of_equal_shapes_choose_an_engine_each(digits):
    class Smooth(MLP):
        def forward(self, x):
            return self.layers[1](torch.tanh(self.layers[0](x)))

    other = Digits(model=lambda: Smooth(64, (4,), 10), examples=3)
    assert other.layout == digits.layout
    for task, names in ((digits, {"stacked", "vmap", "loop"}), (other, {"vmap", "loop"})):
        fleet = _fleet(task, options=ComputeOptions(workers=1))
        request = _grad(fleet, 0, 1)
        fleet.result(request, request.ids)
        assert set(fleet.crew.engine.rates) == names


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler of C++")
def test_compiled_gradients_are_those_of_eager_ones(digits):
    found = []
    for compile in (False, True):
        options = ComputeOptions(workers=1, engine="vmap", compile=compile)
        fleet = _fleet(digits, 20, options=options)
        _scatter(fleet)
        request = _grad(fleet, *range(20))
        _train(fleet, 2, *range(3))
        found.append((fleet.result(request, request.ids), fleet.get("params", np.arange(3))))
    for eager, compiled in zip(*found):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
