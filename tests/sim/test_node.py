"""Nodes: messages that arrive or are lost, processes that end with their node."""

from dataclasses import dataclass

import pytest
import torch

from optimizers.compression import ErrorFeedback, TopK
from optimizers.strategy import NodeStrategy
from sim.compute.device import Device
from sim.compute.layout import Fragment

EVER = float("inf")
HOP = 0.1 + 32 / 32
"""Seconds of a message of 8 float32 to the next node: latency, then bytes / bandwidth."""


def test_a_message_takes_latency_plus_bytes_over_bandwidth(idle):
    sim = idle()
    vector = torch.arange(8.0)
    received = sim.node(1).recv("weights")
    delivered = sim.node(0).send(1, vector, "weights")
    message = sim.run(until=received)
    assert sim.now == pytest.approx(HOP)
    assert (message.src, message.tag, message.sent_at) == (0, "weights", 0.0)
    assert torch.equal(message.value, vector)
    assert sim.run(until=delivered) is True


def test_a_message_is_encoded_before_and_decoded_after_its_way(idle):
    sim = idle(device=Device(speed=48, mfu=1, jitter=0, memory_bandwidth=320))
    assert sim.run(until=sim.node(0).send(1, torch.ones(8))) is True
    assert sim.now == pytest.approx(0.2 + HOP + 0.2)


def test_what_is_sent_is_fixed_at_once(idle):
    sim = idle()
    vector = torch.arange(8.0)
    sim.node(0).send(1, vector)
    vector.zero_()
    message = sim.run(until=sim.node(1).recv())
    assert torch.equal(message.value, torch.arange(8.0))


def test_a_payload_is_charged_its_own_bytes(idle):
    sim, codec = idle(), TopK(2)
    payload = sim.node(0).encode(codec, torch.arange(8.0)[None])
    sim.node(0).send(1, payload)
    message = sim.run(until=sim.node(1).recv())
    assert message.value.tolist() == [0.0] * 6 + [6.0, 7.0]
    nbytes = codec.nbytes(sim.fleet.layout)
    assert sim.trace["transfer"]["nbytes"].tolist() == [nbytes]
    assert sim.now == pytest.approx(0.1 + nbytes / 32)


def test_messages_wait_in_the_inbox_in_order_of_arrival_by_tag(idle):
    sim = idle()
    for i, tag in enumerate("aba"):
        sim.run(until=sim.node(0).send(1, torch.full((8,), float(i)), tag))
    got = [sim.run(until=sim.node(1).recv(tag)).value[0].item() for tag in "aab"]
    assert got == [0.0, 2.0, 1.0]


def test_a_receiver_gives_up_after_its_timeout(idle):
    sim = idle()
    assert sim.run(until=sim.node(1).recv("late", timeout=0.5)) is None
    assert sim.now == 0.5
    sim.run(until=sim.node(0).send(1, torch.ones(8), "late"))
    assert sim.run(until=sim.node(1).recv("late", timeout=1)).src == 0


def test_a_timeout_after_the_message_came_changes_nothing(idle):
    sim = idle()
    event = sim.node(1).recv(timeout=5)
    sim.node(0).send(1, torch.ones(8))
    sim.run(until=10)
    assert event.value.src == 0


def test_waiting_receivers_are_served_in_order(idle):
    sim = idle()
    first, second = sim.node(1).recv(), sim.node(1).recv()
    sim.run(until=sim.node(0).send(1, torch.zeros(8)))
    assert first.triggered
    assert not second.triggered


def test_a_fragment_is_charged_its_columns(idle):
    sim = idle()
    fragment = Fragment(sim.fleet.layout, ("layer.1",))
    columns = sim.group([0]).part(fragment)
    payload = columns.encode(sim.dense, columns["params"])
    sim.node(0).send(1, payload, fragment=fragment)
    message = sim.run(until=sim.node(1).recv())
    assert torch.equal(message.value, sim.initial_params()[5:])
    assert sim.trace["transfer"]["nbytes"].tolist() == [3 * 4]
    assert sim.now == pytest.approx(0.1 + 3 * 4 / 32)


