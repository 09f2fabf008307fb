"""Wires, payloads and the conformance kit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sim.compute.layout import Layout
from sim.payload import Compressor, Context, Dense, Payload, Wire
from sim.testing import check_compressor

FLAT = Layout.flat(6)


def context(n, layout=FLAT, step=0, seed=0):
    return Context(layout, step, np.arange(n), seed)


def encoded(x, codec):
    return codec.encode(x, codec.init(Layout.flat(x.shape[1]), len(x)), context(len(x)))[0]


def rows(low, high, dtype=np.int64):
    shape = st.tuples(st.integers(1, 4), st.integers(0, 23))
    return hnp.arrays(dtype, shape, elements=st.integers(low, high))


def assert_round_trip(wire):
    packed = wire.pack()
    assert [len(row) for row in packed] == wire.sizes
    assert torch.equal(wire.unpack(packed).data, wire.data)


@given(data=st.data(), bits=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_indices_of_any_number_of_bits_survive_packing(data, bits):
    wire = Wire(torch.from_numpy(data.draw(rows(0, 2**bits - 1))), bits=bits)
    assert wire.nbytes == -(-wire.data.shape[1] * bits // 8)
    assert_round_trip(wire)


@given(data=st.data(), bits=st.integers(2, 16))
@settings(max_examples=60, deadline=None)
def test_signed_codes_held_as_floats_survive_packing(data, bits):
    half = 2 ** (bits - 1)
    assert_round_trip(Wire(torch.from_numpy(data.draw(rows(-half, half - 1))).float(), bits=bits))


@given(data=st.data(), symbols=st.integers(2, 256))
@settings(max_examples=60, deadline=None)
def test_symbols_of_any_number_survive_packing(data, symbols):
    low = -(symbols // 2)
    codes = torch.from_numpy(data.draw(rows(low, low + symbols - 1)))
    assert_round_trip(Wire(codes.float(), symbols=symbols))
    assert_round_trip(Wire(codes - low, symbols=symbols))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_bits_and_signs_survive_packing(data):
    flags = torch.from_numpy(data.draw(rows(0, 1))).bool()
    assert_round_trip(Wire(flags))
    assert_round_trip(Wire(1.0 - 2.0 * flags, bits=1))


@pytest.mark.parametrize(
    ("dtype", "itemsize"),
    [
        ("float64", 8),
        ("float32", 4),
        ("bfloat16", 2),
        ("float16", 2),
        ("float8_e4m3fn", 1),
        ("float8_e5m2", 1),
        ("native", 8),
    ],
)
def test_floats_arrive_as_they_were_rounded_at_the_sender(dtype, itemsize):
    wire = Wire(torch.randn(3, 7, dtype=torch.float64), dtype=dtype)
    assert wire.nbytes == 7 * itemsize
    assert wire.data.dtype == torch.float64
    assert_round_trip(wire)


@settings(deadline=None)  # compiled at the first call
@given(bits=hnp.arrays(np.uint32, st.integers(0, 40)))
def test_bfloat16_is_rounded_as_torch_does_for_any_bits(bits):
    values = torch.from_numpy(bits.view(np.float32)).expand(2, -1)
    there = Wire(values, dtype="bfloat16").data
    wanted = values.to(torch.bfloat16).to(torch.float32)
    torch.testing.assert_close(there, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(there.signbit() & ~there.isnan(), wanted.signbit() & ~wanted.isnan())


@pytest.mark.parametrize(
    "special", [0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4028235e38, float("inf"), float("nan"), 1e-45]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_and_the_ends_of_the_range_become_bfloat16(special, sign):
    values = torch.tensor([[sign * special]])
    wanted = values.to(torch.bfloat16).to(torch.float32)
    there = Wire(values, dtype="bfloat16").data
    torch.testing.assert_close(there, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "top"), [("uint8", 2**8), ("uint16", 2**16), ("uint32", 2**32), ("int64", 2**63)]
)
def test_the_largest_index_of_each_width_survives(dtype, top):
    assert_round_trip(Wire(torch.tensor([[0, top - 1], [1, 2]]), dtype=dtype))


def test_five_trits_share_a_byte():
    assert [Wire(torch.zeros(1, m), symbols=3).nbytes for m in (1, 5, 6, 10)] == [1, 1, 2, 2]


@pytest.mark.parametrize(("symbols", "bits"), [(2, 1), (3, 1.6), (5, 8 / 3), (16, 4), (64, 6)])
def test_symbols_share_bytes_or_are_a_stream_of_bits_whichever_is_shorter(symbols, bits):
    assert Wire(torch.zeros(1, 240), symbols=symbols).nbytes == 240 * bits / 8


def test_signs_are_packed_least_significant_bit_first():
    wire = Wire(torch.tensor([[-1.0, 1, 1, 1, 1, 1, 1, 1, -1]]), bits=1)
    assert wire.pack() == [bytes([1, 1])]


@pytest.mark.parametrize(
    ("dtype", "most"), [("float16", 65504.0), ("float8_e4m3fn", 448.0), ("float8_e5m2", 57344.0)]
)
def test_narrow_floats_saturate_instead_of_overflowing(dtype, most):
    assert Wire(torch.tensor([[1e6, -1e6]]), dtype=dtype).data.tolist() == [[most, -most]]


def test_a_scale_of_32_bits_is_a_float32():
    third = Wire(torch.tensor([[1 / 3]], dtype=torch.float64), bits=32)
    assert third.nbytes == 4
    assert third.data.item() == np.float32(1 / 3)


def test_ragged_rows_cost_what_they_hold():
    wire = Wire(torch.ones(2, 5), dtype="float32", counts=[1, 5])
    assert wire.sizes == [4, 20] == [len(row) for row in wire.pack()]
    assert (wire.nbytes, wire.numel) == (20, 3)


@pytest.mark.parametrize(
    "wire",
    [
        Wire(torch.tensor([[2.0]]), symbols=3),
        Wire(torch.tensor([[0.5]]), bits=8),
        Wire(torch.tensor([[128.0]]), bits=8),
        Wire(torch.tensor([[0.0]]), bits=1),
        Wire(torch.tensor([[70000]]), dtype="uint16"),
        Wire(torch.zeros(1, 1, device="meta")),
    ],
)
def test_packing_refuses_what_does_not_fit(wire):
    with pytest.raises(ValueError):
        wire.pack()


@pytest.mark.parametrize(
    "options",
    [{"bits": 0}, {"bits": 1.5}, {"symbols": 1}, {"dtype": "float8"}, {"bits": 8, "symbols": 3}],
)
def test_a_wire_refuses_a_format_that_does_not_exist(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Wire(torch.zeros(1, 1), **options)


def test_a_payload_adds_up_the_bytes_of_body_and_side():
    payload = Payload(Dense(), (6,), Wire(torch.zeros(2, 6), symbols=3), s=Wire(torch.zeros(2, 1)))
    assert payload.sizes == [2 + 4, 2 + 4]


def test_ragged_wires_need_their_count_beside_them():
    with pytest.raises(ValueError, match="count"):
        Payload(Dense(), (2,), Wire(torch.zeros(1, 2), counts=[1]))


@pytest.mark.parametrize("change", [lambda row: row[:-1], lambda row: row + b"x"])
def test_unpacking_refuses_rows_of_another_length(change):
    payload = encoded(torch.randn(2, 6), Dense())
    with pytest.raises(ValueError, match="row 1"):
        payload.unpack_like([payload.pack()[0], change(payload.pack()[1])])


def test_rows_are_picked_with_a_tensor_or_a_list():
    payload = encoded(torch.arange(18.0).reshape(3, 6), Dense())
    assert torch.equal(payload.rows(torch.tensor([2, 0])).decode(), payload.decode()[[2, 0]])
    assert torch.equal(Payload.cat([payload.rows([0]), payload.rows([1, 2])]).body, payload.body)


def test_a_slice_of_rows_is_a_view():
    payload = Payload(Dense(), (3,), Wire(torch.arange(12.0).reshape(4, 3)))
    some = payload.rows(slice(1, 3))
    assert some.decode().tolist() == payload.rows([1, 2]).decode().tolist()
    assert some.decode().data_ptr() == payload.decode()[1].data_ptr()


def test_all_rows_in_order_are_the_payload_itself():
    payload = encoded(torch.zeros(3, 6), Dense())
    assert payload.rows([0, 1, 2]) is payload
    assert payload.rows([0, 2, 1]) is not payload


def test_pieces_of_a_payload_are_views_that_cat_puts_together():
    x = torch.arange(24.0).reshape(4, 6)
    first, second = encoded(x, Dense()).split(2)
    assert torch.equal(Payload.cat([first, second]).body, x)
    assert second.body.data_ptr() == x[2:].data_ptr()


def test_pieces_of_ragged_rows_keep_their_counts():
    data, counts = torch.ones(4, 3), [1, 3, 2, 0]
    count = Wire(torch.tensor(counts)[:, None], dtype="int32")
    payload = Payload(Dense(), (3,), Wire(data, dtype="float32", counts=counts), count=count)
    assert [piece.sizes for piece in payload.split(2)] == [[4 + 4, 4 + 12], [4 + 8, 4]]


def test_combine_weighs_rows():
    payload = encoded(torch.tensor([[1.0] * 6, [5.0] * 6]), Dense())
    assert payload.combine(weights=torch.tensor([3.0, 1.0])).tolist() == [2.0] * 6


def test_combine_refuses_an_unknown_rule_and_no_rows():
    payload = encoded(torch.zeros(2, 6), Dense())
    with pytest.raises(ValueError, match="everybody"):
        payload.combine("everybody")
    with pytest.raises(ValueError, match="no rows"):
        payload.rows([]).combine()


def test_sums_of_16_bit_floats_are_not_rounded_again():
    payload = encoded(torch.tensor([[256.0] * 6, [1.0] * 6]), Dense("bfloat16"))
    assert payload.combine().tolist() == [128.5] * 6  # bfloat16 has no 257 to halve


@pytest.mark.parametrize(
    ("dtype", "nbytes"), [("float32", 24), ("bfloat16", 12), ("float16", 12), ("float64", 48)]
)
def test_dense_costs_its_type(dtype, nbytes):
    assert Dense(dtype).nbytes(FLAT) == nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "native"])
def test_dense_conforms(dtype):
    check_compressor(Dense(dtype))


def test_draws_depend_on_seed_node_step_and_tensor_only():
    x = torch.empty(3, 4)
    draws = context(3).uniforms("a", x)
    assert torch.equal(replace(context(3), nodes=np.array([2])).uniforms("a", x[:1]), draws[2:])
    others = [
        context(3, step=1).uniforms("a", x),
        context(3, seed=1).uniforms("a", x),
        context(3, layout=Layout({"w": (6,)})).uniforms("a", x),
        context(3).uniforms("b", x),
    ]
    assert all(not torch.equal(other, draws) for other in others)
    assert ((draws >= 0) & (draws < 1)).all()


def test_shared_seeds_are_equal_across_nodes_and_differ_across_steps():
    assert context(4).shared_seeds("a").unique().numel() == 1
    assert context(4, step=np.arange(4)).shared_seeds("a").unique().numel() == 4


@dataclass(frozen=True)
class Broken(Compressor):
    """A dense codec with one fault, or one flag that it does not deserve."""

    fault: str

    def __post_init__(self):
        for flag in ("linear", "unbiased", "shared_support", "summable", "telescopes"):
            object.__setattr__(self, flag, self.fault == flag)
        object.__setattr__(self, "zero_preserving", self.fault == "zero_preserving")

    def init(self, layout, n):
        return torch.zeros(n, layout.numel) if self.fault == "telescopes" else None

    def encode(self, x, state, ctx):
        values = {
            "batch": lambda: x - x.mean(),
            "deterministic": lambda: x + ctx.uniforms("fault", x),
            "size": lambda: x if x.is_meta else x.repeat(1, 2),
            "input": lambda: x.mul_(2),
            "dtype": lambda: x.float(),
        }.get(self.fault, lambda: x)()
        return Payload(self, x.shape[1:], Wire(values)), state

    def decode(self, payload):
        x = payload.body[:, : payload.shape[0]]
        decoded = {
            "zero_preserving": lambda: x + 1,
            "unbiased": lambda: x.abs(),
            "linear": lambda: x.abs(),
            "telescopes": lambda: 2 * x,
        }.get(self.fault, lambda: x)
        return decoded()

    def aggregate(self, payload, over, weights, runs=1):
        weights = payload.body.new_ones(payload.n // runs) if weights is None else weights
        rows = payload.decode().unflatten(0, (runs, -1))
        mean = (weights[:, None] * rows).sum(1) / weights.sum()
        return mean * 2 if self.fault == "combine" or over == "senders" else mean


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("batch", "alone"),
        ("size", "nbytes"),
        ("input", "written to its input"),
        ("dtype", "float64"),
        ("combine", "not the mean"),
        ("deterministic", "deterministic, but"),
        ("zero_preserving", "zero_preserving, but"),
        ("summable", "summable, but not linear"),
        ("linear", "linear, but"),
        ("shared_support", "shared_support, but"),
        ("telescopes", "telescopes, but"),
        ("unbiased", "unbiased, but"),
    ],
)
def test_the_kit_names_the_broken_promise(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_compressor(Broken(fault))


@dataclass(frozen=True)
class Unsent(Compressor):
    """Keeps on the sender what decoding needs."""

    def encode(self, x, state, ctx):
        payload = Payload(self, x.shape[1:], Wire(x.sign(), symbols=3))
        payload.exact = Wire(x)
        return payload, state

    def decode(self, payload):
        return payload.body if payload.exact is None else payload.exact.data


def test_the_kit_finds_values_that_never_travelled():
    with pytest.raises(AssertionError, match="not on a wire"):
        check_compressor(Unsent())
