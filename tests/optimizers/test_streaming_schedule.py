"""Streaming DiLoCo's two schedules, and what becomes of a fragment that nobody got."""

import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import SGD, DiLoCo, StreamingDiLoCo
from sim.budget import Budget
from sim.compute.device import Device
from sim.group import Group
from sim.payload import Dense
from sim.workload import uniform_layers
from topologies import complete

EXACT = Dense("native")


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


def _losing(monkeypatch, number):
    """Of all averages the one with this number has no result; returns the groups of all."""
    average, groups = Group.average, []

    def lossy(group, *args, **options):
        groups.append(group)
        lost, arrived = len(groups) == number + 1, average(group, *args, **options)

        def result():
            mean = yield arrived
            return None if lost else mean

        return group.sim.process(result())

    monkeypatch.setattr(Group, "average", lossy)
    return groups


@pytest.mark.parametrize("tau", [0, 1])
def test_a_fragment_that_nobody_got_goes_back_and_has_the_next_turn(monkeypatch, tau):
    """The second of two fragments is lost once: its columns are then those of the start."""
    groups, halves = _losing(monkeypatch, 1), [["W1", "b1"], ["W2", "b2"]]
    strategy = StreamingDiLoCo(4, halves, overlap=tau, mixing=0.5, compressor=EXACT)
    rounds, task = RecordedRounds(rows_of), Regression.drawn(3)
    parts = {"local": SGD(0.1), "coordinator": rounds, "budget": Budget(steps=6)}
    Experiment(task, complete(3), strategy, **parts).run()
    start, _, after_loss, _ = rounds.notes
    first, second = halves
    assert [group.fragment.names for group in groups] == [tuple(x) for x in (first, second, second)]
    at = task.layout.slices["W2"].start
    torch.testing.assert_close(after_loss[:, at:], start[:, at:], rtol=0, atol=0)
    assert not torch.equal(after_loss[:, :at], start[:, :at])


def test_after_a_round_without_a_result_streaming_goes_on_as_diloco(monkeypatch):
    """One fragment and no overlap: of the round nothing remains, though mixing keeps a share."""
    streaming = {"fragments": 1, "overlap": 0, "mixing": 0.3}
    found = []
    for strategy in (
        StreamingDiLoCo(2, **streaming, outer=SGD(1.0), compressor=EXACT),
        DiLoCo(2, SGD(1.0), EXACT),
    ):
        with monkeypatch.context() as patch:
            _losing(patch, 0)
            parts = {"local": SGD(0.1), "budget": Budget(steps=4)}
            run = Experiment(Regression.drawn(3), complete(3), strategy, **parts)
            run.run()
        found.append(strategy.consensus(run.sim))
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)


def test_the_outer_step_is_the_papers():
    assert StreamingDiLoCo().outer == SGD(lr=0.4, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("names", [[["layer.0"]], [["layer.0"], ["layer.0", "layer.1"]]])
def test_every_tensor_is_in_one_fragment(tiny, names):
    with pytest.raises(ValueError, match=r"each of the tensors layer\.0, layer\.1 once"):
        tiny(StreamingDiLoCo(4, names)).run()


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
