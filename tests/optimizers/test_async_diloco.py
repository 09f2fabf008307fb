"""Asynchronous DiLoCo: its rules against closed forms, its schedule against an event loop."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.judge import judge
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedOptimizer
from optimizers import (
    SGD,
    AsyncDiLoCo,
    Buffered,
    ByStaleness,
    DelayedNesterov,
    DiLoCo,
    DyLU,
    Equal,
    Vanilla,
)
from optimizers.async_diloco import Roster
from optimizers.compression import ErrorFeedback, TopK
from optimizers.stamp import Stamp
from sim.budget import Budget
from sim.compute.device import Device
from sim.coordinators import Elastic
from sim.payload import Dense
from sim.testing import check_compressor
from sim.workload import one_billion
from topologies import complete

EXACT = Dense("native")
GOLDEN = Path(__file__).parents[1] / "golden"


def nesterov(lr=0.7):
    return SGD(lr=lr, momentum=0.9, nesterov=True)


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def pushed(rule, theta, grads, workers):
    """Parameters after each push of `grads` [n, P], none of them stale."""
    state, thetas = rule.init(theta), []
    for grad in grads:
        theta, state = rule.step(theta, rule.weight(0, workers) * grad, state, workers)
        thetas.append(theta)
    return torch.stack(thetas)


# -- rules ----------------------------------------------------------------------------------------


def nesterov_steps(theta, means, lr, beta):
    """Nesterov steps on means [R, P], written out."""
    m, found = torch.zeros_like(theta), []
    for mean in means:
        m = beta * m + mean
        theta = theta - lr * (mean + beta * m)
        found.append(theta)
    return torch.stack(found)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_delayed_nesterov_over_n_pushes_is_a_nesterov_step_on_their_mean(n):
    theta, grads = drawn(7), drawn(3 * n, 7, seed=1)
    ours = pushed(DelayedNesterov(0.7, 0.9), theta, grads, n)[n - 1 :: n]
    theirs = nesterov_steps(theta, grads.unflatten(0, (3, n)).mean(1), 0.7, 0.9)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("c", [0.0, 0.1, 0.25])
def test_delayed_nesterov_spreads_the_momentum_over_the_pushes(c):
    n, lr, beta = 4, 0.7, 0.9
    theta, grads = drawn(7), drawn(2 * n, 7, seed=1)
    ours = pushed(DelayedNesterov(lr, beta, c), theta, grads, n)
    first, second = (grads[r * n : (r + 1) * n].mean(0) for r in range(2))
    m1 = first
    m2 = beta * m1 + second
    after = theta - lr * (first + (1 - c * n + c) * beta * m1)
    torch.testing.assert_close(ours[n - 1], after, rtol=0, atol=1e-13)
    after = after - lr * (second + (n - 1) * c * beta * m1 + (1 - c * n + c) * beta * m2)
    torch.testing.assert_close(ours[-1], after, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_buffer_moves_nothing_until_it_is_full(n):
    theta, grads = drawn(7), drawn(3 * n, 7, seed=1)
    ours = pushed(Buffered(nesterov()), theta, grads, n)
    theirs = nesterov_steps(theta, grads.unflatten(0, (3, n)).mean(1), 0.7, 0.9)
    before = torch.cat([theta[None], theirs])
    wanted = [before[(push + 1) // n] for push in range(3 * n)]
    torch.testing.assert_close(ours, torch.stack(wanted), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", [Buffered(nesterov()), DelayedNesterov()])
def test_a_buffer_is_emptied_when_so_many_pushed_as_are_left(rule):
    theta = torch.zeros(3)
    state = rule.init(theta)
    for workers in (5, 5, 2):  # three of five have left: the third push is one of two
        theta, state = rule.step(theta, rule.weight(0, workers) * torch.ones(3), state, workers)
    assert state["pushes"] == 0
    assert theta[0].item() == pytest.approx(-0.7 * 1.9 * (0.2 + 0.2 + 0.5))


def test_weights_fall_with_the_number_of_workers_and_with_staleness():
    rule = ByStaleness(Vanilla(), power=0.5)
    assert rule.weight(0, 4) == pytest.approx(0.5)
    assert rule.weight(3, 4) == pytest.approx(0.25)
    assert ByStaleness(Buffered(), power=1.0).weight(1, 5) == pytest.approx(0.1)
    assert Vanilla().weight(9, 9) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("floor", "wanted"), [(1, [20, 15, 7, 3]), (5, [20, 15, 7, 5])])
def test_slower_workers_make_fewer_steps(floor, wanted):
    speeds = [1 / seconds for seconds in (0.58, 0.75, 1.51, 3.33)]
    assert [DyLU(floor).steps(20, v, max(speeds)) for v in speeds] == wanted
    assert [Equal().steps(20, v, max(speeds)) for v in speeds] == [20] * 4
    assert [DyLU(5).steps(3, v, max(speeds)) for v in speeds] == [3] * 4


def test_a_whole_number_of_steps_is_not_missed_by_a_hair():
    assert all(DyLU().steps(h, 1 / (h * 0.1), 1 / 0.1) == 1 for h in range(1, 200))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AsyncDiLoCo(0), "inner_steps=0: must be >= 1"),
        (lambda: AsyncDiLoCo(server=-1), "server=-1: must be"),
        (lambda: ByStaleness(power=-1), "power=-1: must be >= 0"),
        (lambda: DelayedNesterov(momentum=1.0), r"momentum=1.0: must be in \[0, 1\)"),
        (lambda: DelayedNesterov(c=2), r"c=2: must be in \[0, 1/N\]"),
        (lambda: DyLU(0), "floor=0: must be >= 1"),
        (lambda: DelayedNesterov(c=0.5).check(3), "the nearest is 0.3333"),
        (lambda: ByStaleness(DelayedNesterov(c=0.5)).check(3), "the nearest is 0.3333"),
        (lambda: Stamp(Stamp()), "must not be a Stamp"),
    ],
)
def test_bad_values_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("codec", [None, Dense(), TopK(3), ErrorFeedback(TopK(3))])
def test_a_stamp_is_24_bytes_beside_a_payload(codec):
    check_compressor(Stamp(codec))
    layout = one_billion().layout
    inside = 0 if codec is None else codec.nbytes(layout)
    assert Stamp(codec).nbytes(layout) == inside + 24


# -- whole runs -----------------------------------------------------------------------------------


def thetas(strategy, n, outer, **parts):
    """Parameters after each of the outer steps of a run on n nodes."""
    parts = {"local": SGD(0.1), "budget": Budget(steps=12)} | parts
    Experiment(parts.pop("task", None) or Regression.drawn(n), complete(n), strategy, **parts).run()
    return torch.stack(outer.params)


def test_a_node_alone_is_diloco_with_one_replica():
    ours, theirs = RecordedOptimizer(nesterov()), RecordedOptimizer(nesterov())
    alone = thetas(AsyncDiLoCo(3, Vanilla(ours)), 1, ours)
    diloco = thetas(DiLoCo(3, outer=theirs, compressor=EXACT), 1, theirs)
    assert len(alone) == 4
    torch.testing.assert_close(alone, diloco, rtol=0, atol=1e-14)


class Shifted(Regression):
    """The problem of nodes 0 to n - 1, on nodes 1 to n; node 0 has none."""

    def batch(self, nodes, steps):
        return super().batch(nodes - 1, steps)

    def bind(self, seed, n_nodes):
        super().bind(seed, n_nodes - 1)


@pytest.mark.parametrize("rule", [Vanilla, Buffered])
def test_one_worker_is_diloco_with_one_replica(rule):
    ours, theirs = RecordedOptimizer(nesterov()), RecordedOptimizer(nesterov())
    strategy = AsyncDiLoCo(3, rule(ours), compressor=EXACT)
    served = thetas(strategy, 2, ours, task=Shifted.drawn(1))
    diloco = thetas(DiLoCo(3, outer=theirs, compressor=EXACT), 1, theirs)
    assert len(served) >= 3
    torch.testing.assert_close(served, diloco[: len(served)], rtol=0, atol=1e-14)


@pytest.mark.parametrize("pace", [Equal(), DyLU()])
def test_buffered_pushes_of_equal_workers_in_lock_step_are_diloco(pace):
    n = 4
    ours, theirs = RecordedOptimizer(nesterov()), RecordedOptimizer(nesterov())
    strategy = AsyncDiLoCo(3, Buffered(ours), pace, grace="1s", compressor=EXACT)
    steady = Device(speed="100kFLOPS", mfu=1, jitter=0)
    served = thetas(strategy, n + 1, ours, task=Shifted.drawn(n), device=steady)
    diloco = thetas(DiLoCo(3, outer=theirs, compressor=EXACT), n, theirs)
    assert len(served) >= 3
    torch.testing.assert_close(served, diloco[: len(served)], rtol=0, atol=1e-13)


def test_all_that_a_push_costs_is_the_parameters_both_ways_and_two_headers(tiny):
    run = tiny(AsyncDiLoCo(3), n=3, budget=Budget(seconds=60))
    sent = run.run()["transfer"]
    up, down = sent[sent["dst"] == 0], sent[sent["src"] == 0]
    assert up["nbytes"].tolist() == [24, 24] + [32 + 24] * (len(up) - 2)
    assert set(down["nbytes"]) == {32 + 24}


def test_the_clock_charges_the_workload():
    strategy = AsyncDiLoCo(1, compressor=TopK(ratio=0.01))
    run = Experiment(
        Regression.drawn(2),
        complete(2),
        strategy,
        workload=one_billion(),
        budget=Budget(steps=3),
    )
    layout, sent = one_billion().layout, run.run()["transfer"]
    assert set(sent[sent["src"] == 0]["nbytes"]) == {2 * layout.numel + 24}
    assert set(sent[sent["src"] == 1]["nbytes"]) == {24, TopK(ratio=0.01).nbytes(layout) + 24}


def test_a_roster_follows_who_is_there(idle):
    sim = idle(away={2: (1.0, 2.0)})
    roster, found = Roster(sim.node(0)), []
    for second in (0.5, 1.5, 2.5):
        sim.run(until=second)
        fastest = max(roster.speed(node) for node in roster.ids)
        found.append((roster.ids, roster.fastest == fastest))
    assert found == [([1, 2, 3], True), ([1, 3], True), ([1, 2, 3], True)]


def test_times_of_pushes_by_hand(tiny):
    """Hops of 0.1 s and 32 B/s: 24 bytes take 0.85 s, 56 take 1.85 s; two share node 0's link."""
    run = tiny(AsyncDiLoCo(3, Vanilla(SGD(1.0))), n=2, budget=Budget(seconds=30))
    pushes = run.run()["push"]
    first = 0.85 + 1.85 + 3 + 1.85
    wanted = [first + turn * (1.85 + 3 + 1.85) for turn in range(4)]
    assert pushes["time"].tolist() == pytest.approx(wanted)
    assert pushes["version"].tolist() == [0, 1, 2, 3]
    assert set(pushes["staleness"]) == {0}


