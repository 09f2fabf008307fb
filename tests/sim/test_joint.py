"""Runs whose gradients are computed together get what each would get alone, bit for bit."""

import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.digits import Digits
from optimizers import AdamW, AllReduce, DiLoCo
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
