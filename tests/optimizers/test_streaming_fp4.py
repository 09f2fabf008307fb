"""Streaming DiLoCo with outer gradients in FP4: codes are gathered, and averaged in full width."""

import pytest
import torch

from experiments import cells
from experiments.assemble import assemble
from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedCodec, RecordedOptimizer, RecordedRounds
from optimizers import SGD, DiLoCo, StreamingDiLoCo
from optimizers.compression import Float4
from sim.budget import Budget
from sim.compute.options import ComputeOptions
from topologies import complete

FP4 = Float4("e3m0", block=256)


def _run(strategy, n=3, steps=8):
    rounds, alone = RecordedRounds(strategy.consensus), ComputeOptions(workers=1)
    budget, task = Budget(steps=steps), Regression.drawn(n)
    parts = {"local": SGD(0.1), "coordinator": rounds, "compute": alone, "budget": budget}
    run = Experiment(task, complete(n), strategy, **parts)
    run.run()
    return run.sim, torch.stack(rounds.notes)


def test_the_outer_step_gets_the_mean_of_the_decoded_codes():
    codec, outer = RecordedCodec(FP4), RecordedOptimizer(SGD(0.7, 0.9, nesterov=True))
    _run(StreamingDiLoCo(4, fragments=2, overlap=1, outer=outer, compressor=codec))
    assert len(codec.payloads) == len(outer.grads) == 4
    assert {tuple(x.shape) for x in codec.inputs} == {(3, 16), (3, 10)}  # a fragment's columns
    for x, payload, mean in zip(codec.inputs, codec.payloads, outer.grads):
        scale = x.abs().amax(1, keepdim=True) / 16
        powers = payload.decode().abs() / scale
        codes = torch.tensor([0.0] + [2.0**k for k in range(-2, 5)]).double()
        assert (powers[..., None] - codes).abs().amin(-1).max() < 1e-6
        torch.testing.assert_close(mean, payload.decode().mean(0), rtol=0, atol=1e-12)


def test_one_fragment_at_once_is_diloco_with_the_same_codes():
    outer = SGD(0.7, 0.9, nesterov=True)
    _, ours = _run(StreamingDiLoCo(2, 1, overlap=0, mixing=0, outer=outer, compressor=FP4))
    _, theirs = _run(DiLoCo(2, outer, FP4))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_half_a_byte_per_value_and_a_scale_travel_to_everybody():
    sim, _ = _run(StreamingDiLoCo(4, fragments=2, overlap=1, compressor=FP4))
    collectives = sim.trace["collective"]
    assert set(collectives["op"]) == {"all_gather"}
    sent = collectives["nbytes"].tolist()
    fragments = [16 // 2 + 4, 10 // 2 + 4]
    per_node = sim.trace["metric"]["nbytes_per_node"].iloc[-1]
    assert per_node == pytest.approx(2 * 2 * sum(fragments))  # to two others, two rounds of both
    assert sent == fragments * 2


def test_it_is_a_choice_of_the_command_line():
    line = ["strategy=streaming_diloco", "compressor=fp4", "task=markov_small", "topology.n=3"]
    small = ["topology=complete", "strategy.inner_steps=10", "budget.steps=60"]
    trace = assemble(cells.read(line + small).cells[0].cfg).run()
    loss = trace["metric"]["loss"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]
