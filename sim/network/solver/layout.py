"""Where things lie: the columns of all arrays, and how kernels get at the arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

# Columns of a row: floats (bytes, bytes/s, seconds), then integers. KEY is the time of the next
# event of a single, and the V at which a row of a group ends.
REMAINING, RATE, SINCE, KEY, FINISH, WEIGHT, CAP, NBYTES, BEGAN, SLACK, LEVEL = range(11)
FIRST, COUNT, HELD, GROUPED, PLACE, MARK, LEADER, FOLLOWER, STATE, TIGHT, NEXT_HELD = range(11)
BLOCK, CHILD, SIBLING, PREVIOUS, IS_TOUCHED = range(11, 16)
ROW_FLOATS, ROW_INTS = 11, 16
# Columns of an element; AFTER and BEFORE thread a list of its pair or link, or free blocks.
LINK, ROW, AFTER, BEFORE, PAIR = range(5)
ELEMENT_INTS = 5
# Columns of a link and of its group: floats, then integers.
CAPACITY, LOAD, GROUP_LEVEL, CLOCK, CLOCK_SINCE, FREE_BASE, WEIGHT_BASE, FREE = range(8)
OPEN_WEIGHT, TOP, BOUND_LEVEL, LAST_BEGAN = range(8, 12)
LINK_FLOATS = 12
GUESTS, SINGLES, ROWS, N_GROUP, N_SINGLES, ROOT, PAIRS, GROUP_PLACE, LINK_MARK = range(9)
GROUP_MARK, DOWN, INSIDE, SINGLES_INSIDE, OPEN, BINDS, OPEN_GROUP, NOTED = range(9, 17)
PAIRS_HERE = 17
LINK_INTS = 18
# Columns of a pair: weighted coefficients of a group's rows on a link.
AMOUNT, OPEN_AMOUNT = range(2)
PAIR_FLOATS = 2
P_LINK, P_GROUP, P_AFTER, P_BEFORE, P_COUNT, P_OPEN, P_CHAIN, P_ELEMENTS = range(8)
OF_LINK_AFTER, OF_LINK_BEFORE = range(8, 10)
PAIR_INTS = 10
# Lists of rows and of links.
REGION, ARRIVALS, TOUCHED, OUT, SWITCHED = range(5)
ROW_LISTS = 5
REGION_LINKS, NOTED_LINKS, REGION_GROUPS = range(3)
LINK_LISTS = 3
# Counters; the last ones are the heads of the lists of free blocks of 2^k elements.
N_HEAP, TOP_ELEMENT, STAMP, N_ARRIVALS, N_TOUCHED, N_OUT, N_LINKS, N_NOTED, N_INBOX = range(9)
N_REGION, N_GROUPS, N_SWITCHED, TOP_PAIR, FREE_PAIR, ROUND, BLOCKS = range(9, 16)
COUNTERS = BLOCKS + 28
# Columns of the inbox of new rows.
IN_ROW, IN_UP, IN_CORE, IN_COUNT, IN_DOWN = range(5)
IN_BYTES, IN_LATENCY, IN_CAP, IN_WEIGHT = range(4)
INBOX_INTS, INBOX_FLOATS = 5, 4
# States of a row; what may hold its rate instead of a link.
UNUSED, LATENCY, WAITING, SHARING = range(4)
NOTHING, ITS_CAP, ITS_LEADER, NOT_YET = -1, -2, -3, -4
FAILED = 1 << 30
"""Added to a row in `OUT` that met a link that is down."""


inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]
"""Of what only kernels call: compiled, and kept on disk, with them."""


class Net(NamedTuple):
    """The arrays of a network."""

    rf: np.ndarray
    ri: np.ndarray
    el: np.ndarray
    load: np.ndarray
    lf: np.ndarray
    li: np.ndarray
    pf: np.ndarray
    pi: np.ndarray
    buckets: np.ndarray
    heap_key: np.ndarray
    heap_item: np.ndarray
    fill_key: np.ndarray
    fill_item: np.ndarray
    row_lists: np.ndarray
    link_lists: np.ndarray
    st: np.ndarray
    core: np.ndarray
    inbox_i: np.ndarray
    inbox_f: np.ndarray


def book_of(net: Net) -> np.ndarray:
    """What the kernels get: the address of each array and its length (of lists: their columns).

    One argument instead of many arrays, on the way into the kernels and between them: taking arrays
    apart would cost several microseconds a call, which is more than most instants need. The
    caller keeps the arrays alive.

    Returns:
        int64 [arrays, 2].
    """
    lists = net.row_lists, net.link_lists
    lengths = [array.shape[any(array is one for one in lists)] for array in net]
    return np.array([[array.ctypes.data, n] for array, n in zip(net, lengths)], np.int64)


@intrinsic
def address(typing_context, number):
    """An integer as the address of memory."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@inner
def rf_of(book):
    return carray(address(book[0, 0]), (book[0, 1], ROW_FLOATS), np.float64)


@inner
def ri_of(book):
    return carray(address(book[1, 0]), (book[1, 1], ROW_INTS), np.int32)


@inner
def el_of(book):
    return carray(address(book[2, 0]), (book[2, 1], ELEMENT_INTS), np.int32)


@inner
def load_of(book):
    return carray(address(book[3, 0]), book[3, 1], np.float64)


@inner
def lf_of(book):
    return carray(address(book[4, 0]), (book[4, 1], LINK_FLOATS), np.float64)


@inner
def li_of(book):
    return carray(address(book[5, 0]), (book[5, 1], LINK_INTS), np.int32)


@inner
def pf_of(book):
    return carray(address(book[6, 0]), (book[6, 1], PAIR_FLOATS), np.float64)


@inner
def pi_of(book):
    return carray(address(book[7, 0]), (book[7, 1], PAIR_INTS), np.int32)


@inner
def buckets_of(book):
    return carray(address(book[8, 0]), book[8, 1], np.int32)


@inner
def heap_key_of(book):
    return carray(address(book[9, 0]), book[9, 1], np.float64)


@inner
def heap_item_of(book):
    return carray(address(book[10, 0]), book[10, 1], np.int64)


@inner
def fill_key_of(book):
    return carray(address(book[11, 0]), book[11, 1], np.float64)


@inner
def fill_item_of(book):
    return carray(address(book[12, 0]), book[12, 1], np.int64)


@inner
def row_lists_of(book):
    return carray(address(book[13, 0]), (ROW_LISTS, book[13, 1]), np.int32)


@inner
def link_lists_of(book):
    return carray(address(book[14, 0]), (LINK_LISTS, book[14, 1]), np.int32)


@inner
def st_of(book):
    return carray(address(book[15, 0]), book[15, 1], np.int64)


@inner
def core_of(book):
    return carray(address(book[16, 0]), book[16, 1], np.int64)


@inner
def inbox_i_of(book):
    return carray(address(book[17, 0]), (book[17, 1], INBOX_INTS), np.int64)


@inner
def inbox_f_of(book):
    return carray(address(book[18, 0]), (book[18, 1], INBOX_FLOATS), np.float64)
