"""Golden files of other sizes and options, made by plain loops in numpy: exchanges and codecs.

SparseLoCo, PowerSGD, CHOCO-SGD, D-PSGD, push-sum, Moshpit, the int8 ring, and single codecs.
"""

import json

import numpy as np
import pytest
from golden_cases import convex
from golden_cases.averaging import int8_ring, moshpit, push_sum
from golden_cases.mlp import Problem
from golden_cases.power_sgd import power_sgd
from golden_cases.primitives import primitives
from golden_cases.sparse_loco import SGD, sparse_loco

from experiments.cli import main
from experiments.validate.golden.judge import judge


def _sparse(shape, T, N, H, *args, dtype="float64", **options):
    problem = Problem(T * H, N, shape, dtype=dtype, seed=2)
    return lambda path: sparse_loco(path, problem, H, *args, **options)


def _low_rank(shape, N, rank, dtype="float64", **options):
    problem = Problem(6, N, shape, B=6, dtype=dtype, seed=3)
    return lambda path: power_sgd(path, problem, rank, **options)


def _gossip(method, topology, kind="full", **options):
    return lambda path: convex.convex(path, method, topology, kind, **options)


CASES = {
    "sparse_loco": _sparse((5, 6, 3), 3, 3, 3, 3, 4),
    "sparse_loco of one": _sparse((7, 13, 1), 2, 1, 1, 2, 3, outer_lr=0.7),
    "sparse_loco, whole units": _sparse((8, 12, 4), 2, 5, 2, 99, 64, decay=1.0),
    "sparse_loco, decay and momentum": _sparse(
        (5, 6, 3), 2, 2, 2, 2, 4, weight_decay=0.1, inner=SGD
    ),
    "sparse_loco, 2 bits": _sparse((5, 6, 3), 2, 4, 2, 2, 4, bins=4),
    "sparse_loco, 8 bits": _sparse((5, 6, 3), 3, 2, 1, 3, 2, bins=256, dtype="float32"),
    "sparse_loco, single": _sparse((5, 6, 3), 3, 2, 3, 3, 2, dtype="float32"),
    "power_sgd": _low_rank((8, 12, 6), 3, 2, iters=2),
    "power_sgd of one, vectors": _low_rank((5, 7, 3), 1, 1),
    "power_sgd, one number a vector": _low_rank((1, 9, 1), 2, 3),
    "power_sgd, vectors as columns": _low_rank((5, 7, 3), 2, 2, columns=True),
    "power_sgd, shapes alike": _low_rank((6, 6, 6), 2, 2, warm=2, mcr=0.5),
    "power_sgd, three half-steps": _low_rank((9, 8, 5), 4, 2, iters=3, warm=1, mcr=0.6),
    "power_sgd, nothing gained": _low_rank((8, 12, 6), 2, 4, mcr=50, m=0.0),
    "power_sgd, Nesterov": _low_rank((8, 12, 6), 2, 2, mcr=2.0, nesterov=True),
    "power_sgd, single": _low_rank((8, 12, 6), 2, 2, iters=3, dtype="float32"),
    "choco, single": _gossip("choco", "ring", "top", dtype="float32"),
    "choco on 20": _gossip("choco", "ring", "top", W=convex.ring(20), d=30, k=4, steps=20),
    "choco on 2": _gossip("choco", "ring", "top", W=convex.ring(2), k=99, gamma=1.0),
    "plain, single": _gossip("plain", "of our own", dtype="float32"),
    "plain, certain of its labels": _gossip("plain", "ring", scale=300.0, lr=0.01, penalty=0.0),
    "push_sum of 2": lambda path: push_sum(path, 2, T=3),
    "push_sum, both ways": lambda path: push_sum(path, 6, 2, "DynamicDirectedExponentialGraph"),
    "push_sum on a graph of its own": lambda path: push_sum(path, 7, 3, "of our own", d=1),
    "push_sum, single": lambda path: push_sum(path, 9, 2, dtype="float32", even=True),
    "moshpit with holes": lambda path: moshpit(path, 4, 2, 13),
    "moshpit of one axis": lambda path: moshpit(path, 5, 1, 5, failures=0.0),
    "moshpit of four axes": lambda path: moshpit(path, 2, 4, 16, failures=0.6),
    "int8_ring of one": lambda path: int8_ring(path, 1, 16),
    "int8_ring of five": lambda path: int8_ring(path, 5, 200, "AVG", seed=1),
    "int8_ring of faint values": lambda path: int8_ring(path, 2, 40, scale=1e-6),
    "codecs": lambda path: primitives(path, seed=4),
    "codecs, single": lambda path: primitives(path, (40,), (4, 7), dtype="float32", chunk=64),
    "codecs of faint values": lambda path: primitives(path, (3, 4, 5), scale=1e-4, sigmas=4),
}
for topology in convex.MATRICES:
    CASES[f"plain, {topology}"] = _gossip("plain", topology)
    CASES[f"choco, {topology}"] = _gossip("choco", topology, "top")
