"""Golden files of other shapes, workers, options and types, made by loops in plain numpy.

An independent oracle of our strategies and of what replays such files: the generators, in
`tests/golden_cases`, share no code with either.
"""

import json

import numpy as np
import pytest
from golden_cases.demo import demo
from golden_cases.diloco import ADAMW, exo_gym, torchft
from golden_cases.gossip import noloco, sparta
from golden_cases.mlp import Problem
from golden_cases.server import async_diloco, muon

from experiments.validate.golden.judge import judge

HALVES = [["W1", "b1"], ["W2", "b2"]]
MIXED = [["b2"], ["W2", "b1"], ["W1"]]
SLOW = {"inner": "adamw", "inner_lr": 0.01, "options": ADAMW}
ADAM = ("adam", {"betas": (0.9, 0.999), "eps": 1e-8})
SECONDS = [0.58, 0.75, 1.51, 3.33]


def _problem(T=12, N=3, **options):
    return Problem(T, N, **options)


def _single(**options):
    return _problem(dtype="float32", **options)


CASES = {
    "demo, 5 workers": lambda f: demo(f, _problem(T=6, N=5, shape=(8, 12, 6)), 4, 3),
    "demo alone": lambda f: demo(f, _problem(T=6, N=1), 4, 2, decay=0.9),
    "demo, one coefficient": lambda f: demo(f, _problem(T=8, shape=(6, 9, 3)), 3, 1),
    "demo, primes": lambda f: demo(
        f, _problem(shape=(7, 11, 5)), 4, 2, 0.9, 0.05, np.linspace(0.02, 0.001, 12)
    ),
    "demo, wide, single": lambda f: demo(
        f, _single(T=4, N=2, shape=(48, 64, 10)), 16, 9, residual=False, lr=0.3
    ),
    "demo, dead chunk": lambda f: demo(f, _problem(T=6, shape=(8, 12, 6), dead=(4, 5, 6, 7)), 4, 3),
    "demo, dead unit": lambda f: demo(f, _problem(T=6, shape=(8, 12, 6), dead=(5,)), 4, 3),
    "diloco": lambda f: torchft(f, _problem(T=13, N=2), 3),
    "diloco alone": lambda f: torchft(f, _problem(N=1), 4, nesterov=False, outer_m=0.5),
    "diloco, plain mean": lambda f: torchft(
        f, _problem(N=4), 4, nesterov=False, outer_m=0.0, outer_lr=1.0
    ),
    "diloco, Adam": lambda f: torchft(f, _problem(), 5, inner="adam", options=ADAM[1]),
    "diloco, inner momentum": lambda f: torchft(
        f, _problem(), 4, options={"momentum": 0.9}, inner_momentum=0.9
    ),
    "diloco, single": lambda f: torchft(f, _single(T=30, N=5), 5, **SLOW),
    "streaming, 3 fragments": lambda f: torchft(f, _problem(T=20), 6, MIXED, 1, 0.25),
    "streaming, no overlap": lambda f: torchft(f, _problem(T=11, N=2), 4, HALVES, 0, 0.9),
    "streaming, one fragment": lambda f: torchft(f, _problem(T=21), 5, None, 2, 0.3),
    "streaming, single": lambda f: torchft(f, _single(T=25), 12, HALVES, 4, 0.5, **SLOW),
    "exo-gym": lambda f: exo_gym(f, _problem(T=14, N=4), 3),
    "exo-gym alone": lambda f: exo_gym(f, _problem(N=1), 3),
    "exo-gym, AdamW": lambda f: exo_gym(
        f, _single(T=14), 4, ("adamw", ADAMW), 0.01, said="AdamW(betas=(0.9, 0.95), wd=0.1)"
    ),
    "sparta": lambda f: sparta(
        f, _problem(N=4), 0.3, ("sgd", {"momentum": 0.9}), inner_momentum=0.9
    ),
    "sparta, single": lambda f: sparta(f, _single(T=40), 0.05),
    "noloco": lambda f: noloco(f, _problem(T=14, N=6), 4, outer_lr=0.6, outer_m=0.3),
    "noloco, odd": lambda f: noloco(f, _problem(N=5), 3, gamma=0.9),
    "noloco, threes": lambda f: noloco(
        f, _problem(N=6), 2, 3, ("adamw", ADAMW), said="AdamW betas (0.9,0.95) eps 1e-8 wd 0.1"
    ),
    "noloco, single": lambda f: noloco(f, _single(T=20, N=4), 5),
    "async, window": lambda f: async_diloco(f, _problem(), [*SECONDS, 0.4], wait=3.0),
    "async, ties": lambda f: async_diloco(
        f, _problem(), [0.3, 0.1, 0.7, 0.2, 0.9], 30, 3, 0.2, "constant"
    ),
    "async, delayed": lambda f: async_diloco(f, _problem(), SECONDS, method="delayed_sgd"),
    "async, heavy ball": lambda f: async_diloco(
        f, _single(), SECONDS, outer={"lr": 0.1, "momentum": 0.8, "nesterov": False}
    ),
    "muon, tall": lambda f: muon(f, {"w": (40, 12)}, 9, weight_decay=0.1),
    "muon, some": lambda f: muon(f, {"a": (8, 6), "embed": (6, 20)}, nesterov=False, ns_steps=3),
    "muon, double": lambda f: muon(f, {"W": (9, 5)}, lr=0.1, dtype="float64"),
}


