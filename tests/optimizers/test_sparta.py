"""SPARTA: the mean of some entries, with and without delay; with DiLoCo around it."""

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from experiments.validate.golden.sparta import StoredMasks
from optimizers import SGD, SPARTA, DiLoCo, SPARTADiLoCo
from optimizers.compression import RandomK, SharedMask, TopK
from sim.budget import Budget
from sim.payload import Dense
from topologies import complete

ALL = Dense("native")
T = 12


def run(strategy, n=3, steps=T, note=rows_of, **parts):
    """Notes before and after each round, by default all parameters [rounds + 1, n, P]."""
    rounds = RecordedRounds(note)
    parts = {"local": SGD(0.1), "budget": Budget(steps=steps)} | parts
    trace = Experiment(
        Regression.drawn(n), complete(n), strategy, coordinator=rounds, **parts
    ).run()
    return torch.stack(rounds.notes), trace


def masks(p=0.4, seed=0):
    """Some entries for every step, bool [T, P]."""
    numel = Regression.drawn(1).layout.numel
    return torch.rand(T, numel, generator=torch.Generator().manual_seed(seed)) < p


def stepped(task, x, t):
    """Every node's parameters [n, P] after its own step of SGD(0.1)."""
    nodes = np.arange(len(x))
    new = x.clone()
    for i, batch in enumerate(zip(*task.batch(nodes, np.full(len(x), t)))):
        new[i] -= 0.1 * torch.func.grad(task.loss)(x[i], batch)
    return new


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_entries_are_averaged_as_in_a_loop(n, delay):
    """theta[M] <- theta[M] + (mean of what was sent - own of it), `delay` steps after."""
    chosen, task = masks(), Regression.drawn(n)
    ours, _ = run(SPARTA(StoredMasks(chosen), delay), n)
    x, sent = task.init(torch.Generator()).repeat(n, 1), []
    for t in range(T):
        x = stepped(task, x, t)
        sent.append((chosen[t], x.clone()))
        if len(sent) > delay:
            mask, old = sent[-1 - delay]
            x[:, mask] += (old.mean(0) - old)[:, mask]
        torch.testing.assert_close(ours[t + 1], x, rtol=0, atol=1e-14)


def test_without_delay_nodes_agree_on_the_entries_to_the_bit_and_on_no_others():
    chosen = masks()
    notes, _ = run(SPARTA(StoredMasks(chosen)))
    same = (notes[1:] == notes[1:, :1]).all(1)
    assert same[chosen].all()
    assert not same[1:][~chosen[1:]].any() or not same[~chosen].all()


def test_all_entries_at_each_step_is_the_mean_of_parameters():
    ours, trace = run(SPARTA(ALL))
    wanted, _ = run(DiLoCo(1, SGD(1.0), ALL), note=lambda sim: sim.shared["theta"])
    torch.testing.assert_close(ours, wanted[:, None].expand_as(ours), rtol=0, atol=1e-14)
    assert trace["metric"]["spread"].max() < 1e-14


def test_fewer_entries_leave_nodes_further_apart():
    spreads = [
        run(SPARTA(SharedMask(p, "shuffled")), steps=60)[1]["metric"]["spread"].iloc[-1]
        for p in (0.05, 0.3, 1.0)
    ]
    assert spreads[0] > 1.5 * spreads[1] > 1.5 * spreads[2]


@pytest.mark.parametrize("codec", [SharedMask(0.2), SharedMask(0.2, "partition"), RandomK(5)])
def test_any_codec_that_all_draw_alike_will_do(codec):
    notes, trace = run(SPARTA(codec), n=4)
    agreed = (notes[1:] - notes[1:, :1]).abs().amax(1) < 1e-7  # sent in float32
    assert 0 < agreed.double().mean() < 0.5
    assert trace["metric"]["nbytes"].iloc[-1] > 0


