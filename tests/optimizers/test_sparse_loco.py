"""SparseLoCo: what is sent, kept and counted; its options; what a lost member costs."""

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedCodec, RecordedRounds, rows_of
from optimizers import SGD, DiLoCo, SparseLoCo
from optimizers.compression import Blocks, Chain, CodeBook, ErrorFeedback, PerTensor, Quantize, TopK
from optimizers.sparse_loco import chunk_top_k, clipped_to_median
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.network.options import NetworkOptions
from sim.payload import Context, Dense
from sim.testing import check_compressor
from topologies import complete

EVERYTHING = PerTensor(Chain(Blocks(2), TopK(ratio=1.0, value_dtype="native")))
SOME = PerTensor(Chain(Blocks(2), TopK(1, value_dtype="native")))
CODED = PerTensor(Chain(Blocks(4), TopK(3), CodeBook(bins=4, centred=True)))


def run(strategy, n=3, steps=12, **parts):
    """Theta, then the error buffers of all, before and after each round: [rounds + 1, 1 + n, P]."""
    rounds = RecordedRounds(
        lambda sim: torch.cat([strategy.consensus(sim)[None], rows_of(sim, "error")])
    )
    parts = {"local": SGD(0.1), "budget": Budget(steps=steps)} | parts
    Experiment(Regression.drawn(n), complete(n), strategy, coordinator=rounds, **parts).run()
    return torch.stack(rounds.notes)


def encoded(codec, x, layout):
    return codec.encode(x, codec.init(layout, len(x)), Context(layout, 0, np.arange(len(x)), 0))[0]


@pytest.mark.parametrize("codec", [chunk_top_k(), PerTensor(Chain(Blocks(4, "row"), TopK(2)))])
def test_its_codecs_keep_their_promises(codec):
    check_compressor(codec)


def test_the_papers_codec_sends_14_bits_per_value_and_a_code_book_per_tensor():
    """Of 4096 values 64: 12 bits where and 2 what; 4 means of bins and a shift in float32."""
    tensor = Layout({"weight": (256, 128)})
    assert chunk_top_k().nbytes(tensor) == 8 * 64 * (12 + 2) / 8 + 4 * (4 + 1)


def test_a_unit_is_a_block_or_a_row_of_a_matrix_and_so_many_values_of_a_vector():
    matrix, vector = torch.arange(24.0).reshape(1, 4, 6), torch.arange(6.0)[None]
    assert torch.equal(Blocks(2, "row").blocks(matrix), matrix)
    assert Blocks(2).blocks(matrix)[0, 0].tolist() == [0, 1, 6, 7]
    for unit in ("row", "block"):
        assert Blocks(3, unit).blocks(vector).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    with pytest.raises(ValueError, match="unit='rows': must be 'block' or 'row'"):
        Blocks(2, "rows")


def test_rows_as_units_are_selected_at_once_as_they_are_one_by_one():
    layout = Layout({"weight": (6, 8), "bias": (10,), "conv": (4, 3, 2)})
    x = torch.randn(3, layout.numel, generator=torch.Generator().manual_seed(0))
    codec = PerTensor(Chain(Blocks(5, "row"), TopK(2, value_dtype="native")))
    sent = encoded(codec, x, layout).decode()
    wanted = torch.zeros_like(x)
    for shape, columns in zip(layout.shapes.values(), layout.slices.values()):
        units = x[:, columns].reshape(3, -1, 5 if len(shape) == 1 else int(np.prod(shape[1:])))
        at = units.abs().topk(2, dim=-1).indices
        kept = torch.zeros_like(units).scatter(-1, at, units.gather(-1, at))
        wanted[:, columns] = kept.flatten(1)
    assert torch.equal(sent, wanted)


@pytest.mark.parametrize("codec", [SOME, CODED])
@pytest.mark.parametrize("lr_in_buffer", [False, True])
def test_a_round_is_that_of_a_loop_over_the_nodes(codec, lr_in_buffer):
    """e <- beta e + Delta; q = what is decoded of it; e <- e - q; theta <- theta - lr mean(q)."""
    n, lr, beta, decay = 3, 0.5, 0.9, 0.01
    watched = RecordedCodec(codec)
    strategy = SparseLoCo(
        3, lr, beta, watched, weight_decay=decay, lr_in_buffer=lr_in_buffer, aggregate="all"
    )
    notes, task = run(strategy, n), Regression.drawn(n)
    theta, error = task.init(torch.Generator()), torch.zeros(n, task.layout.numel).double()
    for t in range(4):
        sent = []
        for i in range(n):
            x = theta.clone()
            for k in range(3):
                batch = task.batch(np.array([i]), np.array([3 * t + k]))
                x = x - 0.1 * torch.func.grad(task.loss)(x, tuple(part[0] for part in batch))
            error[i] = beta * error[i] + (lr if lr_in_buffer else 1.0) * (theta - x)
            sent.append(encoded(codec, error[i : i + 1], task.layout).decode()[0])
            error[i] -= sent[-1]
        theta = theta * (1 - lr * decay) - lr * torch.stack(sent).mean(0)
        torch.testing.assert_close(notes[t + 1], torch.cat([theta[None], error]), rtol=0, atol=1e-7)


def test_a_mean_over_senders_counts_those_that_sent_a_value():
    codecs = RecordedCodec(SOME), RecordedCodec(SOME)
    for codec, aggregate in zip(codecs, ("all", "senders")):
        run(SparseLoCo(3, compressor=codec, aggregate=aggregate), steps=3)
    sent = codecs[0].payloads[0].decode()
    counts = (sent != 0).sum(0).clamp(min=1)
    torch.testing.assert_close(codecs[0].means[0], sent.mean(0))
    torch.testing.assert_close(codecs[1].means[0], sent.sum(0) / counts)
    assert counts.unique().numel() > 1


