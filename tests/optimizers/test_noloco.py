"""NoLoCo: pairs, its outer step, what travels when, partners that are lost, joiners."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import SGD, DiLoCo, NoLoCo, Pairing, RandomGroups
from optimizers.noloco import welcome
from sim.budget import Budget
from sim.payload import Dense
from topologies import complete


@dataclass(frozen=True)
class Everybody(Pairing):
    """One group of all."""

    def groups(self, members, step, rng):
        return [list(members)]


@dataclass(frozen=True)
class Fixed(Pairing):
    """The same groups in every step, of those who are there."""

    each: tuple = ((0, 1), (2, 3))

    def groups(self, members, step, rng):
        here = set(members)
        return [list(some) for some in self.each if here.issuperset(some)]


def run(strategy, n=4, steps=12, note=None, **parts):
    """Slow weights and momentum of all before and after each round, [rounds + 1, 2, n, P]."""
    rounds = RecordedRounds(
        note or (lambda sim: torch.stack([rows_of(sim), rows_of(sim, "delta")]))
    )
    parts = {"local": SGD(0.1), "budget": Budget(steps=steps)} | parts
    trace = Experiment(
        Regression.drawn(n), complete(n), strategy, coordinator=rounds, **parts
    ).run()
    return torch.stack(rounds.notes), trace


@pytest.mark.parametrize(("n", "size"), [(1, 2), (2, 2), (5, 2), (8, 2), (9, 3), (10, 4)])
def test_everybody_is_in_one_group_and_all_but_one_group_are_full(n, size):
    members = list(range(0, 3 * n, 3))
    groups = RandomGroups(size).groups(members, 0, np.random.default_rng(0))
    assert sorted(i for some in groups for i in some) == members
    sizes = [len(some) for some in groups]
    assert sizes == [size] * (n // size) + ([n % size] if n % size else [])


def test_partners_are_drawn_anew_and_all_alike():
    """Of 6 nodes each has each other one as its partner in a fifth of the steps."""
    pairs = Counter()
    for step in range(2000):
        groups = RandomGroups().groups(range(6), step, np.random.default_rng(step))
        assert groups == RandomGroups().groups(range(6), step, np.random.default_rng(step))
        pairs.update(tuple(sorted(some)) for some in groups)
    assert len(pairs) == 15
    assert all(abs(count - 400) < 6 * 400**0.5 for count in pairs.values())


@pytest.mark.parametrize("n", [3, 4, 5])
@pytest.mark.parametrize("size", [2, 3])
def test_an_outer_step_is_that_of_a_loop_over_the_nodes(n, size):
    """delta <- a delta + b mean(D) - g (phi - mean(phi)), of groups that a permutation makes."""
    alpha, beta, gamma, H = 0.4, 0.8, 0.6, 3
    drawn = []

    @dataclass(frozen=True)
    class Watched(Pairing):
        def groups(self, members, step, rng):
            drawn.append(RandomGroups(size).groups(members, step, rng))
            return drawn[-1]

    notes, _ = run(NoLoCo(H, alpha, beta, gamma, Watched(), Dense("native")), n)
    task = Regression.drawn(n)
    phi = task.init(torch.Generator()).repeat(n, 1)
    delta = torch.zeros_like(phi)
    for t in range(4):
        x = phi.clone()
        for k in range(H):
            nodes, steps = np.arange(n), np.full(n, H * t + k)
            for i, batch in enumerate(zip(*task.batch(nodes, steps))):
                x[i] -= 0.1 * torch.func.grad(task.loss)(x[i], batch)
        D, new = x - phi, phi.clone()
        for group in drawn[t]:
            for i in group:
                apart = phi[i] - phi[group].mean(0)
                delta[i] = alpha * delta[i] + beta * D[group].mean(0) - gamma * apart
                new[i] = phi[i] + delta[i]
        phi = new
        torch.testing.assert_close(notes[t + 1], torch.stack([phi, delta]), rtol=0, atol=1e-14)


def test_in_one_group_of_equal_nodes_it_is_diloco_with_a_heavy_ball():
    """With alpha = mu and beta = lr, the lr being in the momentum."""
    strategy = NoLoCo(3, 0.6, 0.5, gamma=1.3, pairing=Everybody(), compressor=Dense("native"))
    ours, _ = run(strategy, note=rows_of)
    outer = SGD(0.5, momentum=0.6)
    rounds = RecordedRounds(lambda sim: sim.shared["theta"])
    parts = {"local": SGD(0.1), "budget": Budget(steps=12), "coordinator": rounds}
    Experiment(Regression.drawn(4), complete(4), DiLoCo(3, outer, Dense("native")), **parts).run()
    wanted = torch.stack(rounds.notes)[:, None].expand_as(ours)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)


def test_the_pull_of_gamma_brings_nodes_together_and_the_spread_is_recorded():
    """Not training (a rate of 0), what is apart comes together; the mean stays where it is."""
    spreads = {}
    for gamma in (0.0, 0.7):
        strategy = NoLoCo(1, gamma=gamma, compressor=Dense("native"))
        rounds = RecordedRounds(rows_of)
        budget, task = Budget(steps=40), Regression.drawn(6)
        run = Experiment(
            task, complete(6), strategy, local=SGD(0.0), coordinator=rounds, budget=budget
        )
        sim = run.build()
        start = torch.randn(6, task.layout.numel, generator=torch.Generator().manual_seed(0))
        sim.group().params = start.double()
        sim.start()
        sim.run(until=sim.done)
        sim.progress.evaluate()
        means = torch.stack(rounds.notes).mean(1)
        torch.testing.assert_close(means, means[:1].expand_as(means), rtol=0, atol=1e-12)
        rows = rows_of(sim)
        spread = (rows - rows.mean(0)).square().sum(1).mean().sqrt()
        assert sim.trace["metric"]["spread"].iloc[-1] == pytest.approx(float(spread))
        spreads[gamma] = float(spread)
    assert spreads[0.7] < 1e-2 * spreads[0.0]


def test_slow_weights_travel_while_nodes_train(tiny):
    """A step takes 1 s and so does a vector on the wire, and 0.1 s: 1 + 1.1 s, not 1 + 2.2 s."""
    trace = tiny(NoLoCo(1, pairing=Fixed()), topology=complete(4, "32Bps", "100ms")).run()
    rounds = trace["round"]["time"].diff().dropna()
    assert rounds.to_numpy() == pytest.approx(2.2, abs=0.15)
    sent = trace["collective"]
    assert (sent["nbytes"] > 0).all()
    per_round = trace["metric"]["nbytes"].iloc[-1] / trace["metric"]["rounds"].iloc[-1]
    assert per_round == pytest.approx(4 * 2 * 32, rel=0.1)


@dataclass(frozen=True)
class Pairs(Pairing):
    """All four in pairs; in the second step, but for those of `apart`."""

    apart: tuple = ()

    def groups(self, members, step, rng):
        return [some for some in ([0, 1], [2, 3]) if step != 1 or not set(some) & set(self.apart)]


def test_who_loses_its_partner_goes_on_alone(tiny):
    """Node 1 leaves in the second round, when node 0 has its slow weights but not its drift.

    A round is 2 s of training and 1.1 s for the drifts.
    """
    notes = {}
    for name, away, apart in [("lost", {1: (4.5, 39.0)}, ()), ("apart", {}, (0, 1))]:
        rounds = RecordedRounds(lambda sim: sim.group([0, 2, 3])["params"].tensor())
        strategy, graph = NoLoCo(2, pairing=Pairs(apart)), complete(4, "32Bps", "100ms")
        budget = Budget(seconds=25)
        tiny(strategy, away=away, coordinator=rounds, topology=graph, budget=budget).run()
        notes[name] = rounds.notes
    assert torch.equal(notes["lost"][1], notes["apart"][1])
    torch.testing.assert_close(notes["lost"][2], notes["apart"][2], rtol=0, atol=1e-6)
    assert not torch.equal(notes["lost"][2], notes["lost"][1])


def test_a_joiner_gets_the_momentum_of_a_member(idle):
    sim = idle(away={1: (0.5, 1.0)})
    before = sim.group()
    before["delta"] = torch.arange(1.0, 5.0)[:, None].expand(-1, 8).contiguous()
    sim.run(until=2.0)
    group = sim.run(until=sim.coordinator.round())
    assert group["delta"].tensor()[:, 0].tolist() == [1, 0, 3, 4]  # it has lost its own
    welcome(group, before)
    first, joined, *others = group["delta"].tensor()[:, 0].tolist()
    assert [first, *others] == [1, 3, 4]
    assert joined in (1, 3, 4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NoLoCo(0), "strategy.inner_steps=0: must be >= 1"),
        (lambda: NoLoCo(alpha=1.0), r"strategy.alpha=1.0: must be in \[0, 1\)"),
        (lambda: NoLoCo(beta=-0.1), "strategy.beta=-0.1: must be >= 0"),
        (lambda: NoLoCo(gamma=-0.1), "strategy.gamma=-0.1: must be >= 0"),
        (lambda: RandomGroups(1), "strategy.pairing.size=1: must be >= 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