def test_the_bytes_are_those_of_the_entries_around_a_ring():
    """2 (n - 1) / n of what a node sends, for each: 5 values and the seed, each step."""
    _, trace = run(SPARTA(RandomK(5)), n=4)
    assert trace["metric"]["nbytes"].iloc[-1] == pytest.approx(T * 4 * 1.5 * (5 * 4 + 8))


def test_steps_do_not_wait_for_entries_that_may_be_late(tiny):
    """A step takes 1 s, a ring of 32 bytes for two 1.2 s: two steps of delay hide it."""
    graph = complete(2, "32Bps", "100ms")
    ends = [
        tiny(SPARTA(ALL, delay), n=2, topology=graph, budget=Budget(steps=10)).run()
        for delay in (0, 2)
    ]
    waits, hides = (trace["metric"]["time"].iloc[-1] for trace in ends)
    assert waits == pytest.approx(10 * 2.2, rel=0.02)
    assert hides == pytest.approx(10, rel=0.01)


def test_a_member_that_is_lost_is_not_in_the_mean(tiny):
    """Node 1 leaves while entries travel, in the first half of the ring."""
    notes = []
    for chosen, away in ((True, {1: (1.2, 39.0)}), (False, {})):
        rounds = RecordedRounds(lambda sim: sim.group([0, 2, 3])["params"].tensor())
        codec, budget = StoredMasks(torch.full((T, 8), chosen)), Budget(seconds=14)
        tiny(SPARTA(codec), away=away, coordinator=rounds, budget=budget).run()
        notes.append(rounds.notes[1])
    averaged, alone = notes
    torch.testing.assert_close(averaged, alone.mean(0).expand_as(averaged))


# -- with DiLoCo ----------------------------------------------------------------------------------


def test_with_an_outer_step_at_every_step_it_is_diloco_of_averaged_nodes():
    outer = SGD(0.7, momentum=0.9, nesterov=True)
    ours, _ = run(SPARTADiLoCo(1, outer, ALL, sparta=SPARTA(ALL)), note=lambda s: s.shared["theta"])
    wanted, _ = run(DiLoCo(1, outer, ALL), note=lambda sim: sim.shared["theta"])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)


def test_with_nothing_averaged_between_it_is_diloco():
    outer, none = SGD(0.7, momentum=0.9, nesterov=True), StoredMasks(torch.zeros(T, 26) > 0)
    strategy = SPARTADiLoCo(3, outer, ALL, sparta=SPARTA(none))
    ours, _ = run(strategy, note=strategy.consensus)
    wanted, _ = run(DiLoCo(3, outer, ALL), note=lambda sim: sim.shared["theta"])
    torch.testing.assert_close(ours[::3], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("delay", [0, 2])
def test_both_are_those_of_a_loop(delay):
    """The sparse average first; what is under way at an outer step is dropped."""
    n, H, lr, chosen, task = 3, 4, 0.8, masks(), Regression.drawn(3)
    strategy = SPARTADiLoCo(H, SGD(lr), ALL, sparta=SPARTA(StoredMasks(chosen), delay))
    ours, _ = run(strategy)
    theta = task.init(torch.Generator())
    x, sent = theta.repeat(n, 1), []
    for t in range(T):
        x = stepped(task, x, t)
        sent.append((chosen[t], x.clone()))
        if len(sent) > delay:
            mask, old = sent.pop(0)
            x[:, mask] += (old.mean(0) - old)[:, mask]
        if (t + 1) % H == 0:
            theta = theta - lr * (theta - x).mean(0)
            x, sent = theta.repeat(n, 1), []
        torch.testing.assert_close(ours[t + 1], x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SPARTA(TopK(3)), "all nodes must send the same entries"),
        (lambda: SPARTA(RandomK(3, scaled=True)), "choose compressor.scaled=false"),
        (lambda: SPARTA(delay=-1), "strategy.delay=-1: must be >= 0"),
        (lambda: SPARTADiLoCo(0), "strategy.inner_steps=0: must be >= 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
