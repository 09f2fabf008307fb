"""A device computes one thing at a time; nodes that left compute nothing; late work is lost."""

import gc

import pytest
import torch

from optimizers import SGD, AllReduce, DeMo
from optimizers.compression import ErrorFeedback, PerTensor, TopK
from optimizers.strategy import NodeStrategy
from sim.budget import Budget
from sim.compute.device import Device
from sim.coordinators import Psyche
from sim.delivery import Message

EVER = float("inf")
SPREAD = Device(speed=48, mfu=1, jitter=0, spread=1.0)
"""Nodes of very different speeds: rounds end long before the slowest is done."""


def short_rounds():
    return Psyche(
        max_round_train_time="0.5s", round_witness_time=0, warmup_time="1s", cooldown_time=0
    )


def test_no_device_is_busy_for_longer_than_it_is_online(tiny):
    run = tiny(AllReduce(SGD(lr=0.1)), device=SPREAD, coordinator=short_rounds())
    run.run()
    assert (run.sim.busy <= run.sim.online_seconds() + 1e-9).all()


def test_rounds_that_are_too_short_for_a_ring_are_counted(tiny):
    trace = tiny(AllReduce(SGD(lr=0.1)), coordinator=short_rounds()).run()
    last = trace["metric"].iloc[-1]
    assert last["empty_exchanges"] == (trace["collective"]["contributors"] == 0).sum() > 50
    assert last["loss"] == trace["metric"]["loss"].iloc[0]


def test_a_gradient_that_was_not_finished_is_not_in_the_momentum(tiny):
    codec = PerTensor(TopK(k=1))
    run = tiny(DeMo(compressor=codec), device=SPREAD, coordinator=short_rounds())
    run.run()
    never = run.sim.completed == 0
    assert never.any()
    momentum = run.sim.fleet.get("momentum", never.nonzero()[0])
    assert not momentum.any()


def test_a_new_gradient_ends_the_one_before(idle):
    sim = idle()
    first = sim.group([0, 1]).grad()
    sim.run(until=0.5)
    second = sim.group([1]).grad()
    sim.run(until=second)
    assert sim.now == pytest.approx(1.5)
    assert first.members == [0]
    assert sim.completed.tolist() == [1, 1, 0, 0]


def test_members_that_left_do_not_compute(idle):
    sim = idle(away={2: (0.5, EVER)})
    group = sim.group()
    sim.run(until=group.train(1))
    sim.run(until=group.train(1))
    assert sim.completed.tolist() == [2, 2, 0, 2]


class Trains(NodeStrategy):
    """Local steps for ever, each node at its own pace."""

    passes = 0.0

    def node(self, node):
        while True:
            yield node.train(3)


def test_nodes_that_train_at_their_own_pace_can_be_evaluated(tiny):
    trace = tiny(Trains(), device=SPREAD, budget=Budget(steps=30)).run()
    losses = trace["metric"]["loss"]
    assert losses.iloc[-1] < losses.iloc[0]


def test_what_a_training_node_shows_is_what_it_had_before(idle):
    sim = idle()
    work = sim.node(0).train(2)
    sim.run(until=sim.node(1).grad())  # runs the whole queue
    assert torch.equal(sim.fleet.committed(work_ids := sim.node(0).index)[0], sim.fleet.initial)
    sim.run(until=work)
    assert not torch.equal(sim.fleet.committed(work_ids)[0], sim.fleet.initial)


def test_messages_that_were_read_are_not_kept_until_the_patience_ends(idle):
    sim = idle()

    def messages():
        gc.collect()
        return {id(x) for x in gc.get_objects() if type(x) is Message}

    before = messages()

    def read():
        for _ in range(5):
            sim.node(0).send(1, torch.ones(8))
            yield sim.node(1).recv(timeout=1e6)

    sim.run(until=sim.process(read()))
    assert len(messages() - before) <= 1  # the last one read


def test_a_codec_written_in_line_keeps_its_state(idle):
    """Sent and kept add up to the inputs: of two vectors of ones, two of eight values come."""
    sim = idle()
    sent = torch.zeros(8)
    for _ in range(8):
        codec = ErrorFeedback(TopK(k=1))
        sent += sim.run(until=sim.group([0]).average(torch.ones(1, 8), codec))
    assert sent.min() > 0
