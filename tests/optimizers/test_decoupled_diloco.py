"""Decoupled DiLoCo: its merge in closed form, its quorum by hand, and where it is Streaming."""

import math

import networkx as nx
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedOptimizer
from optimizers import SGD, DecoupledDiLoCo, DiLoCo, StreamingDiLoCo
from optimizers.decoupled_diloco import rda, token_weight
from optimizers.stamp import Header
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.coordinators import Elastic
from sim.payload import Dense
from sim.workload import one_billion
from topologies import complete
from topologies.links import set_links

EXACT = Dense("native")


def nesterov():
    return RecordedOptimizer(SGD(lr=0.7, momentum=0.9, nesterov=True))


# -- merging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_deltas_merge_to_that_delta(n):
    delta = torch.tensor([3.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    weights = torch.arange(1.0, n + 1, dtype=torch.float64)
    torch.testing.assert_close(rda(delta.repeat(n, 1), weights), delta)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_length_does_not_fall_with_the_number_of_orthogonal_deltas(n):
    deltas, weights = 3.0 * torch.eye(16)[:n], torch.ones(n)
    merged, mean = rda(deltas, weights), deltas.mean(0)
    assert float(merged.norm()) == pytest.approx(3.0)
    assert float(mean.norm()) == pytest.approx(3.0 / math.sqrt(n))
    torch.testing.assert_close(merged / merged.norm(), mean / mean.norm())


def test_lengths_and_directions_are_averaged_apart():
    deltas = torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    merged = rda(deltas, torch.tensor([1.0, 3.0], dtype=torch.float64))
    length, direction = (4 + 3 * 1) / 4, torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(merged, length * direction / math.hypot(0.25, 0.75))


@pytest.mark.parametrize(
    "deltas", [torch.zeros(3, 4), torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), torch.zeros(1, 2)]
)
def test_what_has_no_direction_merges_to_zero(deltas):
    assert rda(deltas, torch.ones(len(deltas))).tolist() == [0.0] * deltas.shape[1]


def test_a_zero_delta_shortens_the_merge_and_does_not_turn_it():
    merged = rda(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.ones(2))
    assert merged.tolist() == [1.0, 0.0]


def test_embeddings_are_averaged_and_every_other_tensor_is_merged_by_itself():
    layout = Layout({"embed": (2,), "w": (2,), "v": (2,)})
    deltas = torch.tensor([[2.0, 0.0, 1.0, 0.0, 0.0, 5.0], [0.0, 4.0, 0.0, 1.0, 0.0, 7.0]])
    weights = torch.tensor([3.0, 1.0])
    merged = DecoupledDiLoCo().merge(deltas, weights, layout)
    torch.testing.assert_close(merged[:2], torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(merged[2:4], rda(deltas[:, 2:4], weights))
    torch.testing.assert_close(merged[4:], torch.tensor([0.0, 5.5]))
    mean = DecoupledDiLoCo(radial=False).merge(deltas, weights, layout)
    torch.testing.assert_close(mean, (3 * deltas[0] + deltas[1]) / 4)


def test_a_learner_weighs_tokens_squared_per_step_since_it_was_merged():
    assert token_weight(Header(5, 30, 300), Header(2, 10, 100)) == pytest.approx(200**2 / 20)
    assert token_weight(Header(5, 30, 300), Header()) == pytest.approx(300**2 / 30)
    assert token_weight(Header(1, 4, 40), Header(2, 10, 100)) == pytest.approx(40**2 / 4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"inner_steps": 5}, "inner_steps=5: must be a multiple of the 2 fragments; the nearest"),
        ({"inner_steps": 4, "overlap": 2}, "overlap=2: must be between 0 and 1"),
        ({"mixing": 2}, "mixing=2: must be between 0 and 1"),
        ({"quorum": 0}, "quorum=0, server=0: must be >= 1"),
        ({"grace": 1.5}, "grace=1.5: must be between 0 and 1"),
    ],
)
def test_bad_values_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        DecoupledDiLoCo(**keys)


