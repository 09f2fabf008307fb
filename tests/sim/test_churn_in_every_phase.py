"""Every strategy under every coordinator survives nodes that come and go in any phase."""

import numpy as np
import pytest

from optimizers import (
    ADPSGD,
    DPSGD,
    SGD,
    AllReduce,
    DeMo,
    DiLoCo,
    ParameterServer,
    Single,
    StreamingDiLoCo,
)
from optimizers.compression import DCT, Chain, TopK
from sim.budget import Budget
from sim.churn import Exponential
from sim.coordinators import Elastic, Psyche, Static

STRATEGIES = {
    "all_reduce": AllReduce(SGD(lr=0.1)),
    "all_reduce_top_k": AllReduce(SGD(lr=0.1), TopK(2)),
    "single": Single(SGD(lr=0.1)),
    "diloco": DiLoCo(inner_steps=3),
    "streaming": StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1),
    "demo": DeMo(compressor=Chain(DCT(8), TopK(2))),
    "dpsgd": DPSGD(),
    "dpsgd_adapt": DPSGD(order="adapt_then_combine"),
    "adpsgd": ADPSGD(),
    "parameter_server": ParameterServer(patience=5),
}
COORDINATORS = {
    "static": Static,
    "elastic": Elastic,
    "elastic_of_3": lambda: Elastic(min_nodes=3),
    "psyche": lambda: Psyche(
        min_clients=2,
        n_witnesses=2,
        rounds_per_epoch=3,
        warmup_time=4,
        max_round_train_time=8,
        round_witness_time=0.5,
        cooldown_time=1,
    ),
}


UPTIMES = (12.0, 3.0, 1.0)
"""Mean seconds online: many steps and messages, a few, about one (a step takes 1 s)."""


@pytest.fixture
def run(tiny):
    """`run(strategy, coordinator, seed)`: five nodes that are seldom online together, for 60 s."""

    def go(strategy, coordinator, seed, **parts):
        experiment = tiny(
            STRATEGIES[strategy],
            n=5,
            coordinator=COORDINATORS[coordinator](),
            churn=Exponential(up=UPTIMES[seed % 3], down=1.0),
            budget=Budget(seconds=60),
            seed=seed,
            **parts,
        )
        experiment.run()
        return experiment.sim

    return go


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("coordinator", COORDINATORS)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_comes_to_its_end_and_its_counters_conserve(run, strategy, coordinator, seed):
    sim = run(strategy, coordinator, seed)
    metrics = sim.trace["metric"]
    assert sim.now == 60
    assert len(sim.trace["session"]) > 20
    there = metrics["online"] - metrics["joined"] + metrics["left"]
    assert (there == there.iloc[0]).all()
    for counter in ("step", "node_steps", "nbytes", "wasted", "left", "joined", "rounds"):
        assert metrics[counter].is_monotonic_increasing, counter
    assert (metrics["nbytes"] >= metrics["wasted"] - 1e-6).all()
    assert np.isfinite(metrics["loss"]).all()
    assert (sim.busy <= sim.online_seconds() + 1e-6).all()
    assert sim.completed.sum() > 0 or seed == 2  # sessions of 1 s may complete nothing


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("coordinator", COORDINATORS)
def test_who_left_leaves_nothing_behind(run, strategy, coordinator):
    sim = run(strategy, coordinator, seed=1)
    away = set(range(5)) - sim.online
    assert sim.coordinator.ready <= sim.online
    assert not away & sim.fleet._locked
    assert not any(sim.node(i)._processes for i in away)
    works = list(sim._watchers.values())
    assert not any(work.triggered for work in works)
    assert not away & {node for work in works for node in work.members}
    transfers = sim.network.transfers()
    assert not away & {end for t in transfers for end in (t.src, t.dst)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(2))
def test_the_stepwise_network_survives_too(run, strategy, seed):
    sim = run(strategy, "elastic", seed, collectives="flows")
    assert sim.now == 60
    assert sim.completed.sum() > 0 or seed == 2  # sessions of 1 s may complete nothing
