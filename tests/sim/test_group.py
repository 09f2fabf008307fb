"""Groups: the values of collectives, with members lost at any time, and what they are charged."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch

from optimizers.compression import ErrorFeedback, TopK
from sim.compute.device import Device
from sim.compute.layout import Fragment
from sim.mixing import mix
from sim.payload import Dense, Payload
from sim.workload import Workload
from topologies.weights import metropolis_weights, restrict

EVER = math.inf


@pytest.fixture
def run(idle):
    """`run(collective, away=...)`: the value of `collective(group, rows)`, started at t = 0.2 s.

    The group is all four nodes; `rows` [4, 8] are random. Returns rows, value and simulation.
    """

    def go(collective, **options):
        sim = idle(**options)
        rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
        group = sim.group(range(4))
        sim.run(until=0.2)
        return rows, sim.run(until=collective(group, rows)), sim

    return go


def test_all_reduce_is_the_mean_of_the_members(run):
    rows, mean, _ = run(lambda group, x: group.all_reduce(x))
    torch.testing.assert_close(mean, rows.mean(0))


def test_weights_weigh_the_members(run):
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    rows, mean, _ = run(lambda group, x: group.all_reduce(x, weights=weights))
    torch.testing.assert_close(mean, weights @ rows / 8)


def test_weights_of_lost_members_do_not_count(run):
    weights = torch.tensor([1.0, 3.0, 2.0, 5.0])
    rows, mean, _ = run(
        lambda group, x: group.all_reduce(x, weights=weights), away={1: (0.5, EVER)}
    )
    wanted = (rows[0] + 2 * rows[2] + 5 * rows[3]) / 8
    torch.testing.assert_close(mean, wanted)


LOSSES = {
    "before": (0.1, [0, 1, 3]),
    "in the first half": (0.9, [0, 1, 3]),
    "in the second half": (1.9, [0, 1, 2, 3]),  # its share is in everybody's sums
    "after": (2.6, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("when", LOSSES)
@pytest.mark.parametrize("collectives", ["coupled", "flows"])
def test_all_reduce_is_the_mean_of_those_whose_share_arrived(run, when, collectives):
    """A ring of four takes 6 (8 / 32 + 0.1) = 2.1 s, from 0.2 s on."""
    lost, inside = LOSSES[when]
    rows, mean, sim = run(
        lambda group, x: group.all_reduce(x), away={2: (lost, EVER)}, collectives=collectives
    )
    torch.testing.assert_close(mean, rows[inside].mean(0))
    assert sim.trace["collective"]["contributors"].tolist() == [len(inside)]


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 2.0, 5.0])])
@pytest.mark.parametrize("lasts", [False, True])
@pytest.mark.parametrize("when", LOSSES)
def test_rows_that_last_have_the_same_mean_whoever_is_lost(run, when, lasts, weights):
    """Also a member that has left, and lost its rows, if its share had arrived."""
    lost, inside = LOSSES[when]

    def collective(group, x):
        group.params = x
        twice = group.rows(lambda params: 2 * params, "params")
        twice = twice.lasting() if lasts else twice
        return group.all_reduce(twice, Dense("bfloat16"), weights)

    rows, mean, _ = run(collective, away={2: (lost, EVER)})
    share = torch.ones(len(inside)) if weights is None else weights[inside]
    arrived = (2 * rows[inside]).bfloat16().float()
    torch.testing.assert_close(mean, share @ arrived / share.sum())


def test_rows_that_should_last_must_not_be_written_while_they_are_sent(idle):
    sim = idle()
    group = sim.group()
    mean = group.all_reduce(group.params.lasting())
    sim.node(1).params = torch.ones(8)
    with pytest.raises(RuntimeError, match=r"'params' of nodes \[1\] were written"):
        sim.run(until=mean)


def test_of_rows_that_last_nothing_stays_when_nobodys_share_arrived(idle):
    sim = idle()
    group = sim.open_round(range(4))
    sim.timeout(0.1).callbacks.append(lambda _: group.round.over.succeed())
    assert sim.run(until=group.all_reduce(group.params.lasting())) is None
    assert not sim._watchers


@pytest.mark.parametrize("collectives", ["coupled", "flows"])
@pytest.mark.parametrize("operation", ["all_reduce", "all_gather"])
def test_with_nobody_left_there_is_no_value(run, operation, collectives):
    away = {node: (0.5 + node / 10, EVER) for node in range(4)}  # while all of them compute
    _, value, sim = run(
        lambda group, x: getattr(group, operation)(group.grad(), Dense()),
        away=away,
        collectives=collectives,
    )
    assert value is None
    assert sim.now == pytest.approx(0.8)


@pytest.mark.parametrize("collectives", ["coupled", "flows"])
def test_the_last_one_there_has_its_own_share_at_once(run, collectives):
    away = {node: (0.5 + node / 10, EVER) for node in range(3)}
    rows, mean, sim = run(lambda group, x: group.all_reduce(x), away=away, collectives=collectives)
    torch.testing.assert_close(mean, rows[3])
    assert sim.now == pytest.approx(0.7)


def test_a_member_that_left_and_came_back_has_lost_its_rows_and_is_not_counted(idle):
    sim = idle(away={2: (0.05, 0.1)})
    group, rows = sim.group(range(4)), torch.randn(4, 8)
    sim.run(until=0.2)
    assert sim.online == {0, 1, 2, 3}
    assert group.online.ids == [0, 1, 3]
    mean = sim.run(until=group.all_reduce(rows))
    torch.testing.assert_close(mean, rows[[0, 1, 3]].mean(0))
    assert sim.group(range(4)).online.ids == [0, 1, 2, 3]


def test_a_collective_of_nobody_has_no_value(idle):
    sim = idle()
    nobody, codec = sim.group([]), TopK(2)
    for event in (
        nobody.all_reduce(nobody.params),
        nobody.all_gather(nobody.params),
        nobody.average(nobody.params, codec),
        nobody.average(nobody.grad(), codec),
    ):
        assert sim.run(until=event) is None
    assert sim.run(until=nobody.grad()) is None


def test_all_gather_has_a_row_per_contributor_in_order(run):
    rows, payload, _ = run(lambda group, x: group.all_gather(x), away={1: (0.3, EVER)})
    assert isinstance(payload, Payload)
    torch.testing.assert_close(payload.decode(), rows[[0, 2, 3]])
    assert payload.nodes == (0, 2, 3)


def test_a_gather_of_gradients_holds_what_each_member_computed(run, quadratic):
    _, payload, sim = run(lambda group, x: group.all_gather(group.grad(), Dense()))
    params = sim.initial_params()
    wanted = [
        torch.func.grad(quadratic.loss)(params, tuple(p[0] for p in quadratic.batch([i], [0])))
        for i in range(4)
    ]
    torch.testing.assert_close(payload.decode(), torch.stack(wanted))


def test_a_member_that_leaves_while_it_computes_is_absent(run):
    def gather(group, _):
        return group.all_gather(group.grad(), Dense())

    everybody = run(gather)[1].decode()
    rest = run(gather, away={1: (0.9, EVER)})[1].decode()
    torch.testing.assert_close(rest, everybody[[0, 2, 3]])


def test_broadcast_reaches_those_online(run):
    _, heard, _ = run(lambda group, x: group.broadcast(1, x[1]), away={3: (0.1, EVER)})
    assert heard == [0, 1, 2]


def test_rows_are_sent_as_they_are_when_the_collective_is_called(idle):
    sim = idle()
    group, rows = sim.group(), torch.randn(4, 8)
    group.params = rows
    event = group.all_reduce(group.params)
    group.params = torch.zeros(8)
    torch.testing.assert_close(sim.run(until=event), rows.mean(0))


def test_a_codec_that_cannot_be_summed_in_flight_is_refused_with_the_alternatives(idle):
    group = idle().group()
    with pytest.raises(ValueError, match=r"TopK.*not summable; use all_gather, or average"):
        group.all_reduce(group.params, TopK(2))


def test_average_gathers_what_cannot_be_summed(run):
    rows, mean, sim = run(lambda group, x: group.average(x, TopK(2)))
    kept = torch.zeros_like(rows)
    for row, out in zip(rows, kept):
        largest = row.abs().topk(2).indices
        out[largest] = row[largest]
    torch.testing.assert_close(mean, kept.mean(0))
    assert sim.trace["collective"]["op"].tolist() == ["all_gather"]


def test_average_sums_in_flight_what_can_be(run):
    rows, mean, sim = run(lambda group, x: group.average(x, Dense()))
    torch.testing.assert_close(mean, rows.mean(0))
    assert sim.trace["collective"]["op"].tolist() == ["all_reduce"]


def test_codec_state_stays_with_the_members_across_collectives(idle):
    sim, codec = idle(), ErrorFeedback(TopK(2))
    group, rows = sim.group(), torch.randn(4, 8)
    sent = sum(sim.run(until=group.average(rows, codec)) for _ in range(200)) / 200
    torch.testing.assert_close(sent, rows.mean(0), rtol=0, atol=0.1)


def _gossip(rows, weights, lost=()):
    """`weights @ rows`, in which what node i did not get from j counts for i itself."""
    mixed = rows.clone()
    for i, j in zip(*weights.nonzero()):
        if i != j and (j, i) not in lost:
            mixed[i] += weights[i, j] * (rows[j] - rows[i])
    return mixed


def _mixed(sim, group, rows, weights, missing="self"):
    """Members with these rows [n, 8] after a round of gossip: those still here, and their rows."""
    group["x"] = rows
    links = weights[group.index][:, group.index]
    heard = sim.run(until=group.neighbor_rows("x", links, lasting=True))
    here = group.online
    mix(here, "x", *heard.weights(here, links, missing), heard.columns())
    return here.ids, here["x"].tensor()


def test_mixed_rows_are_the_mixing_matrix_times_the_rows(idle):
    sim = idle()
    weights, rows = metropolis_weights(sim.overlay), torch.randn(4, 8)
    _, mixed = _mixed(sim, sim.group(), rows, weights)
    torch.testing.assert_close(mixed, torch.from_numpy(weights.toarray()).float() @ rows)


def test_mixing_is_restricted_to_the_group(idle):
    sim = idle()
    weights, rows = metropolis_weights(sim.overlay), torch.randn(3, 8)
    _, mixed = _mixed(sim, sim.group([0, 1, 3]), rows, weights)
    wanted = torch.from_numpy(restrict(weights, [0, 1, 3]).toarray()).float() @ rows
    torch.testing.assert_close(mixed, wanted)


def test_the_weight_of_a_lost_message_returns_to_the_diagonal(idle):
    sim = idle(away={2: (0.5, EVER)})
    weights, rows = metropolis_weights(sim.overlay), torch.randn(4, 8)
    here, mixed = _mixed(sim, sim.group(), rows, weights)
    assert here == [0, 1, 3]
    lost = {(2, 1), (2, 3), (1, 2), (3, 2)}
    torch.testing.assert_close(mixed, _gossip(rows, weights, lost)[here])


@pytest.mark.parametrize("lasting", [True, False])
def test_what_arrived_of_a_member_that_left_counts(idle, lasting):
    """Node 2 leaves when its messages are there, before they are mixed: its row is gone."""
    sim = idle(away={2: (5.0, EVER)})
    weights, rows, group = metropolis_weights(sim.overlay), torch.randn(4, 8), sim.group()
    group["x"] = rows
    heard = sim.run(until=group.neighbor_rows("x", weights, lasting=lasting))
    sim.run(until=6.0)
    here = group.online
    mix(here, "x", *heard.weights(here, weights), heard.columns())
    wanted = (torch.from_numpy(weights.toarray()).float() @ rows)[[0, 1, 3]]
    torch.testing.assert_close(here["x"].tensor(), wanted)


def test_rows_that_are_written_while_they_should_last_are_an_error(idle):
    sim = idle()
    weights, group = metropolis_weights(sim.overlay), sim.group()
    group["x"] = torch.randn(4, 8)
    event = group.neighbor_rows("x", weights, lasting=True)
    sim.run(until=0.1)
    group["x"] = torch.randn(4, 8)
    with pytest.raises(RuntimeError, match="written while they were sent"):
        sim.run(until=event).columns()


def test_rows_that_need_not_last_are_mixed_as_they_were_sent(idle):
    sim = idle()
    weights, rows, group = metropolis_weights(sim.overlay), torch.randn(4, 8), sim.group()
    group["x"] = rows
    event = group.neighbor_rows("x", weights)
    group["x"] = torch.zeros(8)
    heard = sim.run(until=event)
    mix(group, "x", *heard.weights(group, weights), heard.columns())
    off = weights.toarray() - np.diag(weights.diagonal())
    torch.testing.assert_close(group["x"].tensor(), torch.from_numpy(off).float() @ rows)


def test_gossip_rounds_what_is_sent_to_the_width_of_the_workload(idle, quadratic):
    half = Workload("half", quadratic.layout, 1.0, 1, bytes_per_value=2)
    sim = idle(workload=half)
    weights, rows = metropolis_weights(sim.overlay), torch.randn(4, 8)
    _, mixed = _mixed(sim, sim.group(), rows, weights)
    own, dense = torch.from_numpy(weights.diagonal()).float(), weights.toarray()
    others = torch.from_numpy(dense - np.diag(np.diag(dense))).float()
    torch.testing.assert_close(mixed, own[:, None] * rows + others @ rows.bfloat16().float())


def test_a_group_without_edges_keeps_its_rows(idle):
    sim = idle()
    weights, rows = metropolis_weights(sim.overlay), torch.randn(2, 8)
    assert torch.equal(_mixed(sim, sim.group([0, 2]), rows, weights)[1], rows)


def test_with_rescaled_weights_what_is_missing_counts_for_all_that_is_there(idle):
    sim, rows = idle(), torch.randn(3, 8)
    weights = metropolis_weights(sim.overlay)
    _, mixed = _mixed(sim, sim.group([0, 1, 3]), rows, weights, "rescale")
    block = torch.from_numpy(weights.toarray()[np.ix_([0, 1, 3], [0, 1, 3])]).float()
    torch.testing.assert_close(mixed, block @ rows / block.sum(1, keepdim=True))
    with pytest.raises(ValueError, match="missing='drop'"):
        _mixed(sim, sim.group(), torch.randn(4, 8), weights, "drop")


LISTENING = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])  # i hears from j


def test_neighbors_get_what_others_send_in_one_direction(idle):
    sim, rows = idle(), torch.randn(4, 8)
    links = scipy.sparse.csr_array(LISTENING)
    heard = sim.run(until=sim.group().neighbor_gather(rows, links, TopK(2), extra=3))
    assert (heard.arrived.toarray() == (LISTENING == 1)).all()
    assert torch.equal(heard.payload.decode(), sim.group().encode(TopK(2), rows).decode())
    assert sim.network.totals().sent.tolist() == [13, 2 * 13, 0, 13]
    assert heard.missing(links).nnz == 0


def test_what_was_lost_on_the_way_to_those_who_are_still_here_is_missing(idle):
    sim, links = idle(away={3: (0.5, EVER)}), scipy.sparse.csr_array(LISTENING)
    heard = sim.run(until=sim.group().neighbor_gather(torch.randn(4, 8), links))
    assert sorted(zip(*heard.arrived.nonzero())) == [(0, 1), (2, 1)]
    assert heard.missing(links).nnz == 0  # both ends of what was lost would have to be here


def test_what_a_round_cut_is_missing(idle):
    sim, links = idle(), scipy.sparse.csr_array(LISTENING)
    group = sim.run(until=sim.coordinator.round())
    event = group.neighbor_gather(torch.randn(4, 8), links)
    group.round.over.succeed()
    heard = sim.run(until=event)
    assert heard.arrived.nnz == 0
    assert (heard.missing(links).toarray() == LISTENING).all()


def test_some_members_are_in_the_same_round_and_know_who_has_left(idle):
    sim = idle(away={1: (0.5, 0.6)})
    group = sim.run(until=sim.coordinator.round())
    sim.run(until=1.0)
    some = group.among([1, 3])
    assert some.round is group.round
    assert some.ids == [1, 3]
    assert some.online.ids == [3]  # node 1 came back without its rows


@pytest.fixture
def fragment(quadratic):
    return Fragment(quadratic.layout, ("layer.1",))


def test_a_part_reads_and_writes_its_columns_only(idle, fragment):
    sim = idle()
    group, rows = sim.group([1, 3]), torch.randn(2, 8)
    group.params = rows
    part = group.part(fragment)
    assert torch.equal(part.params.tensor(), rows[:, 5:])
    part.update(lambda x: -x, "params")
    wanted = torch.cat([rows[:, :5], -rows[:, 5:]], dim=1)
    assert torch.equal(group.params.tensor(), wanted)


def test_a_part_sends_and_is_charged_its_columns_only(idle, fragment):
    sim = idle()
    group, rows = sim.group(), torch.randn(4, 8)
    group.params = rows
    part = group.part(fragment).online
    mean = sim.run(until=part.all_reduce(part.params))
    torch.testing.assert_close(mean, rows[:, 5:].mean(0))
    assert sim.trace["collective"]["nbytes"].tolist() == [3 * 4]


def test_reduce_adds_up_the_rows(idle):
    sim = idle()
    group, rows = sim.group([0, 2, 3]), torch.randn(3, 8)
    group.params = rows
    total = group.reduce(lambda x, y: x * y, "params", 2 * rows)
    torch.testing.assert_close(total, (2 * rows * rows).sum(0))


def test_a_round_that_is_over_cuts_its_collectives(idle):
    """Each payload takes three hops of 1.1 s at most; at 1.5 s nobody's is through."""
    sim = idle()
    group = sim.open_round(range(4))
    sim.timeout(1.5).callbacks.append(lambda _: group.round.over.succeed())
    assert sim.run(until=group.all_gather(torch.randn(4, 8))) is None
    assert sim.now == 1.5
    assert sim.run(until=group.all_gather(torch.randn(4, 8))) is None
    assert sim.now == 1.5


