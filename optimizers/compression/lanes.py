"""Vector instructions for kernels: rows turned, a tile transposed, bits made of values and back.

Left to itself the compiler has to expect that the rows of a matrix overlap, and moves the values
of a transpose one by one. Vectors are of a fixed number of values; a machine with shorter ones
takes several instructions for each. Nothing is checked: what is read and written must be there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import unpack_tuple
from numba.extending import intrinsic

LANES = 32
"""Values of each row that are turned at once."""
TILE = 8
"""Rows and columns of a tile."""
_LINE = 64
"""Bytes that come into the cache together."""
_FUSED = ("contract",)
"""Products may be added without being rounded, as in the kernels around."""
_INDEX = types.int64


def _turner(lanes: int) -> Callable:
    @intrinsic
    def turn(typing_context, x, i, j, first, a, b, c, d):
        """`x[i], x[j] = a x[i] + b x[j], c x[i] + d x[j]` in some columns from `first` on."""
        factor = x.dtype
        signature = types.void(x, _INDEX, _INDEX, _INDEX, factor, factor, factor, factor)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, i, j, first, *factors = args
            place = _places(context, builder, signature.args[0], x, lanes)
            upper, lower = place(i, first), place(j, first)
            align = _bytes(signature.args[0])
            u, v = builder.load(upper, align=align), builder.load(lower, align=align)
            a, b, c, d = (_spread(builder, factor, lanes) for factor in factors)
            for to, s, t in ((upper, a, b), (lower, c, d)):
                products = builder.fmul(s, u, flags=_FUSED), builder.fmul(t, v, flags=_FUSED)
                builder.store(builder.fadd(*products, flags=_FUSED), to, align=align)
            return context.get_dummy_value()

        return signature, generate

    return turn


turn_lanes, turn_half = _turner(LANES), _turner(LANES // 2)
"""Two rows of a matrix turned, in LANES columns and in half as many."""


@intrinsic
def copy_lanes(typing_context, to, i, j, x, first):
    """`to[i, j + q] = x[first + q]` for all q below LANES."""
    signature = types.void(to, _INDEX, _INDEX, x, _INDEX)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, i, j, x, first = args
        target = _places(context, builder, signature.args[0], to, LANES)(i, j)
        source, align = (
            _from(context, builder, signature.args[3], x, first),
            _bytes(signature.args[3]),
        )
        builder.store(builder.load(source, align=align), target, align=align)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_lanes(typing_context, to, first, keep, x, i, j, scale):
    """`to[first + q] = keep to[first + q] + scale x[i, j + q]` for all q below LANES.

    With `keep` 0 it does not matter what was there.
    """
    signature = types.void(to, _INDEX, to.dtype, x, _INDEX, _INDEX, to.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (to, first, keep, x, i, j, scale) = signature.args[0], args
        align, target = _bytes(kind), _from(context, builder, kind, to, first)
        source = _places(context, builder, signature.args[3], x, LANES)(i, j)
        kept, scaled = _spread(builder, keep, LANES), _spread(builder, scale, LANES)
        before, more = (builder.load(at, align=align) for at in (target, source))
        before = builder.fmul(kept, before, flags=_FUSED)
        none = builder.fcmp_ordered("==", keep, ir.Constant(keep.type, 0.0))
        before = builder.select(none, ir.Constant(before.type, [0.0] * LANES), before)
        after = builder.fadd(before, builder.fmul(scaled, more, flags=_FUSED), flags=_FUSED)
        builder.store(after, target, align=align)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def transpose_tile(typing_context, x, order, i, to, j):
    """`to[j + q, i + p] = x[order[i + p], j + q]` for all p and q below TILE."""
    signature = types.void(x, order, _INDEX, to, _INDEX)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, order, i, to, j = args
        source = _places(context, builder, signature.args[0], x, TILE)
        target = _places(context, builder, signature.args[3], to, TILE)
        align = _bytes(signature.args[0])
        numbers = context.make_array(signature.args[1])(context, builder, order).data
        steps = [ir.Constant(i.type, p) for p in range(TILE)]
        rows = [builder.load(builder.gep(numbers, [builder.add(i, p)])) for p in steps]
        tile = [builder.load(source(row, j), align=align) for row in rows]
        for p, row in zip(steps, _transposed(builder, tile)):
            builder.store(row, target(builder.add(j, p), i), align=align)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def negative_lanes(typing_context, x, first):
    """Which of the LANES values from `first` on are below zero, as bits of an integer."""
    signature = types.uint64(x, _INDEX)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (x, first) = signature.args[0], args
        values = builder.load(_from(context, builder, kind, x, first), align=_bytes(kind))
        zeros = ir.Constant(values.type, [0.0] * LANES)
        return _as_bits(builder, builder.fcmp_ordered("<", values, zeros))

    return signature, generate


@intrinsic
def add_signed_lanes(typing_context, to, first, bits, byte, value):
    """Add `value` to LANES values from `first` on; -value where a bit from `byte` on is set."""
    signature = types.void(to, _INDEX, bits, _INDEX, to.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (to, first, bits, byte, value) = signature.args[0], args
        flags = context.make_array(signature.args[2])(context, builder, bits).data
        word = builder.bitcast(builder.gep(flags, [byte]), ir.IntType(LANES).as_pointer())
        negative = ir.VectorType(ir.IntType(1), LANES)
        negative = builder.bitcast(builder.load(word, align=1), negative)
        minus, plus = (_spread(builder, v, LANES) for v in (builder.fneg(value), value))
        place = _from(context, builder, kind, to, first)
        before = builder.load(place, align=_bytes(kind))
        after = builder.fadd(before, builder.select(negative, minus, plus))
        builder.store(after, place, align=_bytes(kind))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def reached_lanes(typing_context, x, first, least):
    """Which of the LANES values from `first` on are at least `least`, as bits of an integer."""
    signature = types.uint64(x, _INDEX, x.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (x, first, least) = signature.args[0], args
        values = builder.load(_from(context, builder, kind, x, first), align=_bytes(kind))
        reached = builder.icmp_signed(">=", values, _spread(builder, least, LANES))
        return _as_bits(builder, reached)

    return signature, generate


@intrinsic
def fetch_lanes(typing_context, x, first):
    """Ask for LANES values from `first` on to be brought near, into the second cache.

    They need not be there.
    """
    signature = types.void(x, _INDEX)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (x, first) = signature.args[0], args
        byte = ir.IntType(8).as_pointer()
        start = builder.bitcast(_from(context, builder, kind, x, first), byte)
        flag = ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], form)
        for line in range(0, LANES * _bytes(kind), _LINE):
            place = builder.gep(start, [ir.Constant(flag, line)])
            builder.call(fetch, [place, *(ir.Constant(flag, n) for n in (0, 2, 1))])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def lowest_bit(typing_context, bits):
    """The number of the lowest bit that is set in an integer, which is not 0."""
    signature = types.int64(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature, generate


def _places(context: Any, builder: Any, kind: Any, value: Any, lanes: int) -> Callable:
    """A function of row and column: where so many values of a matrix begin there."""
    array = context.make_array(kind)(context, builder, value)
    width = unpack_tuple(builder, array.shape)[1]
    vector = ir.VectorType(context.get_data_type(kind.dtype), lanes).as_pointer()

    def place(row: Any, column: Any) -> Any:
        start = builder.add(builder.mul(row, width), column)
        return builder.bitcast(builder.gep(array.data, [start]), vector)

    return place


def _from(context: Any, builder: Any, kind: Any, value: Any, first: Any) -> Any:
    """Where LANES values of a vector begin, at `first`."""
    array = context.make_array(kind)(context, builder, value)
    lanes = ir.VectorType(context.get_data_type(kind.dtype), LANES).as_pointer()
    return builder.bitcast(builder.gep(array.data, [first]), lanes)


def _bytes(kind: Any) -> int:
    """Bytes of a value of an array."""
    return kind.dtype.bitwidth // 8


def _as_bits(builder: Any, flags: Any) -> Any:
    """Flags of LANES values as the lowest bits of an integer."""
    return builder.zext(builder.bitcast(flags, ir.IntType(LANES)), ir.IntType(64))


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one value."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, _chosen([0] * lanes))


def _transposed(builder: Any, rows: list) -> list:
    """The columns of a square tile: pairs of rows exchange blocks of 1, 2, 4, ... values."""
    n, size = len(rows), 1
    while size < n:
        odd = [lane // size % 2 for lane in range(n)]
        kept = [lane + (n - size) * odd[lane] for lane in range(n)]
        moved = [lane + size + (n - size) * odd[lane] for lane in range(n)]
        for p in range(n):
            if not odd[p]:
                pair = rows[p], rows[p + size]
                rows[p] = builder.shuffle_vector(*pair, _chosen(kept))
                rows[p + size] = builder.shuffle_vector(*pair, _chosen(moved))
        size *= 2
    return rows


def _chosen(lanes: list[int]) -> Any:
    """Lanes of two vectors, as the instruction that puts them together wants them."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
