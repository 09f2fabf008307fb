"""The page of codecs is that of the code; its formulas, bounds and collectives hold."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate

from experiments.codecs import FACTS, carriers, choices, codec, markdown
from sim.compute.layout import Layout
from sim.payload import Context
from sim.reduction import CodedRing
from sim.testing import LAYOUT, check_compressor

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compressors.md").read_text()
WIDE = Layout({"embed": (300, 70), "weight": (130, 96), "gain": (5000,), "bias": (1,)})
FIXED = [choice for choice in choices() if choice != "threshold"]
BOUNDED = [choice for choice in choices() if FACTS[choice].contraction != "-"]
CODED = [choice for choice in choices() if "coded ring" in carriers(codec(choice))]
DRAWS = 256


def divisor(n):
    """The side of a block of an axis: the largest divisor that is at most 64."""
    return max(side for side in range(1, 65) if n % side == 0)


def letters(choice, shape):
    """What a formula is made of, for a tensor (or a flat row) of a shape."""
    n, matrix = math.prod(shape), len(shape) > 1
    R, C = (shape[0], n // shape[0]) if matrix else (1, n)
    h, w = divisor(R), divisor(C)
    if choice == "row_top_k" and matrix:
        h, w = 1, C
    e, k = n, max(1, round((0.005 if choice == "shared_mask" else 0.01) * n))
    if choice in ("dct_top_k", "dct_top_k_sign", "row_top_k"):
        e, k = h * w, min(32, h * w)
    elif choice in ("chunk_top_k", "ef_top_k_stat2"):
        e, k = h * w, min(64, h * w)
    elif choice == "flat_top_k":
        e, k = min(4096, n), min(64, n)
    elif choice == "random_blocks":
        block = min(256, n)
        k = block * min(max(1, round(0.01 * n / block)), n // block)
    i = 1 if e <= 2**8 else 2 if e <= 2**16 else 4
    j, f = max(1, math.ceil(math.log2(e))), min(n, min(4, R, C) * (R + C))
    counted = {"n": n, "u": math.ceil(n / e), "k": k, "e": e, "i": i, "j": j}
    return {**counted, "R": R, "C": C, "f": f, "ceil": math.ceil, "sqrt": math.sqrt}


def units(choice, layout):
    """The shapes of what is encoded at once."""
    each = codec(choice).separable and choice not in ("bf16", "dense", "fp16", "none")
    return [shape or (1,) for shape in layout.shapes.values()] if each else [(layout.numel,)]


def test_the_table_is_that_of_the_code():
    assert set(FACTS) == set(choices())
    assert f"\n{markdown()}\n" in PAGE


def test_the_composed_codec_of_the_page_conforms():
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    made = instantiate(yaml.safe_load(text))
    check_compressor(made)
    assert made.codec.decay == 0.95


def test_every_golden_file_that_is_named_is_there():
    there = {path.stem for path in (ROOT / "tests" / "golden").glob("*.npz")}
    named = {name for facts in FACTS.values() for name in re.findall(r"`(\w+)`", facts.checked)}
    assert "compressors_reference" in named
    assert named <= there


@pytest.mark.parametrize("layout", [LAYOUT, WIDE], ids=["odd", "wide"])
@pytest.mark.parametrize("choice", FIXED)
def test_bytes_are_those_of_the_formula(choice, layout):
    facts, total = FACTS[choice], 0
    for shape in units(choice, layout):
        formula = facts.vectors if facts.vectors and len(shape) == 1 else facts.nbytes
        total += eval(formula, letters(choice, shape))
    assert codec(choice).nbytes(layout) == total


def test_bytes_of_what_stands_out_are_those_of_the_formula():
    x = torch.zeros(1, 300)
    x[0, :7] = torch.arange(1, 8) * 10.0
    known = codec("threshold")
    ctx = Context(Layout.flat(300), 0, np.zeros(1, np.int64), 0)
    payload, _ = known.encode(x, None, ctx)
    kept = int((payload.decode() != 0).sum())
    assert 0 < kept <= 7
    assert payload.sizes == [eval(FACTS["threshold"].nbytes, {"k": kept, "i": 2})]


@pytest.mark.parametrize("choice", BOUNDED)
def test_the_error_of_a_codec_is_within_its_bound(choice):
    layout = Layout({"weight": (64, 48)})
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(layout.numel)
    cases = {
        "normal": normal,
        "heavy": normal / rng.random(layout.numel),
        "one": np.where(np.arange(layout.numel) == 5, 1.0, 0.0),
        "equal": np.ones(layout.numel),
        "half a level": np.where(np.arange(layout.numel) % 256 == 0, 14.0, 0.999),
        "nearly zero": np.where(np.arange(layout.numel) % 256 == 0, 16.0, 0.249),
    }
    (shape,) = units(choice, layout)
    delta = eval(FACTS[choice].contraction, letters(choice, shape))
    known, nodes = codec(choice), np.arange(DRAWS)
    ctx = Context(layout, nodes, nodes, 0)  # of each draw another step
    for name, values in cases.items():
        x = torch.from_numpy(values).float().repeat(DRAWS, 1)
        decoded = known.encode(x, known.init(layout, DRAWS), ctx)[0].decode()
        lost = (x - decoded).double().square().sum(1) / x.double().square().sum(1)
        slack = 4 * lost.std().item() / DRAWS**0.5 + 1e-6
        assert lost.mean().item() <= 1 - delta + slack, name


def test_who_feeds_back_the_error_is_what_the_codec_holds():
    for choice in choices():
        inside = FACTS[choice].feedback == "inside"
        assert inside == ("ErrorFeedback" in repr(codec(choice))), choice
        scaled = "scaled=True" in repr(codec(choice))
        assert (FACTS[choice].feedback == "never") == scaled, choice


@pytest.mark.parametrize("choice", CODED)
def test_a_ring_that_encodes_at_every_hop_carries_what_the_table_says(choice):
    rows = torch.randn(3, 97, generator=torch.Generator().manual_seed(0))
    mean = CodedRing(codec(choice)).around(rows)
    assert mean.shape == (97,)
    assert bool(mean.isfinite().all())