# -- where it is another algorithm ----------------------------------------------------------------


class Shifted(Regression):
    """The problem of nodes 0 to n - 1, on nodes 1 to n; node 0 has none."""

    def batch(self, nodes, steps):
        return super().batch(nodes - 1, steps)

    def bind(self, seed, n_nodes):
        super().bind(seed, n_nodes - 1)


STEADY = Device(speed="1MFLOPS", mfu=1, jitter=0)


def outer_params(task, n, strategy, outer, **parts):
    """Parameters after each of the outer steps of a run."""
    parts = {"local": SGD(0.1), "device": STEADY, "budget": Budget(steps=24)} | parts
    Experiment(task, complete(n, bandwidth=math.inf, latency=0), strategy, **parts).run()
    return outer.params


@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_with_everybody_in_time_it_is_streaming_diloco(fragments, mixing):
    n, ours, theirs = 3, nesterov(), nesterov()
    same = {"fragments": fragments, "overlap": 1, "mixing": mixing}
    decoupled = DecoupledDiLoCo(6, **same, outer=ours, quorum=n, radial=False)
    streaming = StreamingDiLoCo(6, **same, outer=theirs, compressor=EXACT)
    found = outer_params(Shifted.drawn(n), n + 1, decoupled, ours)
    wanted = outer_params(Regression.drawn(n), n, streaming, theirs)
    assert len(found) >= 4 * fragments - 1
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("radial", [False, True])
def test_a_node_alone_with_one_fragment_is_diloco_with_one_replica(radial):
    ours, theirs = nesterov(), nesterov()
    decoupled = DecoupledDiLoCo(3, 1, overlap=1, mixing=0.0, outer=ours, radial=radial)
    found = outer_params(Regression.drawn(1), 1, decoupled, ours)
    wanted = outer_params(Regression.drawn(1), 1, DiLoCo(3, outer=theirs, compressor=EXACT), theirs)
    assert len(found) == 8
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=0, atol=1e-14)


# -- quorum and window, by hand -------------------------------------------------------------------


def star(*latencies):
    """A syncer, node 0, and a learner at the end of each link, which takes no time but latency."""
    graph = nx.Graph((0, i + 1) for i in range(len(latencies)))
    set_links(graph, math.inf, 0)
    for i, latency in enumerate(latencies):
        graph.edges[0, i + 1]["latency"] = latency
    return graph


def merges(tiny, latencies=(1.0, 2.0, 5.0), seconds=24.0, away=None, **keys):
    """(time, learners, seconds of the quorum, window) of the merges of a run of 1 s steps.

    Slots of 8 steps, sent after 6: at 6, 14, 22 s; heard at 7, 8 and 11, then at 15, 16 and 19.
    """
    keys = {"inner_steps": 8, "fragments": 1, "overlap": 2, "grace": 1.0} | keys
    run = tiny(
        DecoupledDiLoCo(**keys),
        n=len(latencies) + 1,
        topology=star(*latencies),
        away=away,
        budget=Budget(seconds=seconds),
    )
    rows = run.run().rows("merge")
    names = ("time", "learners", "quorum_seconds", "window")
    return [tuple(round(row[name], 6) for name in names) for row in rows]


def test_a_quorum_of_two_waits_a_window_for_the_third(tiny):
    # Two steps less the second between the first and the second is a window of 1 s. What the third
    # sent comes too late, and makes the next quorum with the first. Results took 5 s to reach
    # the third: nothing is left of two steps from then on.
    found = merges(tiny, quorum=2)
    assert found[:3] == [(9.0, 2, 1.0, 1.0), (15.0, 2, 4.0, 0.0), (19.0, 2, 3.0, 0.0)]