CASES |= {f"choco, {kind}": _gossip("choco", "ring", kind) for kind in convex.CODECS}


@pytest.mark.parametrize("name", CASES)
def test_every_array_is_that_of_a_plain_loop(name, tmp_path):
    rows = judge(CASES[name](tmp_path / "case.npz"))
    assert [(row.what, row.ours, row.tolerance) for row in rows if not row.holds] == []


def _stored(path):
    with np.load(path) as stored:
        arrays = dict(stored)
    return json.loads(str(arrays.pop("meta"))), arrays


def _write(path, meta, arrays):
    np.savez(path, meta=np.array(json.dumps(meta)), **arrays)
    return path


def _off(array, single):
    """The array with one number a little off."""
    array = array.copy()
    first = array.reshape(-1)[:1]
    if array.dtype == bool:
        first ^= True
    elif array.dtype.kind in "iu":
        first += 1 if first < 200 else -1
    else:
        first += (1e-4 if single else 1e-10) * max(1, np.abs(array).max())
    return array


FREE = {
    "sparse_loco, 8 bits": {"X"},
    "power_sgd": {"Q0_group0", "Q0_group1"},
    "codecs": {"qsgd_u", "split_chunk", *(f"dct_{name}_chunk" for name in "abcde")},
}
"""Arrays that may be a little off: never used, draws, lengths with the same divisors, and data of
which float32 makes no more than that of losses."""
ALIKE = ("W2_", "b1_")
"""Of tensors that are treated as others are."""


@pytest.mark.parametrize(
    "name",
    [
        "sparse_loco",
        "sparse_loco, 8 bits",
        "power_sgd",
        "choco, top",
        "plain, ring",
        "push_sum of 2",
        "moshpit with holes",
        "int8_ring of five",
        "codecs",
    ],
)
def test_a_number_that_is_off_is_told_in_every_array(name, tmp_path):
    meta, arrays = _stored(CASES[name](tmp_path / "case.npz"))
    single = any(array.dtype == np.float32 for array in arrays.values())
    missed = []
    for key, array in arrays.items():
        if key.startswith(ALIKE):
            continue
        changed = _write(tmp_path / "off.npz", meta, arrays | {key: _off(array, single)})
        told = main(["validate", "golden", str(changed)]) > 0
        missed += [] if told else [key]
    assert set(missed) <= FREE.get(name, set())


