"""Outer steps one round late, eager ones, and Psyche's lag: equivalences and rounds by hand."""

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from experiments.validate.golden.problems import Listed, Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import (
    SGD,
    AdamW,
    DelayedDiLoCo,
    DeMo,
    DiLoCo,
    EagerDiLoCo,
    Muon,
    PsycheDeMo,
    StreamingDiLoCo,
)
from optimizers.aggregation import CoordinateMedian
from optimizers.compression import DCT, Chain, PerTensor, Sign, TopK
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.coordinators import Elastic
from sim.payload import Dense
from topologies import complete, star

EXACT = Dense("native")
OUTER = SGD(0.7, 0.9, nesterov=True)


def _run(strategy, n=4, steps=8, note=None, **parts):
    """A run, and the consensus model (or another note) at the start and after each round."""
    rounds = RecordedRounds(note or strategy.consensus)
    parts = {"local": SGD(0.1), "budget": Budget(steps=steps)} | parts
    run = Experiment(Regression.drawn(n), complete(n), strategy, coordinator=rounds, **parts)
    run.run()
    return run.sim, torch.stack(rounds.notes)


def _gradients(task, x, t):
    """Of all nodes at step t, at parameters [P] or [n, P]."""
    n = task._x.shape[1]
    batches = task.batch(np.arange(n), np.full(n, t))
    x = x.expand(n, -1) if x.dim() == 1 else x
    return torch.func.vmap(torch.func.grad(task.loss))(x, batches)


def _drift(task, x, first, steps=2):
    """Outer gradients [n, P] of some inner steps of SGD(0.1) from x, [P] or [n, P]."""
    start = x
    for t in range(first, first + steps):
        x = x - 0.1 * _gradients(task, x, t)
    return start - x


# -- one-step delay -------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [EXACT, Dense("bfloat16"), TopK(4)])
def test_no_delay_is_diloco(codec):
    _, ours = _run(DelayedDiLoCo(2, delay=0, outer=OUTER, compressor=codec))
    _, theirs = _run(DiLoCo(2, outer=OUTER, compressor=codec))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert len(ours) == 5


@pytest.mark.parametrize("delay", [1, 2])
def test_an_outer_gradient_is_applied_rounds_later(delay):
    _, notes = _run(DelayedDiLoCo(2, delay, OUTER, EXACT), steps=12)
    task, theta, drifts = Regression.drawn(4), notes[0], []
    state = OUTER.init(theta)
    for r in range(6):
        drifts.append(_drift(task, theta, 2 * r % 8).mean(0))
        if r >= delay:
            theta, state = OUTER.step(theta, drifts[r - delay], state)
        torch.testing.assert_close(notes[r + 1], theta, rtol=0, atol=1e-13)
    assert torch.equal(notes[delay], notes[0])
    assert not torch.equal(notes[delay + 1], notes[0])


def test_what_travels_while_others_train_costs_no_time(tiny):
    """Rounds of 4 s; a reduction of at least 1.5 s is within the next one."""
    spent = {}
    for delay in (0, 1):
        budget = Budget(steps=20)
        run = tiny(DelayedDiLoCo(4, delay=delay), budget=budget, coordinator=Elastic())
        run.run()
        assert len(run.sim.trace["collective"]) == 5
        spent[delay] = run.sim.now
    collective = run.sim.trace["collective"].iloc[-1]
    duration = collective["end"] - collective["start"]
    assert duration > 1
    assert spent[0] - spent[1] == pytest.approx(4 * duration, rel=0.05)


def test_a_late_network_is_waited_for(tiny):
    run = tiny(
        DelayedDiLoCo(1), topology=complete(4, bandwidth=2, latency=0.1), budget=Budget(steps=4)
    )
    run.run()
    collectives = run.sim.trace["collective"]
    overlapping = (collectives["start"].iloc[2:].to_numpy() < collectives["end"].iloc[:-2]).any()
    assert not overlapping  # a round begins when the mean of the one before the last is there