# -- churn ----------------------------------------------------------------------------------------


def test_a_worker_that_returns_asks_for_the_parameters_again(tiny):
    run = tiny(AsyncDiLoCo(3), n=3, away={1: (5.0, 12.0)}, budget=Budget(seconds=60))
    pushes = run.run()["push"]
    back = pushes[pushes["node"] == 1]
    assert len(back) >= 2
    assert back["time"].min() > 12
    assert (back["staleness"] <= 2).all()  # not that of the round it left


def test_a_server_that_returns_uses_no_push_of_before(tiny):
    strategy = AsyncDiLoCo(3, patience=4.0)
    run = tiny(strategy, n=3, away={0: (20.0, 21.0)}, budget=Budget(seconds=80))
    pushes = run.run()["push"]
    later = pushes[pushes["time"] > 21]
    assert (pushes["time"] < 20).any()
    assert later["version"].iloc[0] == 0
    assert (later["staleness"] >= 0).all()


def test_workers_go_on_while_the_server_is_away(tiny):
    strategy = AsyncDiLoCo(3, patience=2.0)
    run = tiny(strategy, n=3, away={0: (15.0, math.inf)}, budget=Budget(seconds=60))
    pushes = run.run()["push"]
    assert run.sim.completed[1:].min() > 25
    assert 0 < pushes["time"].max() < 15


