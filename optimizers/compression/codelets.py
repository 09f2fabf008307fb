"""Cosine transforms of common lengths as straight code, whose values stay in registers.

Read from a table, each step of `rotations` costs two reads and two writes of memory, which is what
time goes into. Here the steps of a length are written out when the kernel is compiled, with their
factors in the code; sums and differences are scaled after they are made, on units of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import unpack_tuple
from numba.extending import intrinsic

from optimizers.compression.rotations import Rotations, cosine_rotations

LENGTHS = (16, 32, 48, 64)
"""Points of the transforms that are here."""
WIDTH = 64
"""Bytes of the columns that are turned at once."""
_FUSED = ("contract",)


@intrinsic
def turn_columns(typing_context, x, first, back):
    """The steps of `cosine_rotations(len(x))`, or those `undone`, on some columns from `first` on.

    There are as many columns as take WIDTH bytes. The length must be one of LENGTHS.
    """
    signature = types.void(x, types.int64, types.boolean)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, (x, first, back) = signature.args[0], args
        array = context.make_array(kind)(context, builder, x)
        n, width = unpack_tuple(builder, array.shape)
        start = builder.gep(array.data, [first])
        number, lanes = context.get_data_type(kind.dtype), WIDTH * 8 // kind.dtype.bitwidth
        vector = ir.VectorType(number, lanes)
        for length in LENGTHS:
            with builder.if_then(builder.icmp_signed("==", n, ir.Constant(n.type, length))):
                rows = [
                    builder.gep(start, [builder.mul(width, ir.Constant(width.type, i))])
                    for i in range(length)
                ]
                places = [builder.bitcast(row, vector.as_pointer()) for row in rows]
                there = cosine_rotations(length)
                with builder.if_else(back) as (then, otherwise):
                    for branch, plan in ((then, there.undone), (otherwise, there)):
                        with branch:
                            _turn(builder, places, plan, kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return signature, generate


def _turn(builder: Any, places: list, plan: Rotations, align: int) -> None:
    """Emit the steps of a plan on the vectors at these places."""
    x = [builder.load(place, align=align) for place in places]
    for (i, j), turn in zip(plan.places.tolist(), plan.turns):
        x[i], x[j] = _turned(builder, x[i], x[j], turn)
    for place, value in zip(places, x):
        builder.store(value, place, align=align)


def _turned(builder: Any, u: Any, v: Any, turn: np.ndarray) -> tuple[Any, Any]:
    """`a u + b v` and `c u + d v`, of a step's four factors."""
    signs = np.sign(turn).reshape(2, 2)
    if np.abs(np.abs(turn) - math.sqrt(0.5)).max() < 1e-15 and signs.sum(1).min() >= 0:
        half = _spread(u.type, math.sqrt(0.5))
        made = (_signed_sum(builder, u, v, pair) for pair in signs)
        first, second = (builder.fmul(half, value) for value in made)
        return first, second
    a, b, c, d = (_spread(u.type, factor) for factor in turn.tolist())
    made = (
        builder.fadd(
            builder.fmul(s, u, flags=_FUSED), builder.fmul(t, v, flags=_FUSED), flags=_FUSED
        )
        for s, t in ((a, b), (c, d))
    )
    first, second = made
    return first, second


def _signed_sum(builder: Any, u: Any, v: Any, signs: np.ndarray) -> Any:
    """u + v, u - v or v - u."""
    if signs[0] < 0:
        return builder.fsub(v, u)
    return builder.fadd(u, v) if signs[1] > 0 else builder.fsub(u, v)


def _spread(vector: Any, factor: float) -> Any:
    """A vector of one number."""
    number = np.float32(factor) if vector.element == ir.FloatType() else factor
    return ir.Constant(vector, [float(number)] * vector.count)