def test_the_rule_may_be_another_than_the_mean():
    strategy = DelayedDiLoCo(2, outer=SGD(1.0), compressor=EXACT, aggregation=CoordinateMedian())
    _, notes = _run(strategy, n=3)
    drift = _drift(Regression.drawn(3), notes[0], 0)
    expected = notes[0] - drift.median(0).values
    torch.testing.assert_close(notes[2], expected, rtol=0, atol=1e-13)


def test_a_joiner_downloads_what_is_under_way(tiny):
    """The model, the outer momentum, and as many means as the delay."""
    sizes = {}
    for delay in (0, 1, 3):
        run = tiny(DelayedDiLoCo(1, delay), away={3: (2.5, 5.2)}, coordinator=Elastic(), n=4)
        run.run()
        transfers = run.sim.trace["transfer"]
        sizes[delay] = transfers["nbytes"].iloc[0]
    assert sizes == {0: 64, 1: 96, 3: 160}


# -- eager updates --------------------------------------------------------------------------------


def test_eager_on_one_node_is_diloco():
    _, ours = _run(EagerDiLoCo(2, OUTER, EXACT), n=1)
    _, theirs = _run(DiLoCo(2, outer=OUTER, compressor=EXACT), n=1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert len(ours) == 5


@pytest.mark.parametrize("outer", [OUTER, SGD(0.7), AdamW(0.01)])
def test_own_gradients_are_fresh_and_the_others_stale(outer):
    n, task = 3, Regression.drawn(3)
    _, notes = _run(EagerDiLoCo(2, outer, EXACT), n, note=rows_of)
    theta = notes[0]
    state, before = outer.init(theta), torch.zeros_like(theta)
    for r in range(4):
        fresh = _drift(task, theta, 2 * r)
        eager = before.mean(0) + (fresh - before) / n
        theta, state = outer.step(theta, eager, state)
        before = fresh
        torch.testing.assert_close(notes[r + 1], theta, rtol=0, atol=1e-13)
    assert not torch.equal(theta[0], theta[1])


def test_eager_nodes_differ_and_say_by_how_much():
    sim, _ = _run(EagerDiLoCo(2, OUTER, EXACT))
    spread = sim.trace["metric"]["spread"]
    assert spread.iloc[0] == 0
    assert spread.iloc[-1] > 0


def _with_a_joiner(tiny, strategy):
    """A simulation at the moment when node 3, which was away until 7.2 s, has the state."""
    sim = tiny(strategy, away={3: (3.5, 7.2)}, coordinator=Elastic()).build()
    sim.start()
    sim.run(until=7.2)
    while 3 not in sim.coordinator.ready:
        sim.step()
    return sim


def test_a_joiner_begins_with_parameters_of_a_node_and_no_outer_state(tiny):
    with torch.no_grad():
        sim = _with_a_joiner(tiny, EagerDiLoCo(2))
        theta = sim.group([3])["params"].tensor()
        assert any(torch.equal(theta, sim.group([i])["theta"].tensor()) for i in (0, 1, 2))
        assert not sim.group([3])["outer.momentum"].tensor().any()


def test_a_joiner_of_eager_takes_its_first_outer_step_as_the_first(tiny):
    """AdamW's first step is lr in every coordinate, if it knows that it is the first."""
    with torch.no_grad():
        sim = _with_a_joiner(tiny, EagerDiLoCo(2, AdamW(0.01)))
        theta = sim.group([3])["params"].tensor()
        while not sim.group([3])["outer.square"].tensor().any():
            sim.step()
        moved = sim.group([3])["theta"].tensor() - theta
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=1e-4, atol=0)