@pytest.mark.parametrize(
    ("name", "meta", "said"),
    [
        ("choco, top", {"quantization": "topp"}, "top"),
        ("choco, top", {"coordinates_to_keep": None}, "coordinates_to_keep"),
        ("choco, top", {"consensus_lr": "small"}, "must be a number"),
        ("choco, top", {"loss": "hinge"}, "meta.loss"),
        ("plain, ring", {"workers": 5}, "do not belong together"),
        ("plain, ring", {"algorithm": "dcd-psgd"}, "meta.algorithm"),
        ("int8_ring of five", {"op": "MAX"}, "SUM"),
        ("int8_ring of five", {"workers": 4}, "do not belong together"),
        ("push_sum of 2", {"T": 5}, "do not belong together"),
        ("moshpit with holes", {"nodes": 12}, "do not belong together"),
        ("moshpit with holes", {"grid_size": 2}, "too few"),
        ("power_sgd", {"compressed_mask": {"W1": True}}, "compressed_mask"),
        ("power_sgd", {"dtype": "bfloat16"}, "float32 or float64"),
        ("sparse_loco", {"inner": "Shampoo"}, "AdamW"),
        ("sparse_loco", {"quant": "8bit"}, "true or false"),
        ("sparse_loco", {"k": 2.5}, "whole number"),
        ("sparse_loco", {"k": 2}, "do not belong together"),
        ("sparse_loco", {"H": 4}, "do not belong together"),
    ],
)
def test_meta_that_is_not_known_is_an_error(name, meta, said, tmp_path, capsys):
    known, arrays = _stored(CASES[name](tmp_path / "case.npz"))
    path = _write(tmp_path / "case.npz", known | meta, arrays)
    assert main(["validate", "golden", str(path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("choco, top", {"consensus_lr": 0.11}),
        ("choco, top", {"coordinates_to_keep": 3}),
        ("plain, ring", {"regularizer": 0.0}),
        ("push_sum, both ways", {"graph": "NPeerDynamicDirectedExponentialGraph"}),
        ("moshpit with holes", {"grid_dims": 3}),
        ("int8_ring of five", {"op": "SUM"}),
        ("power_sgd", {"iters": 1}),
        ("power_sgd", {"mcr": 3.0}),
        ("power_sgd", {"m": 0.8}),
        ("sparse_loco", {"decay": 0.9}),
        ("sparse_loco", {"outer_lr": 0.9}),
        ("sparse_loco, 2 bits", {"range": 5}),
        ("codecs", {"range_in_sigmas": 5}),
    ],
)
def test_another_value_than_that_of_the_file_fails(name, meta, tmp_path):
    known, arrays = _stored(CASES[name](tmp_path / "case.npz"))
    path = _write(tmp_path / "case.npz", known | meta, arrays)
    assert main(["validate", "golden", str(path)]) == 1


def test_tensors_of_another_model_are_replayed_with_the_gradients_of_the_file(tmp_path):
    meta, arrays = _stored(CASES["power_sgd"](tmp_path / "case.npz"))
    names = {"W1": "in.weight", "b1": "in.bias", "W2": "out_weight", "b2": "z"}
    new = {}
    for key, array in arrays.items():
        tensor, _, what = key.partition("_")
        new[f"{names[tensor]}_{what}" if tensor in names else key] = array
    for key in ("X", "Y", "loss"):
        del new[key]
    meta["compressed_mask"] = {names[k]: v for k, v in meta["compressed_mask"].items()}
    rows = judge(_write(tmp_path / "case.npz", meta, new))
    assert [row.what for row in rows if not row.holds] == []


@pytest.mark.parametrize("name", ["sparse_loco", "power_sgd"])
def test_what_is_left_out_is_not_missed(name, tmp_path):
    meta, arrays = _stored(CASES[name](tmp_path / "case.npz"))
    optional = ("_residual", "_agg", "_idx", "_val", "_grad", "_pseudograd", "loss")
    kept = {key: array for key, array in arrays.items() if not key.endswith(optional)}
    assert main(["validate", "golden", str(_write(tmp_path / "case.npz", meta, kept))]) == 0
    kept["b2_params"][-1] += 1e-9
    assert main(["validate", "golden", str(_write(tmp_path / "case.npz", meta, kept))]) == 1


def test_what_is_not_compared_is_named(tmp_path):
    meta, arrays = _stored(CASES["push_sum on a graph of its own"](tmp_path / "case.npz"))
    rows = judge(_write(tmp_path / "case.npz", meta | {"hops": 3}, arrays | {"y": np.ones(2)}))
    named = {row.what.split(": ")[1] for row in rows if not row.judged}
    assert {"out_peers, not checked", "y, not checked", "meta.hops, not checked"} <= named
