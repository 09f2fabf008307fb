"""Layers of a model: where in a step they are, and how their gradients are cut into parts."""

import numpy as np
import pytest

from sim.compute.device import Device
from sim.compute.layers import Layer, Timeline, by_layer, layers_of
from sim.compute.layout import Layout
from sim.streams import Streams
from sim.workload import Workload, one_billion, transformer, uniform_layers


def walk(flops):
    """Begin of each layer's forward pass and release of its gradient, by walking through a step."""
    now, begins, released = 0.0, [], {}
    for cost in flops:
        begins.append(now)
        now += cost
    for layer in reversed(range(len(flops))):
        if layer:
            now += flops[layer]  # of activations: the layer below waits for it
        now += flops[layer]  # of parameters
        released[layer] = now
    return np.array(begins) / now, np.array([released[i] for i in range(len(flops))]) / now


@pytest.mark.parametrize("flops", [[1.0], [1, 1, 1, 1], [0.0, 3, 3, 0.5, 7], [2.0, 0.0, 1.0]])
def test_a_timeline_is_a_walk_through_the_step(flops):
    layers = tuple(Layer(str(i), (), cost) for i, cost in enumerate(flops))
    timeline = Timeline(layers)
    begins, released = walk(flops)
    assert timeline.begins == pytest.approx(begins, abs=1e-15)
    assert 1 - timeline.left == pytest.approx(released, abs=1e-15)
    assert timeline.left[0] == 0.0


def test_a_set_of_tensors_is_needed_at_its_first_layer_and_released_with_it():
    timeline = uniform_layers("three", 3, 30).timeline  # 8 pieces of work
    both = ["layers.2", "layers.1"]
    assert timeline.needed(both) == pytest.approx(1 / 8)
    assert timeline.remaining(both) == pytest.approx(1 / 8)
    assert timeline.remaining(["layers.2"]) == pytest.approx(3 / 8)


def test_one_part_per_layer_from_the_last_to_the_first():
    workload = one_billion()
    parts = workload.timeline.cut(workload.layout, None, 2)
    assert [part.numel for part in parts[:2]] == [32_000 * 2048, 2048]
    assert list(parts[-1].shapes) == ["embed"]
    assert len(parts) == 18 + 3
    assert sum(part.numel for part in parts) == workload.layout.numel


def test_a_bucket_is_closed_once_it_is_full():
    layout = Layout(
        {f"h.{i}.{name}": (size,) for i in range(3) for name, size in [("a", 3), ("b", 5)]}
    )
    cut = Timeline(layers_of(layout)).cut(layout, 16.0, 2)
    assert [list(part.shapes) for part in cut] == [
        ["h.2.a", "h.2.b"],  # 5 + 3 values, full at 8
        ["h.1.a", "h.1.b"],
        ["h.0.a", "h.0.b"],
    ]
    assert [part.numel for part in Timeline(layers_of(layout)).cut(layout, 18.0, 2)] == [13, 11]


def test_a_fragment_is_cut_into_its_own_layers():
    workload = uniform_layers("six", 6, 60)
    fragment = workload.layout.select(["layers.1", "layers.4"])
    cut = workload.timeline.cut(fragment, None, 2)
    assert [list(part.shapes) for part in cut] == [["layers.4"], ["layers.1"]]


@pytest.mark.parametrize("tied", [False, True])
def test_the_layers_of_a_decoder_share_all_of_its_flop(tied):
    workload = transformer("t", 4, 64, 4, 2, 128, 1000, tied=tied)
    passes = 3 * sum(layer.flops for layer in workload.layers)
    assert passes == pytest.approx(workload.flops_per_token, rel=1e-12)
    assert workload.layers[0].flops == 0.0
    assert workload.layers[-1].tensors == (() if tied else ("head",))


def test_layers_are_told_apart_by_their_numbers():
    layout = Layout({"wte": (4,), "h.0.q": (2,), "h.1.q": (2,), "h.0.k": (2,), "head": (1,)})
    assert list(by_layer(layout)) == ["wte", "0", "1", "head"]
    assert [layer.flops for layer in layers_of(layout)] == [4, 4, 2, 1]


def test_the_step_of_a_uniform_model_takes_the_time_that_was_asked_for():
    workload = uniform_layers("1B", 24, 10**9 + 1, step_seconds=0.1)
    devices = Device(speed="1PFLOPS", mfu=1, jitter=0).bind(1, Streams(0))
    assert devices.seconds(workload.flops_per_step, [0], 0) == pytest.approx([0.1], rel=1e-14)
    sizes = [shape[0] for shape in workload.layout.shapes.values()]
    assert sum(sizes) == 10**9 + 1
    assert max(sizes) - min(sizes) == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: uniform_layers("x", 0, 10), "layers=0: must be between 1"),
        (lambda: uniform_layers("x", 11, 10), "layers=11: must be between 1"),
        (lambda: uniform_layers("x", 2, 10, step_seconds=0.0), "step_seconds=0.0"),
        (lambda: uniform_layers("x", 2, 10, step_seconds=1, flops_per_token=1), "give one"),
        (lambda: Timeline((Layer("a", (), 0.0),)), "at least one must have FLOP"),
        (lambda: Layer("a", (), -1.0), "flops=-1.0: must be >= 0"),
        (
            lambda: Workload(
                "x", Layout({"a": (1,), "b": (1,)}), 1, layers=(Layer("0", ("a",), 1),)
            ),
            r"each tensor of the layout once; these are not: \['b'\]",
        ),
    ],
)
def test_impossible_layers_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