def test_the_window_is_no_longer_than_allowed(tiny):
    assert merges(tiny, quorum=2, max_grace=0.25)[0] == (8.25, 2, 1.0, 0.25)
    assert merges(tiny, quorum=2, grace=0.5)[0] == (8.5, 2, 1.0, 0.5)
    assert merges(tiny, quorum=2, grace=0.0)[0] == (8.0, 2, 1.0, 0.0)


def test_nobody_is_waited_for_when_all_were_heard(tiny):
    assert merges(tiny, (1.0, 1.5), quorum=1)[0] == (7.5, 2, 0.0, 2.0)


def test_one_is_enough_for_a_quorum_of_one(tiny):
    found = merges(tiny, quorum=1, grace=0.0)
    assert found[:3] == [(at, 1, 0.0, 0.0) for at in (7.0, 8.0, 11.0)]


@pytest.mark.parametrize("quorum", [3, 9])
def test_a_quorum_of_more_than_there_are_is_all(tiny, quorum):
    assert merges(tiny, quorum=quorum)[:2] == [(11.0, 3, 4.0, 0.0), (19.0, 3, 4.0, 0.0)]


def test_what_is_still_on_its_way_is_not_sent_again(tiny):
    # Slots of 4 s: what the third sent at 2 is heard at 7, so it sends nothing at 6; then at 10.
    found = merges(tiny, inner_steps=4, quorum=3)
    assert [time for time, *_ in found][:3] == [7.0, 15.0, 23.0]


def test_a_learner_that_leaves_is_not_waited_for(tiny):
    found = merges(tiny, quorum=3, away={3: (8.5, math.inf)})
    assert found[:2] == [(8.5, 2, 1.5, 0.5), (16.0, 2, 1.0, 0.0)]


def test_a_learner_that_comes_back_is_heard_again(tiny):
    found = merges(tiny, quorum=3, away={3: (4.5, 20.0)}, seconds=60.0)
    assert {2, 3} == {learners for _, learners, *_ in found}
    assert found[-1][1] == 3


def test_learners_go_on_while_the_syncer_is_away(tiny):
    run = tiny(
        DecoupledDiLoCo(4, 1),
        n=3,
        topology=star(0.1, 0.2),
        away={0: (10.0, 30.0)},
        budget=Budget(seconds=60),
        coordinator=Elastic(),
    )
    merged = run.run()["merge"]["time"]
    assert run.sim.completed[1:].min() >= 58
    assert ((merged < 10) | (merged > 30)).all()
    assert (merged < 10).any()
    assert (merged > 30).any()


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_a_small_fleet_learns(n):
    uneven = Device(speed="100kFLOPS", mfu=1, spread=0.5, jitter=0.1)
    parts = {"local": SGD(0.1), "device": uneven, "budget": Budget(steps=48)}
    run = Experiment(Regression.drawn(n), complete(n), DecoupledDiLoCo(4, quorum=2), **parts)
    loss = run.run()["metric"]["loss"]
    assert loss.iloc[-1] < 0.4 * loss.iloc[0]


def test_a_fragment_is_charged_with_its_header_each_way(tiny):
    sent = tiny(DecoupledDiLoCo(4, 2, overlap=0), n=3, budget=Budget(seconds=60)).run()["transfer"]
    up, down = sent[sent["dst"] == 0], sent[sent["src"] == 0]
    assert set(up["nbytes"]) == {4 * 5 + 24, 4 * 3 + 24}
    assert set(down["nbytes"]) == {4 * 5 + 24, 4 * 3 + 24}


def test_the_clock_charges_the_fragments_of_the_workload():
    strategy, workload = DecoupledDiLoCo(4, 2, overlap=1), one_billion()
    parts = {"workload": workload, "budget": Budget(steps=24)}
    run = Experiment(Regression.drawn(2), complete(2, "100Gbps"), strategy, **parts)
    run.run()
    sizes = {2 * part.charged.numel + 24 for part in strategy.split(run.sim)}
    assert set(run.sim.trace["transfer"]["nbytes"]) == sizes
    assert sum(sizes) == 2 * workload.layout.numel + 48
