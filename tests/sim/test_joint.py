"""Runs whose gradients are computed together get what each would get alone, bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

from experiments.experiment import Experiment
from experiments.tasks.digits import Digits
from optimizers import DPSGD, SGD, AdamW, AllReduce, DeMo, DiLoCo
from sim.budget import Budget
from sim.compute.joint import Joint
from sim.compute.options import ComputeOptions
from topologies import ring


def _experiment(seed, lr):
    strategy = DiLoCo(inner_steps=3) if seed % 2 else AllReduce(AdamW(lr=lr))
    return Experiment(
        Digits(width=4, examples=3),
        ring(5),
        strategy,
        local=AdamW(lr=lr),
        budget=Budget(steps=9),
        compute=ComputeOptions(workers=1),
        seed=seed,
    )


def _losses(trace):
    return trace["metric"]["loss"].tolist()


def test_runs_together_get_the_bits_of_runs_alone():
    cases = [(0, 0.01), (1, 0.01), (1, 0.1), (2, 0.03)]
    alone = [_losses(_experiment(*case).run()) for case in cases]
    joint = Joint(2)
    programs = [lambda case=case: _experiment(*case).run(joint=joint) for case in cases]
    assert [_losses(trace) for trace in joint.run(programs)] == alone
    assert joint.jobs > joint.flushes


class _Noisy(nn.Module):
    """Keeps statistics, and draws."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 10)
        )

    def forward(self, x):
        return self.layers(x)


def _study(make_task, strategies, locals_, engine="auto"):
    """Experiments that differ in seed, strategy and local optimizer."""
    return [
        lambda k=k, strategy=strategy, local=local: Experiment(
            make_task(),
            ring(5),
            strategy,
            local=local,
            budget=Budget(steps=7),
            compute=ComputeOptions(workers=1, engine=engine),
            seed=k,
        )
        for k, (strategy, local) in enumerate(zip(strategies, locals_))
    ]


_ADAMS = [AdamW(0.01), AdamW(0.1, weight_decay=0.1), AdamW(0.02, clip=0.1), AdamW(0.03)]
_DILOCO = [DiLoCo(inner_steps=3)] * 4


@pytest.mark.parametrize(
    ("make_task", "strategies", "locals_", "engine"),
    [
        (lambda: Digits(width=4, examples=3), _DILOCO, _ADAMS, "stacked"),
        (lambda: Digits(width=4, examples=3), _DILOCO, [SGD(0.1), SGD(0.2)] * 2, "stacked"),
        (lambda: Digits(model=_Noisy, examples=3), _DILOCO, _ADAMS, "vmap"),
        (lambda: Digits(width=4, examples=3), [DeMo(1e-2), DeMo(1e-3)] * 2, _ADAMS, "stacked"),
        (lambda: Digits(model=_Noisy, examples=3), [DPSGD(), DPSGD()], _ADAMS[:2], "vmap"),
    ],
)
def test_nodes_of_several_runs_are_rows_of_one_block(make_task, strategies, locals_, engine):
    study = _study(make_task, strategies, locals_, engine)
    alone = [_losses(make().run()) for make in study]
    joint, wide = Joint(1), Joint(1)
    assert [
        _losses(trace) for trace in joint.run([_program(m, joint, None) for m in study])
    ] == alone
    assert [
        _losses(trace) for trace in wide.run([_program(m, wide, "one") for m in study])
    ] == alone
    assert wide.flushes == joint.flushes
    assert wide.jobs <= joint.jobs / len(study) + 1
    assert len({id(losses) for losses in alone}) == len({tuple(losses) for losses in alone})


def _program(make, joint, kind):
    return lambda: make().run(joint=joint, kind=kind)


def test_of_one_block_only_the_run_that_fails_ends():
    study = _study(lambda: Digits(width=4, examples=3), [DeMo(1e-2)] * 3, _ADAMS, "stacked")
    alone = [_losses(make().run()) for make in study]

    class Broken(DeMo):
        def __getattribute__(self, name):
            if name == "decay" and broken:
                raise ArithmeticError("decay")
            return super().__getattribute__(name)

    def late():
        experiment = study[1]()
        batch = experiment.task.batch
        experiment.task.batch = lambda nodes, steps: (
            1 / 0 if (steps > 2).any() else batch(nodes, steps)
        )
        return experiment.run(joint=joint, kind="one")

    def wrong_then():
        experiment = study[2]()
        experiment.strategy = Broken(1e-2)
        broken.append(True)
        return experiment.run(joint=joint, kind="one")

    joint, broken = Joint(1), []
    first, second, third = joint.run([_program(study[0], joint, "one"), late, wrong_then])
    assert _losses(first) == alone[0]
    assert isinstance(second, ZeroDivisionError)
    assert isinstance(third, ArithmeticError)


def test_rows_of_different_ages_get_the_step_of_their_optimizer():
    rng = torch.Generator().manual_seed(0)
    sizes, params, grad = [3, 2, 4], *torch.randn(2, 9, 50, generator=rng)
    state = AdamW(1.0).init(params)
    state["mean"].copy_(torch.randn(9, 50, generator=rng))
    state["square"].copy_(torch.rand(9, 50, generator=rng))
    state["age"].copy_(torch.tensor([5, 5, 5, 0, 1, 7, 7, 7, 7])[:, None])
    ends = np.cumsum(sizes).tolist()
    rows = [slice(end - size, end) for size, end in zip(sizes, ends)]
    parts = list(zip(_ADAMS[:2] + _ADAMS[3:], rows))
    wanted = [
        adam.step(params[at], grad[at], {k: v[at] for k, v in state.items()}) for adam, at in parts
    ]
    AdamW.step_each_(parts, params, grad, state)
    assert torch.equal(params, torch.cat([x for x, _ in wanted]))
    for name, value in state.items():
        assert torch.equal(value, torch.cat([own[name] for _, own in wanted]))


def test_a_run_that_fails_leaves_the_others_alone():
    def broken():
        experiment = _experiment(1, 0.01)
        experiment.task.batch = lambda nodes, steps: 1 / 0
        return experiment.run(joint=joint)

    joint = Joint(1)
    first, second = joint.run([broken, lambda: _experiment(1, 0.01).run(joint=joint)])
    assert isinstance(first, ZeroDivisionError)
    assert _losses(second) == _losses(_experiment(1, 0.01).run())


@pytest.mark.parametrize("workers", [1, 2])
def test_no_program_is_no_result(workers):
    assert Joint(workers).run([]) == []
    assert torch.is_grad_enabled()
