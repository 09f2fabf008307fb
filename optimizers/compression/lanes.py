"""Vector instructions for kernels: rows turned, a tile transposed, the large ones of some values.

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
_FUSED = ("contract",)
"""Products may be added without being rounded, as in the kernels around."""
_INDEX = types.int64


@intrinsic
def turn_lanes(typing_context, x, i, j, first, a, b, c, d):
    """`x[i], x[j] = a x[i] + b x[j], c x[i] + d x[j]` in LANES columns from `first` on."""
    factor = x.dtype
    signature = types.void(x, _INDEX, _INDEX, _INDEX, factor, factor, factor, factor)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, i, j, first, *factors = args
        place = _places(context, builder, signature.args[0], x, LANES)
        upper, lower = place(i, first), place(j, first)
        align = signature.args[0].dtype.bitwidth // 8
        u, v = builder.load(upper, align=align), builder.load(lower, align=align)
        a, b, c, d = (_spread(builder, factor, LANES) for factor in factors)
        for to, s, t in ((upper, a, b), (lower, c, d)):
            products = builder.fmul(s, u, flags=_FUSED), builder.fmul(t, v, flags=_FUSED)
            builder.store(builder.fadd(*products, flags=_FUSED), to, align=align)
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
        align = signature.args[0].dtype.bitwidth // 8
        numbers = context.make_array(signature.args[1])(context, builder, order).data
        steps = [ir.Constant(i.type, p) for p in range(TILE)]
        rows = [builder.load(builder.gep(numbers, [builder.add(i, p)])) for p in steps]
        tile = [builder.load(source(row, j), align=align) for row in rows]
        for p, row in zip(steps, _transposed(builder, tile)):
            builder.store(row, target(builder.add(j, p), i), align=align)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def reached_lanes(typing_context, x, first, least):
    """Which of the LANES values from `first` on are at least `least`, as bits of an integer."""
    signature = types.uint64(x, _INDEX, x.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (x, first, least) = signature.args[0], args
        array = context.make_array(kind)(context, builder, x)
        vector = ir.VectorType(context.get_data_type(kind.dtype), LANES).as_pointer()
        start = builder.bitcast(builder.gep(array.data, [first]), vector)
        values = builder.load(start, align=kind.dtype.bitwidth // 8)
        reached = builder.icmp_signed(">=", values, _spread(builder, least, LANES))
        bits = builder.bitcast(reached, ir.IntType(LANES))
        return builder.zext(bits, ir.IntType(64))

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