def test_the_share_of_a_node_is_that_of_those_who_sent(tiny):
    """Of four nodes one leaves in the first round: the mean, and a node's own share, are of 3."""
    run = tiny(EagerDiLoCo(2, SGD(1.0)), away={3: (1.5, 90.0)}, budget=Budget(seconds=60))
    sim = run.build()
    found = []
    with torch.no_grad():
        sim.start()
        while len(found) < 2:
            sim.step()
            fresh = sim.group([0, 1, 2])["delta"].tensor()
            if fresh.any() and not any(torch.equal(fresh, other) for other in found):
                found.append(fresh)
        while torch.equal(sim.group([0])["params"].tensor(), before := sim.initial_params()[None]):
            sim.step()
        theta = sim.group([0, 1, 2])["theta"].tensor()
    first, second = found
    after_one = before - first / 3
    expected = after_one - (first.mean(0) + (second - first) / 3)
    torch.testing.assert_close(theta, expected, rtol=1e-5, atol=1e-6)


def test_the_others_of_eager_may_be_combined_by_another_rule():
    rule, n, task = CoordinateMedian(), 3, Regression.drawn(3)
    _, notes = _run(EagerDiLoCo(2, SGD(1.0), EXACT, rule), n, note=rows_of)
    first = _drift(task, notes[0], 0)
    torch.testing.assert_close(notes[1], notes[0] - first / n, rtol=0, atol=1e-13)
    fresh = _drift(task, notes[1], 2)
    eager = first.median(0).values + (fresh - first) / n
    torch.testing.assert_close(notes[2], notes[1] - eager, rtol=0, atol=1e-13)


def test_eager_needs_outer_moments_of_whole_rows():
    with pytest.raises(ValueError, match=r"strategy\.outer=Muon"):
        _run(EagerDiLoCo(2, outer=Muon()))


# -- the lag of Psyche ----------------------------------------------------------------------------

LR, DECAY, DECREASE = 0.02, 0.9, 0.05
FACTORS = torch.tensor([1.0, 0.5, 0.8, 0.3, 0.9, 0.7])


def _by_hand(task, theta, steps, k):
    """Psyche's rounds as its code has them, with the k largest values of each flat row."""
    n = task._x.shape[1]
    d, sent, lr = torch.zeros(n, len(theta)).double(), None, 0.0
    thetas = [theta]
    for t in range(steps):
        before, lr = lr, LR * float(FACTORS[t])
        g = _gradients(task, theta - before * d.sign(), t)
        results = None
        if sent is not None:
            kept = torch.zeros_like(d)
            kept.scatter_(1, *sent)
            d = d - kept
            signs = torch.zeros_like(d).scatter_(1, sent[0], sent[1].sign())
            counts = torch.zeros_like(d).scatter_(1, sent[0], torch.ones_like(sent[1])).sum(0)
            results = (signs.sum(0) / counts.clamp(min=1)).sign()
        d = DECAY * d + lr * g
        index = d.abs().topk(k, dim=1).indices
        sent = index, d.gather(1, index)
        theta = theta * (1 - lr * DECREASE)
        theta = theta if results is None else theta - before * results
        thetas.append(theta)
    return torch.stack(thetas)


