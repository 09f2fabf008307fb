"""Every inner and outer optimizer with every schedule, from the words of a user."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.assemble import assemble, check
from experiments.cells import CONF, read
from optimizers import (
    AsyncDiLoCo,
    ByStaleness,
    DiLoCo,
    Muon,
    StreamingDiLoCo,
    Vanilla,
)
from sim.compute.layout import Layout

LOCALS = sorted(path.stem for path in Path(CONF, "local").glob("*.yaml"))
OUTERS = sorted(path.stem for path in Path(CONF, "strategy", "outer").glob("*.yaml"))
LINE = ["task=markov_small", "topology=complete", "topology.n=2", "evaluations=1"]


def configured(*line):
    experiment = assemble(read([*LINE, *line]).cells[0].cfg)
    check(experiment)
    return experiment


def losses(experiment):
    return experiment.run()["metric"]["loss"].to_numpy()


@pytest.mark.parametrize("local", LOCALS)
def test_every_inner_optimizer_learns(local):
    first, *_, last = losses(
        configured(f"local={local}", "strategy.inner_steps=8", "budget.steps=24")
    )
    assert last < first - 0.02


@pytest.mark.parametrize("outer", OUTERS)
def test_every_outer_optimizer_learns(outer):
    line = [f"strategy/outer={outer}", "strategy.inner_steps=4", "budget.steps=24"]
    first, *_, last = losses(configured(*line))
    assert last < first - 0.1


@pytest.mark.parametrize("strategy", ["local_sgd", "fedavg", "muloco", "dilocox", "sparta_diloco"])
def test_the_outer_optimizer_of_a_strategy_may_be_replaced(strategy):
    experiment = configured(f"strategy={strategy}", "strategy/outer=lion")
    assert type(experiment.strategy.outer).__name__ == "Lion"


def test_the_optimizer_of_a_server_may_be_replaced():
    line = ["strategy=async_diloco", "strategy/outer@strategy.rule.rule.outer=adamw"]
    assert type(configured(*line).strategy.rule.rule.outer).__name__ == "AdamW"


def test_an_outer_rate_may_have_a_schedule():
    schedule = "{_target_: optimizers.WarmupCosine, warmup: 0, total: 2}"
    line = ["strategy.inner_steps=1", "budget.steps=6", "evaluations=6"]
    found = losses(configured(f"+strategy.outer.schedule={schedule}", *line))
    assert found[0] > found[2]
    assert np.ptp(found[3:]) == 0  # the rate has come to zero


def fragment_alone(outer):
    return StreamingDiLoCo(4, fragments=1, overlap=0, mixing=0.0, outer=outer)


@pytest.mark.parametrize("other", [fragment_alone], ids=["streaming"])
def test_muon_steps_on_matrices_of_a_fragment_as_on_those_of_the_model(other):
    base = configured("budget.steps=12")
    outer = Muon(lr=0.02, precision="float32")
    wanted = losses(replace(base, strategy=DiLoCo(4, outer=outer)))
    np.testing.assert_allclose(losses(replace(base, strategy=other(outer))), wanted, rtol=1e-6)
    assert wanted[-1] < wanted[0]


def test_muon_steps_on_a_fragment_of_its_own_matrices():
    base = configured("budget.steps=24")
    found = losses(replace(base, strategy=StreamingDiLoCo(4, fragments=2, overlap=1, outer=Muon())))
    assert found[-1] < found[0] - 0.1


def test_a_server_rule_knows_the_matrices_too():
    """One worker: a push is a round, of weight 1."""
    base = configured("topology.n=1", "budget.steps=12")
    outer = Muon(lr=0.02, precision="float32")
    wanted = losses(replace(base, strategy=DiLoCo(4, outer=outer)))
    rule = ByStaleness(Vanilla(outer))
    found = losses(replace(base, strategy=AsyncDiLoCo(4, rule=rule)))
    np.testing.assert_allclose(found[-1], wanted[-1], rtol=1e-6)


def test_binding_changes_only_what_knows_matrices():
    layout = Layout({"weight": (3, 4)})
    plain, deep = DiLoCo(), AsyncDiLoCo(rule=ByStaleness(Vanilla(Muon())))
    assert plain.bind(layout) is plain
    assert deep.bind(layout).rule.rule.outer.layout == layout
    assert deep.rule.rule.outer.layout is None
