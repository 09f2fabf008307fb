"""Incremental max-min sharing of links, compiled: what `sim.network.fluid` calls once per instant.

A vector of rates is (weighted) max-min fair exactly when each row is at its own cap, or crosses a
full link on which nobody has a higher level (level = rate / weight): Bertsekas and Gallager, Data
Networks, 2nd edition, section 6.5.2. So only a small region is solved again, what an arrival, a
departure or a change of capacity touches, and this certificate is tested at its border; what
breaks it joins the region.

- A row is one activity: a rate r, links that it loads with a * r each, a cap, a weight. A row may
  follow another: its bytes stay within a slack of its leader's. Where it has caught up (`TIGHT`)
  its rate is at most its leader's; the catching up is an event like an end.
- The rows that a link holds all have its level, so they are kept as one *group*: a clock V of
  bytes per weight that runs at the level, and a heap of the V at which each row ends. A new level
  costs the group nothing per row. What a group loads elsewhere is kept per pair (link, group).
  Rows with a cap, a leader or a follower are *singles*, with a rate and an event of their own.
- A region is a set of groups and singles. Filling it costs its pairs, and its rows only where
  they change from one group to another.
- One heap holds the next event of every group and single: the end of a latency, a last byte, or
  the closing of a gap.
- All kernels are in this one file: numba's cache on disk notices changes of the file of a
  function, not of the functions that it calls.

Legend: f, g rows; l, b links (b: of a group); e elements (row, link); p pairs; `n` of type `Net`.
"""

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
BLOCK, CHILD, SIBLING, PREVIOUS = range(11, 15)
ROW_FLOATS, ROW_INTS = 11, 15
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

_TIE = 1.0 + 1e-12
"""Shares this close are one: rounding must not split a tie into two rounds."""
_HIGHER = 1.0 + 1e-10
"""What counts as a higher level in the certificate."""
_FULL = 1e-9
"""Share of a link's capacity that may be left on one that is full."""


_inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]
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
def _address(typing_context, number):
    """An integer as the address of memory."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@_inner
def _rf(book):
    return carray(_address(book[0, 0]), (book[0, 1], ROW_FLOATS), np.float64)


@_inner
def _ri(book):
    return carray(_address(book[1, 0]), (book[1, 1], ROW_INTS), np.int32)


@_inner
def _el(book):
    return carray(_address(book[2, 0]), (book[2, 1], ELEMENT_INTS), np.int32)


@_inner
def _load(book):
    return carray(_address(book[3, 0]), book[3, 1], np.float64)


@_inner
def _lf(book):
    return carray(_address(book[4, 0]), (book[4, 1], LINK_FLOATS), np.float64)


@_inner
def _li(book):
    return carray(_address(book[5, 0]), (book[5, 1], LINK_INTS), np.int32)


@_inner
def _pf(book):
    return carray(_address(book[6, 0]), (book[6, 1], PAIR_FLOATS), np.float64)


@_inner
def _pi(book):
    return carray(_address(book[7, 0]), (book[7, 1], PAIR_INTS), np.int32)


@_inner
def _buckets(book):
    return carray(_address(book[8, 0]), book[8, 1], np.int32)


@_inner
def _heap_key(book):
    return carray(_address(book[9, 0]), book[9, 1], np.float64)


@_inner
def _heap_item(book):
    return carray(_address(book[10, 0]), book[10, 1], np.int64)


@_inner
def _fill_key(book):
    return carray(_address(book[11, 0]), book[11, 1], np.float64)


@_inner
def _fill_item(book):
    return carray(_address(book[12, 0]), book[12, 1], np.int64)


@_inner
def _row_lists(book):
    return carray(_address(book[13, 0]), (ROW_LISTS, book[13, 1]), np.int64)


@_inner
def _link_lists(book):
    return carray(_address(book[14, 0]), (LINK_LISTS, book[14, 1]), np.int64)


@_inner
def _st(book):
    return carray(_address(book[15, 0]), book[15, 1], np.int64)


@_inner
def _core(book):
    return carray(_address(book[16, 0]), book[16, 1], np.int64)


@_inner
def _inbox_i(book):
    return carray(_address(book[17, 0]), (book[17, 1], INBOX_INTS), np.int64)


@_inner
def _inbox_f(book):
    return carray(_address(book[18, 0]), (book[18, 1], INBOX_FLOATS), np.float64)


# What is called from outside


@njit(cache=True)
def settle(now, book):
    """Take in the inbox, attach arrivals, solve. Returns the time of the next event (or inf).

    `OUT` then holds rows that ended as they arrived: they had nothing to move, or met a link that
    is down (plus `FAILED`).
    """
    rf, heap_key, row_lists, st = _rf(book), _heap_key(book), _row_lists(book), _st(book)
    _take_in(now, book)
    st[N_OUT] = st[N_LINKS] = 0
    arrivals = _attach_all(now, book)
    for i in range(st[N_OUT]):
        f = row_lists[OUT, i] & (FAILED - 1)
        _detach(f, now, book)
        rf[f, REMAINING] = rf[f, NBYTES] if row_lists[OUT, i] >= FAILED else 0.0
    if arrivals > 0 or st[N_NOTED] > 0 or st[N_TOUCHED] > 0:
        _solve(now, arrivals, book)
    return heap_key[0] if st[N_HEAP] > 0 else np.inf


@njit(cache=True)
def due(now, limit, early, book):
    """Pop what is due: rows whose last byte is there go to `OUT`, detached; their number.

    Rows whose latency is over wait for `settle`; rows that caught up with their leader are touched.
    With `early` > 0 a row also ends if that is at most `early` times the age of the youngest row on
    its links away.
    """
    rf, ri, li, heap_key = _rf(book), _ri(book), _li(book), _heap_key(book)
    heap_item, row_lists, st = _heap_item(book), _row_lists(book), _st(book)
    st[N_OUT] = 0
    while st[N_HEAP] > 0:
        key, item = heap_key[0], heap_item[0]
        f = item if item >= 0 else li[-1 - item, ROOT]
        lone = ri[f, STATE] == SHARING and ri[f, LEADER] < 0 and ri[f, FOLLOWER] < 0
        end = key if item < 0 else rf[f, FINISH]
        soon = early > 0.0 and lone and end - now <= early * (now - _latest(f, book))
        if key > limit and not soon:
            break
        if ri[f, STATE] == LATENCY:
            _unheap(ri[f, PLACE], book)
            ri[f, STATE] = WAITING
            row_lists[ARRIVALS, st[N_ARRIVALS]] = f
            st[N_ARRIVALS] += 1
        elif end <= limit or soon:
            _detach(f, now, book)
            rf[f, REMAINING] = rf[f, RATE] = 0.0
            row_lists[OUT, st[N_OUT]] = f
            st[N_OUT] += 1
        else:
            ri[f, TIGHT] = ri[f, LEADER] >= 0
            rf[f, KEY] = rf[f, FINISH]
            _set_key(ri[f, PLACE], f, rf[f, KEY], book)
            _touch(f, book)
    return st[N_OUT]


@njit(cache=True)
def run(pointer, crossed, nbytes, begins, early, finish, book):
    """Make row f cross `crossed[pointer[f] : pointer[f + 1]]`, go on to the end; fill `finish`."""
    row_lists, st = _row_lists(book), _st(book)
    ones, now = np.ones(len(crossed)), 0.0
    for f in range(len(nbytes)):
        part = slice(pointer[f], pointer[f + 1])
        place(f, now, crossed[part], ones[part], nbytes[f], begins[f], np.inf, 1.0, book)
    while now < np.inf:
        at = settle(now, book)
        for i in range(st[N_OUT]):  # nothing to move: ended as they arrived
            finish[row_lists[OUT, i]] = now
        now = at
        if now < np.inf:
            for i in range(due(now, now * (1.0 + 1e-15) + 1e-9, early, book)):
                finish[row_lists[OUT, i]] = now


@njit(cache=True)
def take_in(now, book):
    """Make the rows of the inbox."""
    _take_in(now, book)


@njit(cache=True)
def detach(f, now, book):
    """Take a row off its links and the heaps, whatever its state; free its elements."""
    _detach(f, now, book)


@njit(cache=True)
def note(l, book):
    """The capacity of a link is another: what it holds is solved again."""
    _note(l, book)


@_inner
def _take_in(now, book):
    """Make rows of the inbox: links are an up link, a piece of `core`, a down link."""
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    st, core, inbox_i, inbox_f = _st(book), _core(book), _inbox_i(book), _inbox_f(book)
    for i in range(st[N_INBOX]):
        f, up, down = inbox_i[i, IN_ROW], inbox_i[i, IN_UP], inbox_i[i, IN_DOWN]
        at, count = inbox_i[i, IN_CORE], inbox_i[i, IN_COUNT]
        e = _reserve(f, count + (up >= 0) + (down >= 0), book)
        if up >= 0:
            el[e, LINK] = up
            e += 1
        for j in range(at, at + count):
            el[e, LINK] = core[j]
            e += 1
        if down >= 0:
            el[e, LINK] = down
        for j in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            load[j] = 1.0
        rf[f, CAP], rf[f, WEIGHT] = inbox_f[i, IN_CAP], inbox_f[i, IN_WEIGHT]
        _begin(f, now, inbox_f[i, IN_BYTES], inbox_f[i, IN_LATENCY], book)
    st[N_INBOX] = 0


@njit(cache=True)
def place(f, now, crossed, loads, nbytes, latency, cap, weight, book):
    """Make a row that loads any links with any coefficients; False if there is no such link."""
    rf, el, load, lf = _rf(book), _el(book), _load(book), _lf(book)
    e = _reserve(f, len(crossed), book)
    for j in range(len(crossed)):
        if crossed[j] < 0 or crossed[j] >= len(lf):
            return False
        el[e + j, LINK] = crossed[j]
        load[e + j] = loads[j]
    rf[f, CAP], rf[f, WEIGHT] = cap, weight
    _begin(f, now, nbytes, latency, book)
    return True


@_inner
def _detach(f, now, book):
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    lf, li, st = _lf(book), _li(book), _st(book)
    if ri[f, STATE] == SHARING:
        held, grouped = ri[f, HELD], ri[f, GROUPED]
        rate = lf[held, GROUP_LEVEL] * rf[f, WEIGHT] if grouped else rf[f, RATE]
        if grouped:
            _leave_group(f, book)
        elif held >= 0:
            li[held, N_SINGLES] -= 1
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            l = el[e, LINK]
            if not grouped:
                _unthread(e, li, l, SINGLES if l == held else GUESTS, el)
            li[l, ROWS] -= 1
            lf[l, LOAD] = lf[l, LOAD] - load[e] * rate if li[l, ROWS] > 0 else 0.0
            if li[l, N_GROUP] + li[l, N_SINGLES] > 0:
                _note(l, book)
    if ri[f, PLACE] >= 0:
        _unheap(ri[f, PLACE], book)
    g = ri[f, FOLLOWER]
    if g >= 0:
        ri[g, LEADER], ri[g, TIGHT] = -1, 0
        if ri[g, STATE] == SHARING:
            _touch(g, book)
    if ri[f, LEADER] >= 0:
        ri[ri[f, LEADER], FOLLOWER] = -1
    k = ri[f, BLOCK]
    el[ri[f, FIRST], AFTER] = st[BLOCKS + k]
    st[BLOCKS + k] = ri[f, FIRST]
    ri[f, STATE] = UNUSED


@_inner
def _note(l, book):
    li, link_lists, st = _li(book), _link_lists(book), _st(book)
    if not li[l, NOTED]:
        li[l, NOTED] = 1
        link_lists[NOTED_LINKS, st[N_NOTED]] = l
        st[N_NOTED] += 1


@njit(cache=True)
def crossing(l, book):
    """The rows that share a link now, in `OUT`; their number."""
    el, li, pi, row_lists = _el(book), _li(book), _pi(book), _row_lists(book)
    count = 0
    for which in (GUESTS, SINGLES):
        e = li[l, which]
        while e >= 0:
            row_lists[OUT, count] = el[e, ROW]
            count += 1
            e = el[e, AFTER]
    p = li[l, PAIRS_HERE]
    while p >= 0:
        e = pi[p, P_ELEMENTS]
        while e >= 0:
            row_lists[OUT, count] = el[e, ROW]
            count += 1
            e = el[e, AFTER]
        p = pi[p, OF_LINK_AFTER]
    return count


@njit(cache=True)
def extend(f, now, nbytes, book):
    """More bytes for a row; its event moves."""
    rf, ri, li = _rf(book), _ri(book), _li(book)
    rf[f, NBYTES] += nbytes
    if ri[f, STATE] == SHARING and ri[f, GROUPED]:
        b = ri[f, HELD]
        li[b, ROOT] = _heap_without(li[b, ROOT], f, rf, ri)
        rf[f, KEY] += nbytes / rf[f, WEIGHT]
        li[b, ROOT] = _meld(li[b, ROOT], f, rf, ri)
        _rekey_group(b, book)
        return
    rf[f, REMAINING] += nbytes
    if ri[f, STATE] == SHARING:
        _rekey(f, now, book)
        _set_key(ri[f, PLACE], f, rf[f, KEY], book)


@njit(cache=True)
def follow(f, g, now, slack, book):
    """Keep row f within `slack` bytes of row g; both are singles from now on."""
    rf, ri = _rf(book), _ri(book)
    _make_single(f, now, book)
    _make_single(g, now, book)
    ri[f, LEADER], ri[g, FOLLOWER], rf[f, SLACK] = g, f, slack
    ri[f, TIGHT] = _gap(f, now, rf, ri) <= 0.0
    if ri[f, STATE] == SHARING:
        _touch(f, book)


@njit(cache=True)
def moved(f, now, book):
    """Bytes that a row has moved."""
    rf, ri = _rf(book), _ri(book)
    if ri[f, STATE] == SHARING and ri[f, GROUPED]:
        return rf[f, NBYTES] - _left_in_group(f, now, book)
    return _moved(f, now, rf, ri)


# Rows, elements and their lists


@_inner
def _begin(f, now, nbytes, latency, book):
    rf, ri, row_lists, st = _rf(book), _ri(book), _row_lists(book), _st(book)
    rf[f, REMAINING] = rf[f, NBYTES] = nbytes
    rf[f, RATE], rf[f, SINCE], rf[f, KEY], rf[f, FINISH] = 0.0, now, now + latency, np.inf
    ri[f, HELD], ri[f, GROUPED], ri[f, PLACE] = NOTHING, 0, -1
    ri[f, LEADER] = ri[f, FOLLOWER] = -1
    ri[f, TIGHT] = 0
    if latency > 0.0:
        ri[f, STATE] = LATENCY
        _set_key(ri[f, PLACE], f, rf[f, KEY], book)
    else:
        ri[f, STATE] = WAITING
        row_lists[ARRIVALS, st[N_ARRIVALS]] = f
        st[N_ARRIVALS] += 1


@_inner
def _reserve(f, count, book):
    """A block of at least `count` elements for a row; its first."""
    ri, el, st = _ri(book), _el(book), _st(book)
    k = 2
    while (1 << k) < count:
        k += 1
    first = st[BLOCKS + k]
    if first >= 0:
        st[BLOCKS + k] = el[first, AFTER]
    else:
        first = st[TOP_ELEMENT]
        st[TOP_ELEMENT] += 1 << k
    ri[f, FIRST], ri[f, COUNT], ri[f, BLOCK] = first, count, k
    for e in range(first, first + count):
        el[e, ROW] = f
    return first


@_inner
def _latest(f, book):
    """When the youngest row that shares a link with row f, or itself, began to move its bytes."""
    rf, ri, el, lf = _rf(book), _ri(book), _el(book), _lf(book)
    began = rf[f, BEGAN]
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        began = max(began, lf[el[e, LINK], LAST_BEGAN])
    return began


@_inner
def _touch(f, book):
    row_lists, st = _row_lists(book), _st(book)
    row_lists[TOUCHED, st[N_TOUCHED]] = f
    st[N_TOUCHED] += 1


@_inner
def _thread(e, owners, at, which, el):
    """Put an element into a list: GUESTS or SINGLES of a link, or the elements of a pair."""
    head = owners[at, which]
    el[e, AFTER], el[e, BEFORE] = head, -1
    if head >= 0:
        el[head, BEFORE] = e
    owners[at, which] = e


@_inner
def _unthread(e, owners, at, which, el):
    before, after = el[e, BEFORE], el[e, AFTER]
    if before >= 0:
        el[before, AFTER] = after
    else:
        owners[at, which] = after
    if after >= 0:
        el[after, BEFORE] = before


@_inner
def _attach_all(now, book):
    """Put waiting rows on their links; how many, moved to the front of `ARRIVALS`."""
    rf, ri, el, lf = _rf(book), _ri(book), _el(book), _lf(book)
    li, row_lists, st = _li(book), _row_lists(book), _st(book)
    arrived = 0
    for i in range(st[N_ARRIVALS]):
        f = row_lists[ARRIVALS, i]
        if ri[f, STATE] != WAITING:
            continue
        cut = False
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            cut |= li[el[e, LINK], DOWN] != 0
        if cut or rf[f, NBYTES] <= 0.0 or ri[f, COUNT] == 0:
            row_lists[OUT, st[N_OUT]] = f + (FAILED if cut else 0)
            st[N_OUT] += 1
            continue
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            _thread(e, li, el[e, LINK], GUESTS, el)
            li[el[e, LINK], ROWS] += 1
            lf[el[e, LINK], LAST_BEGAN] = now
        ri[f, STATE] = SHARING
        rf[f, SINCE] = rf[f, BEGAN] = now
        row_lists[ARRIVALS, arrived] = f
        arrived += 1
    st[N_ARRIVALS] = 0
    return arrived


# Groups


@_inner
def _left_in_group(f, now, book):
    rf, ri, lf = _rf(book), _ri(book), _lf(book)
    b = ri[f, HELD]
    clock = lf[b, CLOCK] + lf[b, GROUP_LEVEL] * (now - lf[b, CLOCK_SINCE])
    return max((rf[f, KEY] - clock) * rf[f, WEIGHT], 0.0)


@_inner
def _join_group(f, b, now, left, book):
    """Row f, which has `left` bytes to move and is in no list, is held by link b, in its group."""
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    lf, li, pf, pi = _lf(book), _li(book), _pf(book), _pi(book)
    buckets = _buckets(book)
    if li[b, N_GROUP] == 0:
        lf[b, CLOCK] = 0.0
        lf[b, CLOCK_SINCE] = now
    clock = lf[b, CLOCK] + lf[b, GROUP_LEVEL] * (now - lf[b, CLOCK_SINCE])
    rf[f, KEY] = clock + left / rf[f, WEIGHT]
    ri[f, HELD], ri[f, GROUPED] = b, 1
    ri[f, CHILD] = ri[f, SIBLING] = ri[f, PREVIOUS] = -1
    li[b, ROOT] = _meld(li[b, ROOT], f, rf, ri)
    li[b, N_GROUP] += 1
    mask = len(buckets) - 1
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l = el[e, LINK]
        h = (l * 40503 + b * 69069) & mask
        p = buckets[h]
        while p >= 0 and not (pi[p, P_LINK] == l and pi[p, P_GROUP] == b):
            p = pi[p, P_CHAIN]
        if p < 0:
            p = _new_pair(l, b, h, book)
        pf[p, AMOUNT] += load[e] * rf[f, WEIGHT]
        pi[p, P_COUNT] += 1
        el[e, PAIR] = p
        _thread(e, pi, p, P_ELEMENTS, el)


@_inner
def _new_pair(l, b, h, book):
    li, pf, pi, buckets = _li(book), _pf(book), _pi(book), _buckets(book)
    st = _st(book)
    p = st[FREE_PAIR]
    if p >= 0:
        st[FREE_PAIR] = pi[p, P_CHAIN]
    else:
        p = st[TOP_PAIR]
        st[TOP_PAIR] += 1
    pi[p, P_LINK], pi[p, P_GROUP], pi[p, P_COUNT], pf[p, AMOUNT] = l, b, 0, 0.0
    pi[p, P_CHAIN] = buckets[h]
    buckets[h] = p
    head = li[b, PAIRS]
    pi[p, P_AFTER], pi[p, P_BEFORE] = head, -1
    if head >= 0:
        pi[head, P_BEFORE] = p
    li[b, PAIRS] = p
    head = li[l, PAIRS_HERE]
    pi[p, OF_LINK_AFTER], pi[p, OF_LINK_BEFORE], pi[p, P_ELEMENTS] = head, -1, -1
    if head >= 0:
        pi[head, OF_LINK_BEFORE] = p
    li[l, PAIRS_HERE] = p
    return p


@_inner
def _leave_group(f, book):
    """Take a row out of its group; its elements are in no list then."""
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    li, pf, pi = _li(book), _pf(book), _pi(book)
    b = ri[f, HELD]
    li[b, ROOT] = _heap_without(li[b, ROOT], f, rf, ri)
    li[b, N_GROUP] -= 1
    ri[f, GROUPED] = 0
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        p = el[e, PAIR]
        pf[p, AMOUNT] -= load[e] * rf[f, WEIGHT]
        pi[p, P_COUNT] -= 1
        _unthread(e, pi, p, P_ELEMENTS, el)
        if pi[p, P_COUNT] == 0:
            _drop_pair(p, book)
    _rekey_group(b, book)


@_inner
def _drop_pair(p, book):
    li, pi, buckets, st = _li(book), _pi(book), _buckets(book), _st(book)
    l, b = pi[p, P_LINK], pi[p, P_GROUP]
    h = (l * 40503 + b * 69069) & (len(buckets) - 1)
    q = buckets[h]
    if q == p:
        buckets[h] = pi[p, P_CHAIN]
    else:
        while pi[q, P_CHAIN] != p:
            q = pi[q, P_CHAIN]
        pi[q, P_CHAIN] = pi[p, P_CHAIN]
    before, after = pi[p, P_BEFORE], pi[p, P_AFTER]
    if before >= 0:
        pi[before, P_AFTER] = after
    else:
        li[b, PAIRS] = after
    if after >= 0:
        pi[after, P_BEFORE] = before
    before, after = pi[p, OF_LINK_BEFORE], pi[p, OF_LINK_AFTER]
    if before >= 0:
        pi[before, OF_LINK_AFTER] = after
    else:
        li[l, PAIRS_HERE] = after
    if after >= 0:
        pi[after, OF_LINK_BEFORE] = before
    pi[p, P_CHAIN] = st[FREE_PAIR]
    st[FREE_PAIR] = p


@_inner
def _make_single(f, now, book):
    """A row of a group gets a rate and an event of its own."""
    rf, ri, el, lf = _rf(book), _ri(book), _el(book), _lf(book)
    li = _li(book)
    if ri[f, STATE] != SHARING or not ri[f, GROUPED]:
        return
    b, rate = ri[f, HELD], lf[ri[f, HELD], GROUP_LEVEL] * rf[f, WEIGHT]
    rf[f, REMAINING], rf[f, SINCE], rf[f, RATE] = _left_in_group(f, now, book), now, rate
    _leave_group(f, book)
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l = el[e, LINK]
        _thread(e, li, l, SINGLES if l == b else GUESTS, el)
    li[b, N_SINGLES] += 1
    _touch(f, book)


# The region: groups and singles


@_inner
def _solve(now, arrivals, book):
    st = _st(book)
    st[STAMP] += 1
    st[N_LINKS] = st[N_REGION] = st[N_GROUPS] = 0
    _seed(arrivals, book)
    rows = groups = 0
    while True:
        _close(rows, book)
        _gather(rows, groups, book)
        rows, groups = st[N_REGION], st[N_GROUPS]
        _fill(book)
        _border(book)
        if st[N_REGION] == rows and st[N_GROUPS] == groups:
            break
    _commit(now, book)


@_inner
def _add(f, book):
    """Put a row into the region: by its group, or as a single."""
    ri, row_lists, st = _ri(book), _row_lists(book), _st(book)
    if ri[f, STATE] != SHARING:
        return
    if ri[f, GROUPED]:
        _add_group(ri[f, HELD], book)
    elif ri[f, MARK] != st[STAMP]:
        ri[f, MARK] = st[STAMP]
        row_lists[REGION, st[N_REGION]] = f
        st[N_REGION] += 1


@_inner
def _add_group(b, book):
    """Put all that a link holds into the region."""
    ri, el, li, row_lists = _ri(book), _el(book), _li(book), _row_lists(book)
    link_lists, st = _link_lists(book), _st(book)
    if li[b, GROUP_MARK] == st[STAMP]:
        return
    li[b, GROUP_MARK] = st[STAMP]
    link_lists[REGION_GROUPS, st[N_GROUPS]] = b
    st[N_GROUPS] += 1
    e = li[b, SINGLES]
    while e >= 0:
        f = el[e, ROW]
        if ri[f, MARK] != st[STAMP]:
            ri[f, MARK] = st[STAMP]
            row_lists[REGION, st[N_REGION]] = f
            st[N_REGION] += 1
        e = el[e, AFTER]


@_inner
def _seed(arrivals, book):
    ri, el, lf, li = _ri(book), _el(book), _lf(book), _li(book)
    pi, row_lists, link_lists, st = _pi(book), _row_lists(book), _link_lists(book), _st(book)
    for i in range(arrivals):
        f = row_lists[ARRIVALS, i]
        _add(f, book)
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            l = el[e, LINK]
            if li[l, N_GROUP] + li[l, N_SINGLES] > 0:
                _note(l, book)
    for i in range(st[N_TOUCHED]):
        _add(row_lists[TOUCHED, i], book)
    for i in range(st[N_NOTED]):
        l = link_lists[NOTED_LINKS, i]
        li[l, NOTED] = 0
        if li[l, N_GROUP] + li[l, N_SINGLES] > 0:
            _add_group(l, book)
        if lf[l, LOAD] > lf[l, CAPACITY]:
            p, e = li[l, PAIRS_HERE], li[l, GUESTS]
            while p >= 0:
                _add_group(pi[p, P_GROUP], book)
                p = pi[p, OF_LINK_AFTER]
            while e >= 0:
                _add(el[e, ROW], book)
                e = el[e, AFTER]
    st[N_TOUCHED] = st[N_NOTED] = 0


@_inner
def _close(start, book):
    """Rows that have caught up with one of the region belong to it."""
    ri, row_lists, st = _ri(book), _row_lists(book), _st(book)
    i = start
    while i < st[N_REGION]:
        g = ri[row_lists[REGION, i], FOLLOWER]
        if g >= 0 and ri[g, TIGHT]:
            _add(g, book)
        i += 1


@_inner
def _gather(rows, groups, book):
    """Add what is new in the region to the base values of the links it crosses."""
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    lf, li, pf, pi = _lf(book), _li(book), _pf(book), _pi(book)
    row_lists, link_lists, st = _row_lists(book), _link_lists(book), _st(book)
    for i in range(groups, st[N_GROUPS]):
        b = link_lists[REGION_GROUPS, i]
        level, p = lf[b, GROUP_LEVEL], li[b, PAIRS]
        while p >= 0:
            l = pi[p, P_LINK]
            if li[l, LINK_MARK] != st[STAMP]:
                _enter(l, book)
            lf[l, FREE_BASE] += pf[p, AMOUNT] * level
            lf[l, WEIGHT_BASE] += pf[p, AMOUNT]
            li[l, INSIDE] += pi[p, P_COUNT]
            p = pi[p, P_AFTER]
    for i in range(rows, st[N_REGION]):
        f = row_lists[REGION, i]
        rate, weight, held = rf[f, RATE], rf[f, WEIGHT], ri[f, HELD]
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            l = el[e, LINK]
            if li[l, LINK_MARK] != st[STAMP]:
                _enter(l, book)
            lf[l, FREE_BASE] += load[e] * rate
            lf[l, WEIGHT_BASE] += load[e] * weight
            li[l, INSIDE] += 1
            li[l, SINGLES_INSIDE] += held == l


@_inner
def _enter(l, book):
    """A link that the region crosses."""
    lf, li, link_lists, st = _lf(book), _li(book), _link_lists(book), _st(book)
    li[l, LINK_MARK] = st[STAMP]
    link_lists[REGION_LINKS, st[N_LINKS]] = l
    st[N_LINKS] += 1
    lf[l, FREE_BASE] = lf[l, CAPACITY] - lf[l, LOAD]
    lf[l, WEIGHT_BASE] = 0.0
    li[l, INSIDE] = li[l, SINGLES_INSIDE] = 0


@_inner
def _offers(book):
    """Reset the region, and heap what each link and each cap would give: (heap size, open rows)."""
    rf, ri, lf, li = _rf(book), _ri(book), _lf(book), _li(book)
    pf, pi, fill_key, fill_item = _pf(book), _pi(book), _fill_key(book), _fill_item(book)
    row_lists, link_lists, st = _row_lists(book), _link_lists(book), _st(book)
    fk, fi, size, open_rows, n_links = fill_key, fill_item, 0, st[N_REGION], len(lf)
    st[N_SWITCHED] = 0
    st[ROUND] += 1  # a number for this filling: what is switched in it is marked with it
    for i in range(st[N_LINKS]):
        l = link_lists[REGION_LINKS, i]
        if li[l, INSIDE] == li[l, ROWS]:
            lf[l, FREE_BASE] = lf[l, CAPACITY]  # nobody else is there: no rounding is carried on
        lf[l, FREE], lf[l, OPEN_WEIGHT] = lf[l, FREE_BASE], lf[l, WEIGHT_BASE]
        li[l, OPEN], li[l, BINDS], lf[l, TOP] = li[l, INSIDE], 0, -1.0
        fk[size], fi[size] = max(lf[l, FREE], 0.0) / lf[l, OPEN_WEIGHT], l
        size += 1
    for i in range(st[N_GROUPS]):
        b = link_lists[REGION_GROUPS, i]
        li[b, OPEN_GROUP] = li[b, N_GROUP]
        open_rows += li[b, N_GROUP]
        p = li[b, PAIRS]
        while p >= 0:
            pf[p, OPEN_AMOUNT], pi[p, P_OPEN] = pf[p, AMOUNT], pi[p, P_COUNT]
            p = pi[p, P_AFTER]
    for i in range(st[N_REGION]):
        f = row_lists[REGION, i]
        ri[f, NEXT_HELD] = NOT_YET
        cap, g = rf[f, CAP], ri[f, LEADER]
        if g >= 0 and ri[f, TIGHT] and ri[g, MARK] != st[STAMP]:
            cap = min(cap, rf[g, RATE])
        if cap < np.inf:
            fk[size], fi[size] = cap / rf[f, WEIGHT], n_links + f
            size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sink(fk, fi, i, size)
    return size, open_rows


@_inner
def _fill(book):
    """Give the groups and singles of the region their levels: the tightest link first."""
    rf, ri, lf, li = _rf(book), _ri(book), _lf(book), _li(book)
    fill_key, fill_item = _fill_key(book), _fill_item(book)
    fk, fi = fill_key, fill_item
    size, open_rows = _offers(book)
    n_links = len(lf)
    while open_rows > 0:
        key, item = fk[0], fi[0]
        if item >= n_links:
            f = item - n_links
            size = _pop(fk, fi, size)
            if ri[f, NEXT_HELD] == NOT_YET:
                own = rf[f, CAP] <= key * rf[f, WEIGHT] or ri[f, LEADER] < 0
                size = _freeze(f, key, ITS_CAP if own else ITS_LEADER, size, book)
                open_rows -= 1
            continue
        if li[item, OPEN] == 0:
            size = _pop(fk, fi, size)
            continue
        share = max(lf[item, FREE], 0.0) / lf[item, OPEN_WEIGHT]
        if share > key * _TIE:
            fk[0] = share
            _sink(fk, fi, 0, size)
            continue
        size = _pop(fk, fi, size)
        li[item, BINDS], lf[item, BOUND_LEVEL] = 1, share
        size, closed = _bind(item, share, size, book)
        open_rows -= closed


@_inner
def _bind(l, level, size, book):
    """All that is open on a link gets this level: (heap size, rows that got theirs)."""
    ri, el, li, pi = _ri(book), _el(book), _li(book), _pi(book)
    st = _st(book)
    closed = 0
    if li[l, GROUP_MARK] == st[STAMP] and li[l, OPEN_GROUP] > 0:
        closed += li[l, OPEN_GROUP]
        _freeze_group(l, level, book)
    e = li[l, SINGLES]
    while e >= 0:
        f = el[e, ROW]
        if ri[f, MARK] == st[STAMP] and ri[f, NEXT_HELD] == NOT_YET:
            size = _freeze(f, level, l, size, book)
            closed += 1
        e = el[e, AFTER]
    e = li[l, GUESTS]
    while e >= 0 and li[l, OPEN] > 0:
        f = el[e, ROW]
        if ri[f, MARK] == st[STAMP] and ri[f, NEXT_HELD] == NOT_YET:
            size = _freeze(f, level, l, size, book)
            closed += 1
        e = el[e, AFTER]
    p = li[l, PAIRS_HERE]
    while p >= 0 and li[l, OPEN] > 0:
        b = pi[p, P_GROUP]
        if b != l and li[b, GROUP_MARK] == st[STAMP] and li[b, OPEN_GROUP] > 0:
            e = pi[p, P_ELEMENTS]
            while e >= 0 and pi[p, P_OPEN] > 0:
                f = el[e, ROW]
                if ri[f, MARK] != -st[ROUND]:
                    _switch(f, b, l, level, book)
                    closed += 1
                e = el[e, AFTER]
        p = pi[p, OF_LINK_AFTER]
    return size, closed


@_inner
def _freeze_group(b, level, book):
    """Fix the level of what is left of a group on its own link."""
    lf, li, pf, pi = _lf(book), _li(book), _pf(book), _pi(book)
    p = li[b, PAIRS]
    while p >= 0:
        if pi[p, P_OPEN] > 0:
            l = pi[p, P_LINK]
            lf[l, FREE] -= pf[p, OPEN_AMOUNT] * level
            lf[l, OPEN_WEIGHT] -= pf[p, OPEN_AMOUNT]
            li[l, OPEN] -= pi[p, P_OPEN]
            if level > lf[l, TOP]:
                lf[l, TOP] = level
        p = pi[p, P_AFTER]
    li[b, OPEN_GROUP] = 0


@_inner
def _switch(f, b, l, level, book):
    """Row f of the open group b is held by link l from now on."""
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    lf, li, pf, pi = _lf(book), _li(book), _pf(book), _pi(book)
    row_lists, st = _row_lists(book), _st(book)
    rf[f, LEVEL], ri[f, NEXT_HELD], ri[f, MARK] = level, l, -st[ROUND]
    row_lists[SWITCHED, st[N_SWITCHED]] = f
    st[N_SWITCHED] += 1
    li[b, OPEN_GROUP] -= 1
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        k, amount = el[e, LINK], load[e] * rf[f, WEIGHT]
        lf[k, FREE] -= amount * level
        lf[k, OPEN_WEIGHT] -= amount
        li[k, OPEN] -= 1
        pf[el[e, PAIR], OPEN_AMOUNT] -= amount
        pi[el[e, PAIR], P_OPEN] -= 1
        if level > lf[k, TOP]:
            lf[k, TOP] = level


@_inner
def _freeze(f, level, held, size, book):
    """Fix a single's level; who has caught up with it gets no more. Returns the heap's size."""
    rf, ri, el, load = _rf(book), _ri(book), _el(book), _load(book)
    lf, li, fill_key, fill_item = _lf(book), _li(book), _fill_key(book), _fill_item(book)
    st = _st(book)
    rf[f, LEVEL], ri[f, NEXT_HELD] = level, held
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l, amount = el[e, LINK], load[e] * rf[f, WEIGHT]
        lf[l, FREE] -= amount * level
        lf[l, OPEN_WEIGHT] -= amount
        li[l, OPEN] -= 1
        if level > lf[l, TOP]:
            lf[l, TOP] = level
    g = ri[f, FOLLOWER]
    if g >= 0 and ri[g, TIGHT] and ri[g, MARK] == st[STAMP] and ri[g, NEXT_HELD] == NOT_YET:
        fill_key[size] = level * rf[f, WEIGHT] / rf[g, WEIGHT]
        fill_item[size] = len(lf) + g
        _float(fill_key, fill_item, size)
        size += 1
    return size


@_inner
def _border(book):
    """Add to the region what is outside and whose certificate is broken."""
    lf, li, link_lists, st = _lf(book), _li(book), _link_lists(book), _st(book)
    for i in range(st[N_LINKS]):
        l = link_lists[REGION_LINKS, i]
        if li[l, ROWS] == li[l, INSIDE]:
            continue
        if li[l, GROUP_MARK] != st[STAMP] and (
            li[l, N_GROUP] > 0 or li[l, N_SINGLES] > li[l, SINGLES_INSIDE]
        ):
            full = lf[l, FREE] <= _FULL * lf[l, CAPACITY]
            lower = li[l, BINDS] and lf[l, BOUND_LEVEL] * _HIGHER < lf[l, GROUP_LEVEL]
            if not full or lower or lf[l, TOP] > lf[l, GROUP_LEVEL] * _HIGHER:
                _add_group(l, book)
        # What was full before had nobody higher: only a lower level can be beaten by a guest.
        held = li[l, N_GROUP] + li[l, N_SINGLES] > 0
        if li[l, BINDS] and not (held and lf[l, BOUND_LEVEL] >= lf[l, GROUP_LEVEL]):
            _add_higher(l, lf[l, TOP] * _HIGHER, book)


@_inner
def _add_higher(l, level, book):
    """Put into the region the guests of a link outside it that have a higher level."""
    rf, ri, el, lf = _rf(book), _ri(book), _el(book), _lf(book)
    li, pi, st = _li(book), _pi(book), _st(book)
    e, p = li[l, GUESTS], li[l, PAIRS_HERE]
    while e >= 0:
        f = el[e, ROW]
        if ri[f, MARK] != st[STAMP] and rf[f, RATE] > level * rf[f, WEIGHT]:
            _add(f, book)
        e = el[e, AFTER]
    while p >= 0:
        b = pi[p, P_GROUP]
        if li[b, GROUP_MARK] != st[STAMP] and lf[b, GROUP_LEVEL] > level:
            _add_group(b, book)
        p = pi[p, OF_LINK_AFTER]


@_inner
def _commit(now, book):
    """Make the new levels those of the groups and singles, and move their events."""
    rf, ri, lf, li = _rf(book), _ri(book), _lf(book), _li(book)
    row_lists, link_lists, st = _row_lists(book), _link_lists(book), _st(book)
    for i in range(st[N_GROUPS]):
        b = link_lists[REGION_GROUPS, i]
        lf[b, CLOCK] += lf[b, GROUP_LEVEL] * (now - lf[b, CLOCK_SINCE])
        lf[b, CLOCK_SINCE] = now
    for i in range(st[N_SWITCHED]):  # with the clocks of now, before any level is another
        f = row_lists[SWITCHED, i]
        b = ri[f, HELD]
        rf[f, REMAINING] = max((rf[f, KEY] - lf[b, CLOCK]) * rf[f, WEIGHT], 0.0)
        _leave_group(f, book)
    for i in range(st[N_LINKS]):
        l = link_lists[REGION_LINKS, i]
        lf[l, LOAD] = lf[l, CAPACITY] - lf[l, FREE]
        others = li[l, N_GROUP] > 0 or li[l, N_SINGLES] > li[l, SINGLES_INSIDE]
        mine = li[l, GROUP_MARK] == st[STAMP] or not others
        if li[l, BINDS] and mine:
            lf[l, GROUP_LEVEL] = lf[l, BOUND_LEVEL]
    for i in range(st[N_SWITCHED]):
        f = row_lists[SWITCHED, i]
        _join_group(f, ri[f, NEXT_HELD], now, rf[f, REMAINING], book)
        _rekey_group(ri[f, HELD], book)
    for i in range(st[N_REGION]):
        _commit_single(row_lists[REGION, i], now, book)
    for i in range(st[N_GROUPS]):
        _rekey_group(link_lists[REGION_GROUPS, i], book)
    for i in range(st[N_REGION]):  # gaps depend on two rates: now both are known
        f = row_lists[REGION, i]
        if not ri[f, GROUPED]:
            _rekey(f, now, book)
            _set_key(ri[f, PLACE], f, rf[f, KEY], book)
            g = ri[f, FOLLOWER]
            if g >= 0 and ri[g, STATE] == SHARING and ri[g, MARK] != st[STAMP]:
                _rekey(g, now, book)
                _set_key(ri[g, PLACE], g, rf[g, KEY], book)


@_inner
def _commit_single(f, now, book):
    """Give a single its rate; one that is plain joins the group of the link that holds it."""
    rf, ri, el, li = _rf(book), _ri(book), _el(book), _li(book)
    held, old = ri[f, NEXT_HELD], ri[f, HELD]
    left = max(rf[f, REMAINING] - rf[f, RATE] * (now - rf[f, SINCE]), 0.0)
    plain = rf[f, CAP] == np.inf and ri[f, LEADER] < 0 and ri[f, FOLLOWER] < 0
    rf[f, REMAINING], rf[f, SINCE], rf[f, RATE] = left, now, rf[f, LEVEL] * rf[f, WEIGHT]
    if held == old and not plain:
        return
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l = el[e, LINK]
        _unthread(e, li, l, SINGLES if l == old else GUESTS, el)
        li[l, N_SINGLES] += (l == held and not plain) - (l == old)
        if not plain:
            _thread(e, li, l, SINGLES if l == held else GUESTS, el)
    ri[f, HELD] = held
    if plain:
        if ri[f, PLACE] >= 0:
            _unheap(ri[f, PLACE], book)
        _join_group(f, held, now, left, book)
        _rekey_group(held, book)


# The next event of a row or a group


@_inner
def _moved(f, now, rf, ri):
    left = rf[f, REMAINING] - rf[f, RATE] * (now - rf[f, SINCE])
    return rf[f, NBYTES] - max(left, 0.0)


@_inner
def _gap(f, now, rf, ri):
    return _moved(ri[f, LEADER], now, rf, ri) + rf[f, SLACK] - _moved(f, now, rf, ri)


@_inner
def _rekey(f, now, book):
    """When a single has its last byte, and its next event."""
    rf, ri = _rf(book), _ri(book)
    left = rf[f, REMAINING] - rf[f, RATE] * (now - rf[f, SINCE])
    finish = now + max(left, 0.0) / rf[f, RATE] if rf[f, RATE] > 0.0 else np.inf
    rf[f, FINISH] = rf[f, KEY] = finish
    g = ri[f, LEADER]
    if g < 0:
        return
    faster = rf[f, RATE] - rf[g, RATE]
    if ri[f, TIGHT] and faster < -1e-12 * rf[g, RATE]:
        ri[f, TIGHT] = 0
    if not ri[f, TIGHT] and faster > 0.0:
        rf[f, KEY] = min(finish, now + max(_gap(f, now, rf, ri), 0.0) / faster)


@_inner
def _rekey_group(b, book):
    """Move the next event of a group to where its first row ends; none without rows."""
    rf, lf, li = _rf(book), _lf(book), _li(book)
    f = li[b, ROOT]
    place = li[b, GROUP_PLACE]
    if f < 0:
        if place >= 0:
            _unheap(place, book)
        return
    level, key = lf[b, GROUP_LEVEL], np.inf
    if level > 0.0:
        left = max(rf[f, KEY] - lf[b, CLOCK], 0.0)
        key = lf[b, CLOCK_SINCE] + left / level
    _set_key(place, -1 - b, key, book)


# The heap of events: items are rows, or -1 - link for a group


@_inner
def _set_key(place, item, key, book):
    ri, li, heap_key, heap_item = _ri(book), _li(book), _heap_key(book), _heap_item(book)
    st = _st(book)
    if place < 0:
        place = st[N_HEAP]
        st[N_HEAP] += 1
        _up(place, key, item, heap_key, heap_item, ri, li)
    elif key < heap_key[place]:
        _up(place, key, item, heap_key, heap_item, ri, li)
    else:
        _down(place, key, item, heap_key, heap_item, ri, li, st[N_HEAP])


@_inner
def _unheap(place, book):
    ri, li, heap_key, heap_item = _ri(book), _li(book), _heap_key(book), _heap_item(book)
    st = _st(book)
    hk, hi = heap_key, heap_item
    _put(place, -1, hi[place], ri, li)
    st[N_HEAP] -= 1
    last = st[N_HEAP]
    if place == last:
        return
    key, item = hk[last], hi[last]
    if place > 0 and key < hk[(place - 1) >> 1]:
        _up(place, key, item, hk, hi, ri, li)
    else:
        _down(place, key, item, hk, hi, ri, li, last)


@_inner
def _put(place, where, item, ri, li):
    """Note the place of an item, which now is `where`."""
    if item >= 0:
        ri[item, PLACE] = where
    else:
        li[-1 - item, GROUP_PLACE] = where


@_inner
def _up(i, key, item, hk, hi, ri, li):
    while i > 0:
        parent = (i - 1) >> 1
        if hk[parent] <= key:
            break
        hk[i], hi[i] = hk[parent], hi[parent]
        _put(i, i, hi[i], ri, li)
        i = parent
    hk[i], hi[i] = key, item
    _put(i, i, item, ri, li)


@_inner
def _down(i, key, item, hk, hi, ri, li, size):
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and hk[child + 1] < hk[child]:
            child += 1
        if hk[child] >= key:
            break
        hk[i], hi[i] = hk[child], hi[child]
        _put(i, i, hi[i], ri, li)
        i = child
    hk[i], hi[i] = key, item
    _put(i, i, item, ri, li)


# The heap of a group: a pairing heap through its rows (Fredman et al., Algorithmica 1, 1986)


@_inner
def _meld(f, g, rf, ri):
    if f < 0:
        return g
    if g < 0:
        return f
    if rf[g, KEY] < rf[f, KEY]:
        f, g = g, f
    child = ri[f, CHILD]
    ri[g, SIBLING], ri[g, PREVIOUS] = child, f
    if child >= 0:
        ri[child, PREVIOUS] = g
    ri[f, CHILD] = g
    return f


@_inner
def _heap_without(root, f, rf, ri):
    """The root of the heap once row f is taken out."""
    below = _meld_all(ri[f, CHILD], rf, ri)
    if root != f:
        before, after = ri[f, PREVIOUS], ri[f, SIBLING]
        if ri[before, CHILD] == f:
            ri[before, CHILD] = after
        else:
            ri[before, SIBLING] = after
        if after >= 0:
            ri[after, PREVIOUS] = before
        below = _meld(root, below, rf, ri)
    ri[f, CHILD] = ri[f, SIBLING] = ri[f, PREVIOUS] = -1
    return below


@_inner
def _meld_all(f, rf, ri):
    """One heap of a list of siblings: in pairs from the left, then together from the right."""
    pairs = -1
    while f >= 0:
        g = ri[f, SIBLING]
        after = ri[g, SIBLING] if g >= 0 else -1
        ri[f, SIBLING] = ri[f, PREVIOUS] = -1
        if g >= 0:
            ri[g, SIBLING] = ri[g, PREVIOUS] = -1
        both = _meld(f, g, rf, ri)
        ri[both, SIBLING] = pairs
        pairs = both
        f = after
    root = -1
    while pairs >= 0:
        after = ri[pairs, SIBLING]
        ri[pairs, SIBLING] = ri[pairs, PREVIOUS] = -1
        root = _meld(root, pairs, rf, ri)
        pairs = after
    return root


@njit(cache=True)
def rehash(book):
    """Put all pairs into `buckets`, which is new."""
    li, pi, buckets = _li(book), _pi(book), _buckets(book)
    buckets[:] = -1
    mask = len(buckets) - 1
    for b in range(len(li)):
        p = li[b, PAIRS]
        while p >= 0:
            h = (pi[p, P_LINK] * 40503 + b * 69069) & mask
            pi[p, P_CHAIN], buckets[h] = buckets[h], p
            p = pi[p, P_AFTER]


# The heap of offers of a filling


@_inner
def _pop(fk, fi, size):
    size -= 1
    fk[0], fi[0] = fk[size], fi[size]
    _sink(fk, fi, 0, size)
    return size


@_inner
def _sink(fk, fi, i, size):
    key, item = fk[i], fi[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and fk[child + 1] < fk[child]:
            child += 1
        if fk[child] >= key:
            break
        fk[i], fi[i] = fk[child], fi[child]
        i = child
    fk[i], fi[i] = key, item


@_inner
def _float(fk, fi, i):
    key, item = fk[i], fi[i]
    while i > 0:
        parent = (i - 1) >> 1
        if fk[parent] <= key:
            break
        fk[i], fi[i] = fk[parent], fi[parent]
        i = parent
    fk[i], fi[i] = key, item
