"""Rows: how they begin, wait, are put on their links, and are taken off.

Legend: f, g rows; l links; e elements (row, link).
"""

from __future__ import annotations

import numpy as np

from sim.network.solver.groups import leave_group
from sim.network.solver.heaps import set_key, thread, touch, unheap, unthread
from sim.network.solver.layout import (
    AFTER,
    ARRIVALS,
    BEGAN,
    BLOCK,
    BLOCKS,
    CAP,
    COUNT,
    DOWN,
    FAILED,
    FINISH,
    FIRST,
    FOLLOWER,
    GROUP_LEVEL,
    GROUPED,
    GUESTS,
    HELD,
    IN_BYTES,
    IN_CAP,
    IN_CORE,
    IN_COUNT,
    IN_DOWN,
    IN_LATENCY,
    IN_ROW,
    IN_UP,
    IN_WEIGHT,
    IS_TOUCHED,
    KEY,
    LAST_BEGAN,
    LATENCY,
    LEADER,
    LINK,
    LOAD,
    N_ARRIVALS,
    N_GROUP,
    N_INBOX,
    N_NOTED,
    N_OUT,
    N_SINGLES,
    NBYTES,
    NOTED,
    NOTED_LINKS,
    NOTHING,
    OUT,
    PLACE,
    RATE,
    REMAINING,
    ROW,
    ROWS,
    SHARING,
    SINCE,
    SINGLES,
    STATE,
    TIGHT,
    TOP_ELEMENT,
    UNUSED,
    WAITING,
    WEIGHT,
    core_of,
    el_of,
    inbox_f_of,
    inbox_i_of,
    inner,
    lf_of,
    li_of,
    link_lists_of,
    load_of,
    rf_of,
    ri_of,
    row_lists_of,
    st_of,
)


@inner
def take_in_row(now, book):
    """Make rows of the inbox: links are an up link, a piece of `core`, a down link."""
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    st, core, inbox_i, inbox_f = st_of(book), core_of(book), inbox_i_of(book), inbox_f_of(book)
    for i in range(st[N_INBOX]):
        f, up, down = inbox_i[i, IN_ROW], inbox_i[i, IN_UP], inbox_i[i, IN_DOWN]
        at, count = inbox_i[i, IN_CORE], inbox_i[i, IN_COUNT]
        e = reserve(f, count + (up >= 0) + (down >= 0), book)
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
        begin(f, now, inbox_f[i, IN_BYTES], inbox_f[i, IN_LATENCY], book)
    st[N_INBOX] = 0


@inner
def detach_row(f, now, book):
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    lf, li, st = lf_of(book), li_of(book), st_of(book)
    if ri[f, STATE] == SHARING:
        held, grouped = ri[f, HELD], ri[f, GROUPED]
        rate = lf[held, GROUP_LEVEL] * rf[f, WEIGHT] if grouped else rf[f, RATE]
        if grouped:
            leave_group(f, book)
        elif held >= 0:
            li[held, N_SINGLES] -= 1
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            l = el[e, LINK]
            if not grouped:
                unthread(e, li, l, SINGLES if l == held else GUESTS, el)
            li[l, ROWS] -= 1
            lf[l, LOAD] = lf[l, LOAD] - load[e] * rate if li[l, ROWS] > 0 else 0.0
            if li[l, N_GROUP] + li[l, N_SINGLES] > 0:
                note_link(l, book)
    if ri[f, PLACE] >= 0:
        unheap(ri[f, PLACE], book)
    g = ri[f, FOLLOWER]
    if g >= 0:
        ri[g, LEADER], ri[g, TIGHT] = -1, 0
        if ri[g, STATE] == SHARING:
            touch(g, book)
    if ri[f, LEADER] >= 0:
        ri[ri[f, LEADER], FOLLOWER] = -1
    k = ri[f, BLOCK]
    el[ri[f, FIRST], AFTER] = st[BLOCKS + k]
    st[BLOCKS + k] = ri[f, FIRST]
    ri[f, STATE] = UNUSED


@inner
def note_link(l, book):
    li, link_lists, st = li_of(book), link_lists_of(book), st_of(book)
    if not li[l, NOTED]:
        li[l, NOTED] = 1
        link_lists[NOTED_LINKS, st[N_NOTED]] = l
        st[N_NOTED] += 1


@inner
def begin(f, now, nbytes, latency, book):
    rf, ri, row_lists, st = rf_of(book), ri_of(book), row_lists_of(book), st_of(book)
    rf[f, REMAINING] = rf[f, NBYTES] = nbytes
    rf[f, RATE], rf[f, SINCE], rf[f, KEY], rf[f, FINISH] = 0.0, now, now + latency, np.inf
    ri[f, HELD], ri[f, GROUPED], ri[f, PLACE] = NOTHING, 0, -1
    ri[f, LEADER] = ri[f, FOLLOWER] = -1
    ri[f, TIGHT] = ri[f, IS_TOUCHED] = 0
    if latency > 0.0:
        ri[f, STATE] = LATENCY
        set_key(ri[f, PLACE], f, rf[f, KEY], book)
    else:
        ri[f, STATE] = WAITING
        row_lists[ARRIVALS, st[N_ARRIVALS]] = f
        st[N_ARRIVALS] += 1


@inner
def reserve(f, count, book):
    """A block of at least `count` elements for a row; its first."""
    ri, el, st = ri_of(book), el_of(book), st_of(book)
    k = 1
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


@inner
def latest(f, book):
    """When the youngest row that shares a link with row f, or itself, began to move its bytes."""
    rf, ri, el, lf = rf_of(book), ri_of(book), el_of(book), lf_of(book)
    began = rf[f, BEGAN]
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        began = max(began, lf[el[e, LINK], LAST_BEGAN])
    return began


@inner
def attach_all(now, book):
    """Put waiting rows on their links; how many, moved to the front of `ARRIVALS`."""
    rf, ri, el, lf = rf_of(book), ri_of(book), el_of(book), lf_of(book)
    li, row_lists, st = li_of(book), row_lists_of(book), st_of(book)
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
            thread(e, li, el[e, LINK], GUESTS, el)
            li[el[e, LINK], ROWS] += 1
            lf[el[e, LINK], LAST_BEGAN] = now
        ri[f, STATE] = SHARING
        rf[f, SINCE] = rf[f, BEGAN] = now
        row_lists[ARRIVALS, arrived] = f
        arrived += 1
    st[N_ARRIVALS] = 0
    return arrived