def test_with_all_values_no_decay_and_rate_one_it_is_local_sgd():
    ours = run(SparseLoCo(3, lr=1.0, decay=0.0, compressor=EVERYTHING))[:, 0]
    local_sgd = DiLoCo(3, outer=SGD(1.0), compressor=Dense("native"))
    rounds = RecordedRounds(lambda sim: sim.shared["theta"])
    budget = Budget(steps=12)
    task, parts = Regression.drawn(3), {"local": SGD(0.1), "budget": budget}
    Experiment(task, complete(3), local_sgd, coordinator=rounds, **parts).run()
    torch.testing.assert_close(ours, torch.stack(rounds.notes), rtol=0, atol=1e-14)


def test_what_was_sent_and_what_is_kept_add_up_to_the_outer_gradients():
    codec = RecordedCodec(SOME)
    notes = run(SparseLoCo(3, decay=1.0, compressor=codec))
    sent = sum(payload.decode() for payload in codec.payloads)
    kept = notes[-1, 1:]
    before = torch.cat([torch.zeros(1, *kept.shape), notes[1:-1, 1:]])
    drift = sum(x - e for x, e in zip(codec.inputs, before))  # decay 1: what came in each time
    torch.testing.assert_close(sent + kept, drift, rtol=0, atol=1e-12)


def _with_a_loss(tiny, **parts):
    """Node 1 leaves while payloads travel: the notes at the end of the round, and the simulation.

    A step takes 1 s, a payload of 10 bytes 0.3 s of each hop.
    """
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["theta"][None], rows_of(sim, "error")])
    )
    codec = RecordedCodec(TopK(2))
    strategy = SparseLoCo(1, compressor=codec)
    away = {1: (1.2, 39.0)}
    run = tiny(strategy, n=3, away=away, coordinator=rounds, **parts)
    run.run()
    return rounds.notes[0], rounds.notes[1], codec


def test_a_member_that_is_lost_is_not_in_the_mean(tiny):
    start, after, codec = _with_a_loss(tiny)
    e, q = codec.inputs[0], codec.payloads[0].decode()
    torch.testing.assert_close(after[0], start[0] - q[[0, 2]].mean(0))
    torch.testing.assert_close(after[1:], (e - q)[[0, 2]])


def test_what_did_not_arrive_stays_in_the_buffer(tiny):
    """The gather is given up when a member is lost: nothing has arrived, so nothing was sent."""
    start, after, codec = _with_a_loss(tiny, network=NetworkOptions(failure="abort"))
    assert torch.equal(after[0], start[0])
    torch.testing.assert_close(after[1:], codec.inputs[0][[0, 2]])


@pytest.mark.parametrize("mode", ["bucketed", "layerwise"])
def test_gathers_that_follow_the_backward_pass_change_times_only(tiny, mode):
    codec, ends = PerTensor(TopK(2)), {}
    for overlap in ("none", mode):
        strategy = SparseLoCo(2, compressor=codec, overlap=overlap, bucket=12)
        run = tiny(strategy, n=3, budget=Budget(steps=8))
        run.run()
        ends[overlap] = run.sim.now, rows_of(run.sim, "error"), strategy.consensus(run.sim)
    assert ends[mode][0] < ends["none"][0]
    for one, other in zip(ends[mode][1:], ends["none"][1:]):
        assert torch.equal(one, other)


CLIPPED = {"plain": SOME, "coded": CODED, "whole rows": TopK(3), "codes": Quantize(8)}


@pytest.mark.parametrize("case", CLIPPED)
def test_what_a_node_sends_of_a_tensor_has_at_most_the_median_norm(case):
    codec = CLIPPED[case]
    layout = Layout({"weight": (8, 6), "bias": (4,)})
    x = torch.randn(5, layout.numel, generator=torch.Generator().manual_seed(1))
    x *= torch.tensor([1.0, 30.0, 2.0, 0.1, 3.0])[:, None]
    payload = encoded(codec, x, layout)
    sent, clipped = payload.decode(), clipped_to_median(payload).decode()
    parts = list(layout.slices.values()) if isinstance(codec, PerTensor) else [slice(None)]
    for columns in parts:
        norm = sent[:, columns].norm(dim=1, keepdim=True)
        wanted = sent[:, columns] * (norm.median() / norm).clamp(max=1)
        torch.testing.assert_close(clipped[:, columns], wanted, rtol=1e-5, atol=1e-6)
    mean = clipped_to_median(payload).combine("all")
    torch.testing.assert_close(mean, clipped.mean(0), rtol=1e-5, atol=1e-6)


def test_clipping_leaves_a_run_of_equal_nodes_as_it_is():
    plain, clipped = (
        run(SparseLoCo(3, compressor=SOME, clip_to_median=clip), n=1) for clip in (False, True)
    )
    torch.testing.assert_close(plain, clipped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inner_steps": 0}, "strategy.inner_steps=0: must be >= 1"),
        ({"lr": 0.0}, "strategy.lr=0.0: must be > 0"),
        ({"decay": 1.5}, r"strategy.decay=1.5: must be in \[0, 1\]"),
        ({"weight_decay": -1.0}, "strategy.weight_decay=-1.0: must be >= 0"),
        ({"compressor": ErrorFeedback(TopK(3))}, "fed back here already, .* give .* TopK"),
        ({"aggregate": "sender"}, "strategy.aggregate='sender': must be 'all' or 'senders'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SparseLoCo(**options)
