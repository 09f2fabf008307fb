"""Every strategy of `conf/strategy` at the sizes where strategies break: two, three, a thousand."""

import pytest

from experiments.algorithms import choices
from experiments.assemble import assemble
from experiments.cells import read


def _run(strategy, nodes, tmp_path, *more):
    line = [f"strategy={strategy}", "task=markov_small", "topology=ring", f"topology.n={nodes}"]
    line += ["evaluations=2", "compute.workers=1", f"hydra.run.dir={tmp_path}", *more]
    cfg = read(line).cells[0].cfg
    if "inner_steps" in cfg.strategy:
        cfg.strategy.inner_steps = 4
    experiment = assemble(cfg)
    return experiment.run().rows("metric")[-1]


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("strategy", choices())
def test_few_nodes_train(strategy, nodes, tmp_path):
    last = _run(strategy, nodes, tmp_path, "budget.steps=8")
    assert last["node_steps"] >= 4
    assert last["loss"] < 10


@pytest.mark.slow
@pytest.mark.parametrize("strategy", choices())
def test_a_thousand_nodes_train(strategy, tmp_path):
    last = _run(strategy, 1000, tmp_path, "budget.steps=4", "task.width=8")
    assert last["loss"] < 10