@pytest.mark.parametrize("collectives", ["coupled", "flows"])
@pytest.mark.parametrize("codec", [Dense(), TopK(2)], ids=repr)
@pytest.mark.parametrize("members", [[0, 1, 2, 3], [2]])
def test_after_a_collective_everybody_has_heard_everybody(idle, collectives, codec, members):
    sim = idle(collectives=collectives)
    group = sim.open_round(members)
    assert not group.round.received.any()
    sim.run(until=group.average(torch.randn(len(members), 8), codec))
    assert group.round.received[members].tolist() == [len(members)] * len(members)


def test_each_member_sends_when_its_own_gradient_is_ready(idle):
    """Steps of 1 s, messages of 1.1 s; node 1 has 2 s of memory traffic to do before."""
    sim = idle()
    sim.coordinator.listens = True
    group = sim.open_round([0, 1])
    sim._debt[1] = 2.0
    gathered, times = group.all_gather(group.grad(), Dense()), []

    def listen():
        while True:
            yield group.round.heard
            times.append(sim.now)

    sim.process(listen())
    sim.run(until=gathered)
    assert times == pytest.approx([1.0, 2.1, 3.0, 4.1])


def test_positions_are_indices_into_the_rows_of_a_group(idle):
    group = idle().group([1, 2, 3])
    assert group.positions([3, 1]).tolist() == [2, 0]
    assert np.array_equal(group.index, [1, 2, 3])


def test_writing_a_fragment_costs_its_share_of_the_memory_traffic(tiny):
    sim = tiny(device=Device(speed=48, mfu=1, jitter=0, memory_bandwidth=320)).build()
    name, shape = next(iter(sim.fleet.layout.shapes.items()))
    fragment = Fragment(sim.fleet.layout, (name,))
    sim.group([0]).part(fragment).update(lambda params: params, "params")
    passes, nbytes = sim.strategy.passes, 4 * math.prod(shape)
    assert sim.pay(0) == pytest.approx(passes * nbytes / 320)
    assert sim.pay(0) == 0


def test_apply_reads_and_writes_several_rows_of_a_block(idle):
    sim = idle()
    group, start = sim.group([0, 2, 3]), sim.initial_params()

    def rotate(rows):
        rows["first"], rows["second"] = rows["params"] + 1, 2 * rows["second"] + rows["first"]

    for _ in range(2):
        group.apply(rotate)
    assert torch.equal(group["first"].tensor(), (start + 1).expand(3, -1))
    assert torch.equal(group["second"].tensor(), (start + 1).expand(3, -1))
    assert not sim.group([1])["first"].tensor().any()