@pytest.mark.parametrize("name", CASES)
def test_another_case_is_replayed(name, tmp_path):
    rows = judge(CASES[name](tmp_path / "case.npz"))
    assert [row.what for row in rows if row.judged and not row.holds] == []
    assert {row.what for row in rows if not row.judged} <= _unused(name)


def _unused(name):
    """What torch has no buffer for."""
    keys = ("W1", "b1", "W2", "b2") if name == "diloco, plain mean" else ()
    return {f"case: {key}_outer_momentum, not checked" for key in keys}


def _changed(path, **arrays):
    with np.load(path) as stored:
        found = dict(stored)
    np.savez(path, **(found | arrays))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "demo, 5 workers",
        "diloco",
        "streaming, 3 fragments",
        "exo-gym",
        "sparta",
        "noloco",
        "async, window",
        "muon, double",
    ],
)
def test_a_wrong_number_in_any_array_is_told(name, tmp_path):
    path = CASES[name](tmp_path / "case.npz")
    with np.load(path) as stored:
        arrays = {k: a for k, a in stored.items() if k[:2] not in ("me", "W1", "b1", "b2")}
    for key, array in arrays.items():
        wrong = array.copy()
        at = tuple(n // 2 for n in array.shape)
        if array.dtype.kind == "f":
            wrong[at] += 0.1 * max(1.0, np.abs(array).max()) if "muon" in name else 1e-9
        else:
            wrong[at] = not wrong[at] if array.dtype == bool else wrong[at] + 1
        assert _fails(_changed(path, **{key: wrong})), key
        _changed(path, **{key: array})


def _fails(path):
    """Whether a file is refused, or a row of it does not hold."""
    try:
        return not all(row.holds for row in judge(path) if row.judged)
    except ValueError:
        return True


@pytest.mark.parametrize(
    ("name", "meta", "said"),
    [
        ("diloco", {"inner": "lion"}, "SGD, Adam, AdamW"),
        ("diloco", {"inner": "sgd dampening 0.1"}, "constant options"),
        ("diloco", {"inner": "sgd eps 1"}, "eps"),
        ("diloco", {"inner": "adam wd 0.1"}, "decays apart"),
        ("diloco", {"H": "4"}, "must be a number"),
        ("diloco", {"dtype": "bfloat16"}, "float32 or float64"),
        ("streaming, 3 fragments", {"tau": 2}, "less than a slot"),
        ("streaming, 3 fragments", {"fragments": [["W1"], ["b1"]]}, "once"),
        ("demo alone", {"chunk_of_dim": 4}, "chunks by length"),
        ("demo alone", {"dead_hidden_units": [99]}, "6 units"),
        ("demo alone", {"compression_topk": 0}, "0"),
        ("noloco", {"H": 2.5}, "whole number"),
        ("async, ties", {"sync_method": "delayed_nesterov"}, "delayed_sgd"),
        ("async, ties", {"sync_weight_method": "linear"}, "polynomial"),
        ("async, ties", {"sync_time": 0.1}, "must be 0"),
        ("async, ties", {"outer": {"lr": 0.1, "betas": [0.9, 0.99]}}, "lr, and momentum"),
        ("muon, tall", {"nesterov": 1}, "true or false"),
    ],
)
def test_what_meta_says_and_is_not_known_is_refused(name, meta, said, tmp_path):
    path = CASES[name](tmp_path / "case.npz")
    with np.load(path) as stored:
        found = json.loads(str(stored["meta"]))
    with pytest.raises(ValueError, match=said):
        judge(_changed(path, meta=np.array(json.dumps(found | meta))))


def test_an_option_without_effect_is_named(tmp_path):
    path = torchft(tmp_path / "case.npz", _problem(), 4, max_norm=1e9)
    assert "case: meta.max_norm, not checked" in [row.what for row in judge(path) if not row.judged]


def test_names_and_order_of_tensors_do_not_matter(tmp_path):
    path = torchft(tmp_path / "case.npz", _problem(), 4)
    with np.load(path) as stored:
        found = dict(stored)
    names = {"W2": "out.weight", "b2": "out.bias", "W1": "fc.weight", "b1": "fc.bias"}
    meta = json.loads(str(found.pop("meta"))) | {"fragments": [list(names.values())]}
    renamed = {"meta": np.array(json.dumps(meta))} | {
        key.replace(old, new, 1): found[key]
        for old, new in names.items()
        for key in found
        if key.startswith(f"{old}_")
    }
    np.savez(path, **renamed, **{key: found[key] for key in ("X", "Y", "loss")})
    rows = judge(path)
    assert all(row.judged and row.holds for row in rows)
    assert {"grad", "loss", "params"} <= {row.what.split()[1].rstrip(",") for row in rows}