@pytest.mark.parametrize("n", [1, 3])
def test_results_are_applied_one_round_late_and_gradients_look_ahead(n):
    codec = Chain(TopK(5, value_dtype="native"), Sign(scale=None))
    strategy = PsycheDeMo(LR, DECAY, codec, DECREASE, Listed(FACTORS))
    _, ours = _run(strategy, n, steps=6)
    theirs = _by_hand(Regression.drawn(n), ours[0], 6, k=5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_two_rounds_of_psyche_by_hand():
    """One value per node is sent: node 0 sends its largest gradient, and so does node 1."""
    codec, task = Chain(TopK(1, value_dtype="native"), Sign(scale=None)), Regression.drawn(2)
    _, (start, first, second) = _run(PsycheDeMo(LR, DECAY, codec), n=2, steps=2)
    gradients = _gradients(task, start, 0)
    largest = gradients.abs().argmax(1)
    assert torch.equal(first, start)  # nothing has been heard yet
    step = torch.zeros_like(start)
    for g, i in zip(gradients, largest):
        step[i] += g[i].sign()
    torch.testing.assert_close(second, start - LR * step.sign(), rtol=0, atol=1e-15)


def test_psyche_may_go_by_the_median_of_what_was_sent():
    codec, task = TopK(ratio=1.0, value_dtype="native"), Regression.drawn(3)
    strategy = PsycheDeMo(LR, 0.0, codec, aggregation=CoordinateMedian())
    _, (start, _, second) = _run(strategy, n=3, steps=2)
    step = _gradients(task, start, 0).median(0).values.sign()
    torch.testing.assert_close(second, start - LR * step, rtol=0, atol=1e-15)


def test_a_gather_is_hidden_behind_the_next_gradient(tiny):
    codec, spent = Chain(TopK(1), Sign(scale=None)), {}
    for bandwidth in (1e9, 8):
        topology = complete(4, bandwidth=bandwidth, latency=0.1)
        run = tiny(PsycheDeMo(compressor=codec), topology=topology, budget=Budget(steps=10))
        run.run()
        spent[bandwidth] = run.sim.now
    gathers = run.sim.trace["collective"]
    longest = (gathers["end"] - gathers["start"]).max()
    assert longest > 0.4
    assert spent[8] - spent[1e9] < 2 * longest  # the last one is awaited


def test_the_codec_of_psyche_is_cosines_and_signs():
    codec = PsycheDeMo().compressor
    assert codec == PerTensor(Chain(DCT(64), TopK(32), Sign(scale=None)))


# -- all of them ----------------------------------------------------------------------------------

STRATEGIES = {
    "delayed": DelayedDiLoCo(4, outer=SGD(0.5, 0.5)),
    "eager": EagerDiLoCo(4, outer=SGD(0.5, 0.5)),
    "psyche": PsycheDeMo(0.02),
}


RESTARTED = STRATEGIES | {
    "later": DelayedDiLoCo(2, 3, SGD(0.5)),
    "streaming": StreamingDiLoCo(4, 2, overlap=3),
}


@pytest.mark.parametrize("name", RESTARTED)
def test_what_was_under_way_is_forgotten_where_training_begins_again(tiny, name):
    """Nobody is left while the next round is waited for: the state is lost, and so are means."""
    task = Quadratic(dimension=8, heterogeneity=0.5)
    task.layout = Layout({"layer.0": (5,), "layer.1": (3,)})
    ways = {"again": {1: (14.5, 40.0), 0: (18.5, 40.0)}, "at once": {}}
    found = {}
    for way, away in ways.items():
        parts = {"task": task, "coordinator": Elastic(min_nodes=2), "budget": Budget(seconds=66)}
        sim = tiny(RESTARTED[name], n=2, away=away, **parts).build()
        begins, consensus = 40.0 if away else 0.0, []
        with torch.no_grad():
            sim.start()
            sim.run(until=begins + 0.5)
            while sim.now < begins + 25:
                now = sim.strategy.consensus(sim)
                if not consensus or not torch.equal(now, consensus[-1]):
                    consensus.append(now.clone())
                sim.step()
        found[way] = torch.stack(consensus)
        assert sim.restarts == len(away) / 2
    assert len(found["again"]) > 4
    torch.testing.assert_close(found["again"], found["at once"][: len(found["again"])])


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fleet_learns(name, n):
    task, budget = Regression.drawn(n), Budget(steps=32)
    trace = Experiment(task, star(n), STRATEGIES[name], local=SGD(0.1), budget=budget).run()
    loss = trace["metric"]["loss"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DelayedDiLoCo(0), "strategy.inner_steps=0"),
        (lambda: DelayedDiLoCo(delay=-1), "strategy.delay=-1"),
        (lambda: EagerDiLoCo(0), "strategy.inner_steps=0"),
        (lambda: PsycheDeMo(lr=0), "strategy.lr=0"),
        (lambda: PsycheDeMo(decay=1.0), "strategy.decay=1.0"),
        (lambda: PsycheDeMo(weight_decay=-0.1), "strategy.weight_decay=-0.1"),
        (lambda: DeMo(weight_decay=-0.1), "strategy.weight_decay=-0.1"),
        (lambda: PsycheDeMo(aggregate="some"), "strategy.aggregate='some'"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