def test_the_divisor_is_the_number_of_workers_that_are_there(tiny):
    away = {3: (30.0, math.inf), 4: (30.0, math.inf)}
    parts = {"away": away, "coordinator": Elastic(), "budget": Budget(seconds=90)}
    pushes = tiny(AsyncDiLoCo(2, Vanilla()), n=5, **parts).run()["push"]
    before, after = pushes[pushes["time"] < 30], pushes[pushes["time"] > 31]
    assert set(before["weight"]) == {0.5}
    assert after["weight"].tolist() == pytest.approx([2**-0.5] * len(after))


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_nobody_waits_for_a_window_in_which_nobody_is_due(tiny, grace):
    free = complete(3, bandwidth=math.inf, latency=0)
    run = tiny(AsyncDiLoCo(3, grace=grace), n=3, topology=free, budget=Budget(seconds=20))
    pushes = run.run()["push"]
    wanted = [3.0 * (1 + i // 2) for i in range(len(pushes))]
    assert pushes["time"].tolist() == pytest.approx(wanted)
    assert [set(pushes["node"][i : i + 2]) for i in (0, 2, 4)] == [{1, 2}] * 3


@pytest.mark.parametrize(
    ("grace", "wanted"),
    [
        (2.0, [(1, 3.0), (2, 3.0), (1, 6.0), (2, 8.5), (1, 9.0), (1, 12.0), (2, 12.0)]),
        (3.0, [(1, 3.0), (2, 3.0), (1, 6.0), (2, 8.5), (1, 11.5), (2, 11.5)]),
    ],
)
def test_the_window_by_hand(tiny, grace, wanted):
    """Node 2 is away from 5 to 5.5 and asks for the parameters: it is due at 8.5, not at 6."""
    free, away = complete(3, bandwidth=math.inf, latency=0), {2: (5.0, 5.5)}
    run = tiny(AsyncDiLoCo(3, grace=grace), n=3, topology=free, away=away)
    pushes = run.run()["push"][: len(wanted)]
    ours = sorted(zip(pushes["time"].round(6), pushes["node"]))
    assert ours == [(time, node) for node, time in wanted]


# -- the notebook's event loop --------------------------------------------------------------------


def schedule(seconds, grace, inner, events):
    """(worker, staleness, version pulled, time, finish time) of each push: the notebook's loop."""
    k = len(seconds)
    finish, base, out = [n * s for n, s in zip(inner, seconds)], [0] * k, [True] * k
    now, first, found = 0.0, None, []
    while len(found) < events:
        who = min((i for i in range(k) if out[i]), key=lambda i: (finish[i], i), default=None)
        if who is None or (first is not None and finish[who] - first > grace):
            for i in range(k):
                if not out[i]:
                    finish[i], base[i], out[i] = now + inner[i] * seconds[i], len(found), True
            first = None
            continue
        now = max(now, finish[who])
        first = now if first is None else first
        found.append((who, len(found) - base[who], base[who], now, finish[who]))
        out[who] = False
    return found


def served(start, moves, weights, k, method):
    """The server's parameters after each push: the notebook's two rules, lr 0.07, momentum 0.9."""
    number = start.dtype.type
    theta, m, buffer, found = start, np.zeros_like(start), np.zeros_like(start), []
    for e, (move, weight) in enumerate(zip(moves, weights)):
        buffer = buffer + move / number(k)
        grad = number(weight) * move if method == "vanilla" else buffer
        if method == "vanilla" or (e + 1) % k == 0:
            m = number(0.9) * m + grad
            theta = theta - number(0.07) * (grad + number(0.9) * m)
            buffer = np.zeros_like(grad)
        found.append(theta)
    return np.stack(found)


def notebook(
    seconds,
    grace,
    method="vanilla",
    weighing="polynomial",
    dtype=np.float32,
    events=24,
    scale_steps=False,
):
    """The arrays of a golden file."""
    k, H, rng = len(seconds), 20 if scale_steps else 5, np.random.default_rng(3)
    inner = [max(int(H * min(seconds) / s), 5) if scale_steps else H for s in seconds]
    columns = [np.array(column) for column in zip(*schedule(seconds, grace, inner, events))]
    power = 0.5 if weighing == "polynomial" else 0.0
    weights = math.sqrt(k) / k * (1.0 + columns[1]) ** -power
    names = ("worker", "staleness", "base_version", "time", "finish_time")
    arrays = {f"event_{name}": column for name, column in zip(names, columns)}
    arrays |= {"event_inner_steps": np.array(inner)[columns[0]], "event_sync_weight": weights}
    for p, shape in {"W1": (3, 2), "b1": (3,)}.items():
        start = rng.standard_normal(shape).astype(dtype)
        moves = 0.1 * rng.standard_normal((events, *shape)).astype(dtype)
        arrays |= {f"{p}_init": start, f"{p}_pseudograd": moves}
        arrays[f"{p}_server"] = served(start, moves, weights, k, method)
    meta = {
        "algorithm": "asynchronous local SGD server",
        "dtype": np.dtype(dtype).name,
        "events": events,
        "inner_steps": H,
        "max_wait_time": grace,
        "outer": {"lr": 0.07, "momentum": 0.9, "nesterov": True},
        "reference": "google-deepmind/asyncdiloco, rewritten",
        "scale_steps": scale_steps,
        "sec_per_step": list(seconds),
        "sync_method": method,
        "sync_time": 0.0,
        "sync_weight_method": weighing,
        "workers": k,
    }
    return arrays | {"meta": np.array(json.dumps(meta))}


CASES = {
    "the notebook's": {"seconds": (0.58, 0.75, 1.51, 3.33), "grace": 0.5},
    "no grace": {"seconds": (0.58, 0.75, 1.51, 3.33), "grace": 0.0},
    "all wait": {"seconds": (0.58, 0.75, 1.51, 3.33), "grace": 100.0},
    "constant weight, float64": {
        "seconds": (1.0, 0.3, 0.47),
        "grace": 0.2,
        "weighing": "constant",
        "dtype": np.float64,
    },
    "equal workers": {"seconds": (1.0,) * 5, "grace": 0.0},
    "ties of those who began apart": {"seconds": (1.0, 1.0, 2.0, 4.0, 0.5), "grace": 0.0},
    "due at the end of the window": {"seconds": (0.5, 0.6, 0.7, 0.8), "grace": 0.5},
    "buffered": {"seconds": (0.58, 0.75, 1.51), "grace": 0.5, "method": "delayed_sgd"},
    "dynamic local updates": {
        "seconds": (0.58, 0.75, 1.51, 3.33),
        "grace": 0.5,
        "scale_steps": True,
    },
    "one worker": {"seconds": (0.9,), "grace": 0.5, "dtype": np.float64},
    "many": {"seconds": tuple(math.sqrt(2 + i) for i in range(12)), "grace": 1.0, "events": 60},
}


def test_the_loop_is_that_of_the_authors_file():
    with np.load(GOLDEN / "async_diloco_vanilla_f32.npz") as file:
        meta = json.loads(str(file["meta"]))
        seconds, k = meta["sec_per_step"], meta["workers"]
        found = schedule(seconds, meta["max_wait_time"], [meta["inner_steps"]] * k, meta["events"])
        names = ("worker", "staleness", "base_version", "time", "finish_time")
        for name, column in zip(names, zip(*found)):
            np.testing.assert_allclose(column, file[f"event_{name}"], rtol=1e-12)
        moves, weights = file["W1_pseudograd"], file["event_sync_weight"]
        ours = served(file["W1_init"], moves, weights, k, "vanilla")
        np.testing.assert_allclose(ours, file["W1_server"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_events_and_the_values_of_the_notebooks_loop(name, tmp_path):
    np.savez(tmp_path / "case.npz", **notebook(**CASES[name]))
    rows = judge(tmp_path / "case.npz")
    assert len(rows) >= 8
    assert [row.what for row in rows if not row.holds] == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sync_method": "vanila"}, "vanilla"),
        ({"sync_weight_method": "linear"}, "constant"),
        ({"sync_time": 0.5}, "must be 0"),
        ({"workers": 3}, "do not belong together"),
    ],
)
def test_a_file_that_cannot_be_replayed_says_why(changed, said, tmp_path):
    arrays = notebook((0.58, 0.75, 1.51, 3.33), 0.5)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | changed))
    np.savez(tmp_path / "case.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        judge(tmp_path / "case.npz")


def test_a_wrong_window_is_noticed(tmp_path):
    arrays = notebook((0.58, 0.75, 1.51, 3.33), 0.5)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | {"max_wait_time": 0.0}))
    np.savez(tmp_path / "case.npz", **arrays)
    assert any(not row.holds for row in judge(tmp_path / "case.npz"))