def test_a_node_encodes_a_fragment_as_a_group_of_it_does(idle):
    sim, codec = idle(), ErrorFeedback(TopK(1))
    fragment = Fragment(sim.fleet.layout, ("layer.1",))
    for step in range(3):
        found = []
        for rows in (sim.node(0), sim.group([1])):
            rows["params"] = torch.arange(8.0)[None] * (step + 1)
            columns = rows.part(fragment)
            payload = columns.encode(codec, columns.rows(torch.neg, columns["params"]))
            found.append(payload.decode())
        assert torch.equal(*found)
    assert payload.nbytes == codec.nbytes(fragment.layout)


LOST = {
    "the receiver is away": {1: (0.0, EVER)},
    "the receiver leaves on the way": {1: (0.5, EVER)},
    "the receiver returns on the way": {1: (0.5, 0.6)},
    "the sender leaves on the way": {0: (0.5, EVER)},
    "the sender returns while it encodes": {0: (0.1, 0.15)},
    "the receiver returns while the sender encodes": {1: (0.1, 0.15)},
    "the receiver returns while it decodes": {1: (1.4, 1.45)},
}


@pytest.mark.parametrize("why", LOST)
def test_a_lost_message_is_false_and_never_arrives(idle, why):
    device = Device(speed=48, mfu=1, jitter=0, memory_bandwidth=320)  # 0.2 s to encode or decode
    sim = idle(away=LOST[why], device=device)
    delivered = sim.node(0).send(1, torch.ones(8))
    assert sim.run(until=delivered) is False
    assert sim.run(until=sim.node(1).recv(timeout=5)) is None


@dataclass(frozen=True)
class Ticking(NodeStrategy):
    """Notes every second (time, node, messages of the inbox so far)."""

    log: list
    passes = 0.0

    def node(self, node):
        node.process(self.listen(node))
        while True:
            yield node.sim.timeout(1)
            self.log.append((node.sim.now, node.id))

    def listen(self, node):
        while True:
            message = yield node.recv()
            self.log.append((node.sim.now, node.id, message.src))


def test_processes_end_when_their_node_leaves_and_begin_again_at_its_return(idle):
    log = []
    sim = idle(strategy=Ticking(log), n=2, away={1: (2.5, 4.2)})
    sim.run(until=7)
    assert [time for time, node in log if node == 0] == [1, 2, 3, 4, 5, 6]
    assert [time for time, node in log if node == 1] == pytest.approx([1, 2, 5.2, 6.2])


def test_a_listener_ends_with_its_node_and_listens_again_at_its_return(idle):
    log = []
    sim = idle(strategy=Ticking(log), n=2, away={1: (2.5, 4.2)})

    def talk():
        for send_at in (0, 3, 5):  # node 1 is away at 3
            yield sim.timeout(send_at - sim.now)
            sim.node(0).send(1, torch.zeros(8))

    sim.process(talk())
    sim.run(until=9)
    heard = [entry[0] for entry in log if len(entry) == 3]
    assert heard == pytest.approx([HOP, 5 + HOP])


def test_an_inbox_is_emptied_when_its_node_leaves(idle):
    sim = idle(away={1: (2.0, 3.0)})
    sim.run(until=sim.node(0).send(1, torch.ones(8)))
    sim.run(until=4)
    assert sim.run(until=sim.node(1).recv(timeout=1)) is None


def test_a_bug_in_a_node_program_is_not_swallowed(idle):
    sim = idle()

    def broken():
        yield sim.timeout(1)
        raise ZeroDivisionError("a bug")

    sim.node(0).process(broken())
    with pytest.raises(ZeroDivisionError, match="a bug"):
        sim.run(until=2)


def test_neighbors_are_those_online_next_to_it(idle):
    sim = idle(away={1: (1.0, EVER)})
    assert sim.node(0).neighbors == [1, 3]
    sim.run(until=2)
    assert sim.node(0).neighbors == [3]


def test_a_gradient_of_a_node_is_a_vector_and_parameters_can_be_stepped(idle):
    sim = idle()
    node, start = sim.node(2), sim.initial_params()
    grad = sim.run(until=node.grad())
    assert grad.shape == (8,)
    node.params -= 0.5 * grad
    torch.testing.assert_close(node.params, start - 0.5 * grad)
    assert torch.equal(sim.node(1).params, start)


def test_parameters_that_were_read_are_a_copy(idle):
    node = idle().node(0)
    node.params.zero_()
    assert node.params.abs().sum() > 0


def test_training_needs_whole_steps_and_one_at_least(idle):
    for steps in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"steps={steps}: must be an integer >= 1"):
            idle().node(0).train(steps)
