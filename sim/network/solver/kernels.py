"""What Python calls: kernels that are compiled once, and kept on disk.

Legend: f, g rows; l links; e elements (row, link); p pairs (link, group).
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled
from sim.network.solver.groups import gap, left_in_group, make_single, moved_row, rekey, rekey_group
from sim.network.solver.heaps import heap_without, meld, set_key, touch, unheap
from sim.network.solver.layout import (
    AFTER,
    ARRIVALS,
    CAP,
    FAILED,
    FINISH,
    FOLLOWER,
    GROUPED,
    GUESTS,
    HELD,
    KEY,
    LATENCY,
    LEADER,
    LINK,
    N_ARRIVALS,
    N_HEAP,
    N_LINKS,
    N_NOTED,
    N_OUT,
    N_TOUCHED,
    NBYTES,
    OF_LINK_AFTER,
    OUT,
    P_AFTER,
    P_CHAIN,
    P_ELEMENTS,
    P_LINK,
    PAIRS,
    PAIRS_HERE,
    PLACE,
    RATE,
    REMAINING,
    ROOT,
    ROW,
    SHARING,
    SINGLES,
    SLACK,
    STATE,
    TIGHT,
    WAITING,
    WEIGHT,
    buckets_of,
    el_of,
    heap_item_of,
    heap_key_of,
    lf_of,
    li_of,
    load_of,
    pi_of,
    rf_of,
    ri_of,
    row_lists_of,
    st_of,
)
from sim.network.solver.region import solve
from sim.network.solver.rows import (
    attach_all,
    begin,
    detach_row,
    latest,
    note_link,
    reserve,
    take_in_row,
)

_kept = compiled(__file__)


@_kept
def settle(now, book):
    """Take in the inbox, attach arrivals, solve. Returns the time of the next event (or inf).

    `OUT` then holds rows that ended as they arrived: they had nothing to move, or met a link that
    is down (plus `FAILED`).
    """
    rf, heap_key, row_lists, st = rf_of(book), heap_key_of(book), row_lists_of(book), st_of(book)
    take_in_row(now, book)
    st[N_OUT] = st[N_LINKS] = 0
    arrivals = attach_all(now, book)
    for i in range(st[N_OUT]):
        f = row_lists[OUT, i] & (FAILED - 1)
        detach_row(f, now, book)
        rf[f, REMAINING] = rf[f, NBYTES] if row_lists[OUT, i] >= FAILED else 0.0
    if arrivals > 0 or st[N_NOTED] > 0 or st[N_TOUCHED] > 0:
        solve(now, arrivals, book)
    return heap_key[0] if st[N_HEAP] > 0 else np.inf


@_kept
def due(now, limit, early, book):
    """Pop what is due: rows whose last byte is there go to `OUT`, detached; their number.

    Rows whose latency is over wait for `settle`; rows that caught up with their leader are touched.
    With `early` > 0 a row also ends if that is at most `early` times the age of the youngest row on
    its links away.
    """
    rf, ri, li, heap_key = rf_of(book), ri_of(book), li_of(book), heap_key_of(book)
    heap_item, row_lists, st = heap_item_of(book), row_lists_of(book), st_of(book)
    st[N_OUT] = 0
    while st[N_HEAP] > 0:
        key, item = heap_key[0], heap_item[0]
        f = item if item >= 0 else li[-1 - item, ROOT]
        lone = ri[f, STATE] == SHARING and ri[f, LEADER] < 0 and ri[f, FOLLOWER] < 0
        end = key if item < 0 else rf[f, FINISH]
        soon = early > 0.0 and lone and end - now <= early * (now - latest(f, book))
        if key > limit and not soon:
            break
        if ri[f, STATE] == LATENCY:
            unheap(ri[f, PLACE], book)
            ri[f, STATE] = WAITING
            row_lists[ARRIVALS, st[N_ARRIVALS]] = f
            st[N_ARRIVALS] += 1
        elif end <= limit or soon:
            detach_row(f, now, book)
            rf[f, REMAINING] = rf[f, RATE] = 0.0
            row_lists[OUT, st[N_OUT]] = f
            st[N_OUT] += 1
        else:
            ri[f, TIGHT] = ri[f, LEADER] >= 0
            rf[f, KEY] = rf[f, FINISH]
            set_key(ri[f, PLACE], f, rf[f, KEY], book)
            touch(f, book)
    return st[N_OUT]


@_kept
def run(pointer, crossed, nbytes, begins, early, finish, book):
    """Make row f cross `crossed[pointer[f] : pointer[f + 1]]`, go on to the end; fill `finish`."""
    row_lists, st = row_lists_of(book), st_of(book)
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


@_kept
def take_in(now, book):
    """Make the rows of the inbox."""
    take_in_row(now, book)


@_kept
def detach(f, now, book):
    """Take a row off its links and the heaps, whatever its state; free its elements."""
    detach_row(f, now, book)


@_kept
def note(l, book):
    """The capacity of a link is another: what it holds is solved again."""
    note_link(l, book)


@_kept
def place(f, now, crossed, loads, nbytes, latency, cap, weight, book):
    """Make a row that loads any links with any coefficients; False if there is no such link."""
    rf, el, load, lf = rf_of(book), el_of(book), load_of(book), lf_of(book)
    e = reserve(f, len(crossed), book)
    for j in range(len(crossed)):
        if crossed[j] < 0 or crossed[j] >= len(lf):
            return False
        el[e + j, LINK] = crossed[j]
        load[e + j] = loads[j]
    rf[f, CAP], rf[f, WEIGHT] = cap, weight
    begin(f, now, nbytes, latency, book)
    return True


@_kept
def crossing(l, book):
    """The rows that share a link now, in `OUT`; their number."""
    el, li, pi, row_lists = el_of(book), li_of(book), pi_of(book), row_lists_of(book)
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


@_kept
def extend(f, now, nbytes, book):
    """More bytes for a row; its event moves."""
    rf, ri, li = rf_of(book), ri_of(book), li_of(book)
    rf[f, NBYTES] += nbytes
    if ri[f, STATE] == SHARING and ri[f, GROUPED]:
        b = ri[f, HELD]
        li[b, ROOT] = heap_without(li[b, ROOT], f, rf, ri)
        rf[f, KEY] += nbytes / rf[f, WEIGHT]
        li[b, ROOT] = meld(li[b, ROOT], f, rf, ri)
        rekey_group(b, book)
        return
    rf[f, REMAINING] += nbytes
    if ri[f, STATE] == SHARING:
        rekey(f, now, book)
        set_key(ri[f, PLACE], f, rf[f, KEY], book)


@_kept
def follow(f, g, now, slack, book):
    """Keep row f within `slack` bytes of row g; both are singles from now on."""
    rf, ri = rf_of(book), ri_of(book)
    make_single(f, now, book)
    make_single(g, now, book)
    ri[f, LEADER], ri[g, FOLLOWER], rf[f, SLACK] = g, f, slack
    ri[f, TIGHT] = gap(f, now, rf, ri) <= 0.0
    if ri[f, STATE] == SHARING:
        touch(f, book)


@_kept
def moved(f, now, book):
    """Bytes that a row has moved."""
    rf, ri = rf_of(book), ri_of(book)
    if ri[f, STATE] == SHARING and ri[f, GROUPED]:
        return rf[f, NBYTES] - left_in_group(f, now, book)
    return moved_row(f, now, rf, ri)


@_kept
def rehash(book):
    """Put all pairs into `buckets`, which is new."""
    li, pi, buckets = li_of(book), pi_of(book), buckets_of(book)
    buckets[:] = -1
    mask = len(buckets) - 1
    for b in range(len(li)):
        p = li[b, PAIRS]
        while p >= 0:
            h = (pi[p, P_LINK] * 40503 + b * 69069) & mask
            pi[p, P_CHAIN], buckets[h] = buckets[h], p
            p = pi[p, P_AFTER]
