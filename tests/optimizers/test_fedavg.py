"""FedAvg: it is DiLoCo where all take part, and a weighted mean of a drawn part elsewhere."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds
from optimizers import SGD, AdamW, DiLoCo, FedAvg, Muon
from optimizers.aggregation import CoordinateMedian, Krum
from optimizers.compression import TopK
from sim.budget import Budget
from sim.compute.options import ComputeOptions
from sim.payload import Dense
from topologies import complete, star

EXACT = Dense("native")
ALONE = ComputeOptions(workers=1)


def _run(strategy, n=4, steps=6, **parts):
    """A run, and the consensus model at the start and after each round."""
    rounds = RecordedRounds(lambda sim: strategy.consensus(sim))
    parts = {"local": SGD(0.1), "compute": ALONE, "link_records": True} | parts
    budget = Budget(steps=steps)
    run = Experiment(
        Regression.drawn(n), complete(n), strategy, coordinator=rounds, budget=budget, **parts
    )
    run.run()
    return run.sim, torch.stack(rounds.notes)


def _per_round(sim, n_rounds):
    """The clients of each round."""
    return [set(ids) for ids in sim.trace["compute"]["members"][:n_rounds]]


@pytest.mark.parametrize("codec", [EXACT, TopK(3)])
def test_all_clients_with_equal_weights_are_local_sgd(codec):
    _, ours = _run(FedAvg(2, compressor=codec))
    _, theirs = _run(DiLoCo(2, outer=SGD(1.0), compressor=codec))
    assert torch.equal(ours, theirs)
    _, weighted = _run(FedAvg(2, samples=[7, 7, 7, 7], compressor=codec))
    torch.testing.assert_close(weighted, theirs, rtol=0, atol=1e-14)


def test_local_sgd_is_the_mean_of_nodes_that_train_alone():
    inner = RecordedOptimizer(SGD(0.1))
    _, notes = _run(FedAvg(6, compressor=EXACT), local=inner)
    torch.testing.assert_close(notes[1], inner.params[-1].mean(0), rtol=0, atol=1e-14)


def test_clients_weigh_what_their_samples_do():
    inner, samples = RecordedOptimizer(SGD(0.1)), [1.0, 2.0, 3.0, 10.0]
    _, notes = _run(FedAvg(6, samples=samples, compressor=EXACT), local=inner)
    expected = torch.tensor(samples).double() @ inner.params[-1] / 16
    torch.testing.assert_close(notes[1], expected, rtol=0, atol=1e-13)


def test_a_part_of_the_nodes_trains_and_the_mean_is_theirs():
    inner = RecordedOptimizer(SGD(0.1))
    sim, notes = _run(FedAvg(1, fraction=0.4, compressor=EXACT), n=5, local=inner)
    drawn = _per_round(sim, 6)
    assert {len(clients) for clients in drawn} == {2}
    assert len(set(map(frozenset, drawn))) > 2
    for before, after, params in zip(notes, notes[1:], inner.params):
        torch.testing.assert_close(after, params.mean(0), rtol=0, atol=1e-13)
        assert not torch.equal(before, after)


def test_at_least_one_node_trains():
    sim, _ = _run(FedAvg(1, fraction=0.01))
    assert {len(clients) for clients in _per_round(sim, 6)} == {1}


def test_who_was_not_there_last_time_downloads_the_model():
    sim, _ = _run(FedAvg(1, fraction=0.5), n=6, steps=5)
    drawn = _per_round(sim, len(sim.trace["compute"]))
    collectives = sim.trace["collective"]
    downloads = collectives[collectives["op"] == "broadcast"]
    late = [len(now - before) for before, now in pairwise(drawn) if now - before]
    assert late
    assert (downloads["n"] - 1).tolist() == late  # and the one that has it


def test_all_nodes_need_no_downloads():
    sim, _ = _run(FedAvg(2))
    assert set(sim.trace["collective"]["op"]) == {"all_reduce"}


def test_moments_are_averaged_too():
    """With them a node's step is as if all of its past had been the fleet's."""
    inner, n = RecordedOptimizer(AdamW(0.01)), 4
    strategy = FedAvg(2, average_state=True, compressor=EXACT)
    sim, _ = _run(strategy, n, local=inner)
    states, params = inner.states, inner.params
    for end in (1, 3):
        state = {k: states[end][k].mean(0).expand(n, -1) for k in ("mean", "square")}
        state["age"] = torch.full((n, 1), end + 1)
        theta = params[end].mean(0).expand(n, -1)
        after, state = AdamW(0.01).step(theta, inner.grads[end + 1], state)
        torch.testing.assert_close(params[end + 1], after, rtol=0, atol=1e-13)
        torch.testing.assert_close(states[end + 1]["square"], state["square"])
    assert sim.shared["local.age"].tolist() == [6]


def test_moments_take_three_times_the_bytes():
    with_moments, _ = _run(FedAvg(2, average_state=True), local=AdamW(0.01))
    without, _ = _run(FedAvg(2), local=AdamW(0.01))
    sent = [sim.trace["metric"]["nbytes"].iloc[-1] for sim in (with_moments, without)]
    assert sent[0] == pytest.approx(3 * sent[1])


def test_averaging_no_moments_changes_nothing():
    _, ours = _run(FedAvg(2, average_state=True))
    _, theirs = _run(FedAvg(2))
    assert torch.equal(ours, theirs)


def test_the_outer_optimizer_of_fedavgm_has_momentum():
    outer = SGD(0.7, 0.9, nesterov=True)
    _, ours = _run(FedAvg(2, outer=outer))
    _, theirs = _run(DiLoCo(2, outer=outer))
    assert torch.equal(ours, theirs)


def test_the_rule_may_be_another_than_the_mean():
    inner = RecordedOptimizer(SGD(0.1))
    strategy = FedAvg(6, aggregation=CoordinateMedian(), compressor=EXACT)
    _, notes = _run(strategy, n=3, local=inner)
    median = inner.params[-1].median(0).values
    torch.testing.assert_close(notes[1], median, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_a_fleet_learns(n):
    task = Regression.drawn(n)
    strategy = FedAvg(4, fraction=0.5)
    trace = Experiment(task, star(n), strategy, local=SGD(0.1), budget=Budget(steps=24)).run()
    loss = trace["metric"]["loss"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]


def test_the_same_seed_draws_the_same_clients():
    drawn = [_per_round(_run(FedAvg(1, fraction=0.5), n=8, seed=seed)[0], 6) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "strategy.fraction=0.0"),
        ({"fraction": 1.5}, "strategy.fraction=1.5"),
        ({"inner_steps": 0}, "strategy.inner_steps=0"),
        ({"samples": [1, 0]}, "must be numbers > 0"),
        ({"samples": [1, float("inf")]}, "must be numbers > 0"),
        ({"samples": [1, 2], "aggregation": Krum()}, "Krum.* has no form for members of unequal"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FedAvg(**options)


def test_samples_are_of_each_node():
    with pytest.raises(ValueError, match="3 numbers, one is needed for each of the 4 nodes"):
        _run(FedAvg(samples=[1, 2, 3]))


def test_moments_of_a_part_of_the_columns_are_refused():
    with pytest.raises(ValueError, match="Muon keeps moments of a part of the columns"):
        _run(FedAvg(average_state=True), local=Muon())


def test_samples_of_a_configuration_are_a_list():
    assert FedAvg(samples=np.array([1, 2])).samples == (1.0, 2.0)
