"""Streaming DiLoCo's two schedules: when fragments are sent and when they are applied."""

import pytest
import torch

from optimizers import SGD, StreamingDiLoCo
from sim.budget import Budget
from sim.compute.device import Device
from sim.workload import uniform_layers
from topologies import complete


def run(tiny, strategy, steps, seconds=1e-3):
    """A local step takes 1 s, a reduction of a row `seconds`."""
    experiment = tiny(
        strategy,
        device=Device(speed=48, mfu=1, jitter=0, memory_bandwidth=1e30),
        topology=complete(4, bandwidth=1.5 * 16 / seconds, latency=0.0),
        budget=Budget(steps=steps),
    )
    return experiment.run()["collective"], experiment.sim


@pytest.mark.parametrize("reductions", ["none", "layerwise"])
@pytest.mark.parametrize(("tau", "first"), [(0, 3), (1, 2), (2, 1), (3, 3), (4, 2)])
def test_torchft_sends_before_the_end_of_a_slot(tiny, tau, first, reductions):
    strategy = StreamingDiLoCo(6, 2, overlap=tau, reductions=reductions)
    collectives, _ = run(tiny, strategy, 9)
    assert collectives["start"].tolist() == pytest.approx([first, first + 3, first + 6], abs=0.5)


@pytest.mark.parametrize("reductions", ["none", "layerwise"])
@pytest.mark.parametrize("tau", [0, 1, 3])
def test_the_paper_sends_at_the_end_of_a_slot(tiny, tau, reductions):
    """H = 5 and two fragments of a layer: a slot of round(2.5) = 2 steps, in turn."""
    strategy = StreamingDiLoCo(5, overlap=tau, fragment_layers=1, reductions=reductions)
    collectives, sim = run(tiny, strategy, 8)
    assert collectives["start"].tolist() == pytest.approx([2, 4, 6, 8], abs=0.7)
    sizes = [4 * 5, 4 * 3]  # the layers of the small model, in float32
    assert collectives["nbytes"].tolist() == sizes * 2
    assert sim.completed.tolist() == [8] * 4


def test_what_is_under_way_at_the_end_is_awaited(tiny):
    strategy = StreamingDiLoCo(4, overlap=1, fragment_layers=1, reductions="layerwise")
    collectives, sim = run(tiny, strategy, 4, seconds=50.0)
    assert len(collectives) == 2
    assert sim.now == pytest.approx(collectives["end"].max())


def test_only_the_late_fragment_holds_up_training(tiny):
    """The second layer is late: the first layer's forward pass goes on, then waits."""
    times = {}
    for reductions in ("none", "layerwise"):
        strategy = StreamingDiLoCo(4, 2, overlap=0, reductions=reductions)
        _, sim = run(tiny, strategy, 8, seconds=0.2)
        times[reductions] = sim.now
    assert times["layerwise"] < times["none"]


def test_a_fragment_is_applied_after_its_overlap(tiny):
    """With plain averaging and no mixing, the outer parameters change tau steps after sending."""
    strategy = StreamingDiLoCo(6, 2, overlap=4, mixing=0.0, outer=SGD(lr=1.0))
    experiment = tiny(strategy, budget=Budget(steps=12))
    sim = experiment.build()
    changes = []
    with torch.no_grad():
        sim.start()
        before = sim.shared["theta"].clone()
        while not sim.done.processed:
            sim.step()
            if not torch.equal(before, sim.shared["theta"]):
                before = sim.shared["theta"].clone()
                changes.append(int(sim.completed.max()))
    assert changes[:2] == [6, 9]  # sent after steps 2 and 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inner_steps": 4, "overlap": 4}, "strategy.overlap=4: must be between 0 and 3"),
        ({"inner_steps": 5}, "multiple of the 2 fragments; the nearest is 4"),
        ({"fragment_layers": 0}, "strategy.fragment_layers=0"),
    ],
)
def test_impossible_schedules_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        StreamingDiLoCo(**options)


def test_an_overlap_of_a_whole_cycle_is_refused_when_the_layers_are_known(tiny):
    strategy = StreamingDiLoCo(5, overlap=4, fragment_layers=1)
    with pytest.raises(ValueError, match="between 0 and 3, less than a cycle of 2 fragments"):
        tiny(strategy).run()


def test_more_fragments_than_the_trained_model_has_layers_are_refused(tiny):
    strategy = StreamingDiLoCo(100, fragment_layers=3)
    workload = uniform_layers("24", 24, 2400)
    with pytest.raises(ValueError, match=r"8 fragments of the workload's 24 .* the nearest is 12"):
        tiny(strategy, workload=workload).run()
