"""The region that is solved again: what starts it, what joins at its border, what it commits.

Legend: f, g rows; l, b links (b: of a group); e elements (row, link); p pairs (link, group).
"""

from __future__ import annotations

import numpy as np

from sim.network.solver.filling import fill
from sim.network.solver.groups import join_group, leave_group, rekey, rekey_group
from sim.network.solver.heaps import set_key, thread, unheap, unthread
from sim.network.solver.layout import (
    AFTER,
    AMOUNT,
    ARRIVALS,
    BINDS,
    BOUND_LEVEL,
    CAP,
    CAPACITY,
    CLOCK,
    CLOCK_SINCE,
    COUNT,
    FIRST,
    FOLLOWER,
    FREE,
    FREE_BASE,
    GROUP_LEVEL,
    GROUP_MARK,
    GROUPED,
    GUESTS,
    HELD,
    INSIDE,
    IS_TOUCHED,
    KEY,
    LEADER,
    LEVEL,
    LINK,
    LINK_MARK,
    LOAD,
    MARK,
    N_GROUP,
    N_GROUPS,
    N_LINKS,
    N_NOTED,
    N_REGION,
    N_SINGLES,
    N_SWITCHED,
    N_TOUCHED,
    NEXT_HELD,
    NOTED,
    NOTED_LINKS,
    OF_LINK_AFTER,
    P_AFTER,
    P_COUNT,
    P_GROUP,
    P_LINK,
    PAIRS,
    PAIRS_HERE,
    PLACE,
    RATE,
    REGION,
    REGION_GROUPS,
    REGION_LINKS,
    REMAINING,
    ROW,
    ROWS,
    SHARING,
    SINCE,
    SINGLES,
    SINGLES_INSIDE,
    STAMP,
    STATE,
    SWITCHED,
    TIGHT,
    TOP,
    TOUCHED,
    WEIGHT,
    WEIGHT_BASE,
    el_of,
    inner,
    lf_of,
    li_of,
    link_lists_of,
    load_of,
    pf_of,
    pi_of,
    rf_of,
    ri_of,
    row_lists_of,
    st_of,
)
from sim.network.solver.rows import note_link

_HIGHER = 1.0 + 1e-10
"""What counts as a higher level in the certificate."""
_FULL = 1e-9
"""Share of a link's capacity that may be left on one that is full."""


@inner
def solve(now, arrivals, book):
    st = st_of(book)
    st[STAMP] += 1
    st[N_LINKS] = st[N_REGION] = st[N_GROUPS] = 0
    seed(arrivals, book)
    rows = groups = 0
    while True:
        close(rows, book)
        gather(rows, groups, book)
        rows, groups = st[N_REGION], st[N_GROUPS]
        fill(book)
        border(book)
        if st[N_REGION] == rows and st[N_GROUPS] == groups:
            break
    commit(now, book)


@inner
def add(f, book):
    """Put a row into the region: by its group, or as a single."""
    ri, row_lists, st = ri_of(book), row_lists_of(book), st_of(book)
    if ri[f, STATE] != SHARING:
        return
    if ri[f, GROUPED]:
        add_group(ri[f, HELD], book)
    elif ri[f, MARK] != st[STAMP]:
        ri[f, MARK] = st[STAMP]
        row_lists[REGION, st[N_REGION]] = f
        st[N_REGION] += 1


@inner
def add_group(b, book):
    """Put all that a link holds into the region."""
    ri, el, li, row_lists = ri_of(book), el_of(book), li_of(book), row_lists_of(book)
    link_lists, st = link_lists_of(book), st_of(book)
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


@inner
def seed(arrivals, book):
    ri, el, lf, li = ri_of(book), el_of(book), lf_of(book), li_of(book)
    pi, row_lists, link_lists, st = (
        pi_of(book),
        row_lists_of(book),
        link_lists_of(book),
        st_of(book),
    )
    for i in range(arrivals):
        f = row_lists[ARRIVALS, i]
        add(f, book)
        for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
            l = el[e, LINK]
            if li[l, N_GROUP] + li[l, N_SINGLES] > 0:
                note_link(l, book)
    for i in range(st[N_TOUCHED]):
        f = row_lists[TOUCHED, i]
        ri[f, IS_TOUCHED] = 0
        add(f, book)
    for i in range(st[N_NOTED]):
        l = link_lists[NOTED_LINKS, i]
        li[l, NOTED] = 0
        if li[l, N_GROUP] + li[l, N_SINGLES] > 0:
            add_group(l, book)
        if lf[l, LOAD] > lf[l, CAPACITY]:
            p, e = li[l, PAIRS_HERE], li[l, GUESTS]
            while p >= 0:
                add_group(pi[p, P_GROUP], book)
                p = pi[p, OF_LINK_AFTER]
            while e >= 0:
                add(el[e, ROW], book)
                e = el[e, AFTER]
    st[N_TOUCHED] = st[N_NOTED] = 0


@inner
def close(start, book):
    """Rows that have caught up with one of the region belong to it."""
    ri, row_lists, st = ri_of(book), row_lists_of(book), st_of(book)
    i = start
    while i < st[N_REGION]:
        g = ri[row_lists[REGION, i], FOLLOWER]
        if g >= 0 and ri[g, TIGHT]:
            add(g, book)
        i += 1


@inner
def gather(rows, groups, book):
    """Add what is new in the region to the base values of the links it crosses."""
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    lf, li, pf, pi = lf_of(book), li_of(book), pf_of(book), pi_of(book)
    row_lists, link_lists, st = row_lists_of(book), link_lists_of(book), st_of(book)
    for i in range(groups, st[N_GROUPS]):
        b = link_lists[REGION_GROUPS, i]
        level, p = lf[b, GROUP_LEVEL], li[b, PAIRS]
        while p >= 0:
            l = pi[p, P_LINK]
            if li[l, LINK_MARK] != st[STAMP]:
                enter(l, book)
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
                enter(l, book)
            lf[l, FREE_BASE] += load[e] * rate
            lf[l, WEIGHT_BASE] += load[e] * weight
            li[l, INSIDE] += 1
            li[l, SINGLES_INSIDE] += held == l


@inner
def enter(l, book):
    """A link that the region crosses."""
    lf, li, link_lists, st = lf_of(book), li_of(book), link_lists_of(book), st_of(book)
    li[l, LINK_MARK] = st[STAMP]
    link_lists[REGION_LINKS, st[N_LINKS]] = l
    st[N_LINKS] += 1
    lf[l, FREE_BASE] = lf[l, CAPACITY] - lf[l, LOAD]
    lf[l, WEIGHT_BASE] = 0.0
    li[l, INSIDE] = li[l, SINGLES_INSIDE] = 0


@inner
def border(book):
    """Add to the region what is outside and whose certificate is broken."""
    lf, li, link_lists, st = lf_of(book), li_of(book), link_lists_of(book), st_of(book)
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
                add_group(l, book)
        # What was full before had nobody higher: only a lower level can be beaten by a guest.
        held = li[l, N_GROUP] + li[l, N_SINGLES] > 0
        if li[l, BINDS] and not (held and lf[l, BOUND_LEVEL] >= lf[l, GROUP_LEVEL]):
            add_higher(l, lf[l, TOP] * _HIGHER, book)


@inner
def add_higher(l, level, book):
    """Put into the region the guests of a link outside it that have a higher level."""
    rf, ri, el, lf = rf_of(book), ri_of(book), el_of(book), lf_of(book)
    li, pi, st = li_of(book), pi_of(book), st_of(book)
    e, p = li[l, GUESTS], li[l, PAIRS_HERE]
    while e >= 0:
        f = el[e, ROW]
        if ri[f, MARK] != st[STAMP] and rf[f, RATE] > level * rf[f, WEIGHT]:
            add(f, book)
        e = el[e, AFTER]
    while p >= 0:
        b = pi[p, P_GROUP]
        if li[b, GROUP_MARK] != st[STAMP] and lf[b, GROUP_LEVEL] > level:
            add_group(b, book)
        p = pi[p, OF_LINK_AFTER]


@inner
def commit(now, book):
    """Make the new levels those of the groups and singles, and move their events."""
    rf, ri, lf, li = rf_of(book), ri_of(book), lf_of(book), li_of(book)
    row_lists, link_lists, st = row_lists_of(book), link_lists_of(book), st_of(book)
    for i in range(st[N_GROUPS]):
        b = link_lists[REGION_GROUPS, i]
        lf[b, CLOCK] += lf[b, GROUP_LEVEL] * (now - lf[b, CLOCK_SINCE])
        lf[b, CLOCK_SINCE] = now
    for i in range(st[N_SWITCHED]):  # with the clocks of now, before any level is another
        f = row_lists[SWITCHED, i]
        b = ri[f, HELD]
        rf[f, REMAINING] = max((rf[f, KEY] - lf[b, CLOCK]) * rf[f, WEIGHT], 0.0)
        leave_group(f, book)
    for i in range(st[N_LINKS]):
        l = link_lists[REGION_LINKS, i]
        lf[l, LOAD] = lf[l, CAPACITY] - lf[l, FREE]
        others = li[l, N_GROUP] > 0 or li[l, N_SINGLES] > li[l, SINGLES_INSIDE]
        mine = li[l, GROUP_MARK] == st[STAMP] or not others
        if li[l, BINDS] and mine:
            lf[l, GROUP_LEVEL] = lf[l, BOUND_LEVEL]
    for i in range(st[N_SWITCHED]):
        f = row_lists[SWITCHED, i]
        join_group(f, ri[f, NEXT_HELD], now, rf[f, REMAINING], book)
        rekey_group(ri[f, HELD], book)
    for i in range(st[N_REGION]):
        commit_single(row_lists[REGION, i], now, book)
    for i in range(st[N_GROUPS]):
        rekey_group(link_lists[REGION_GROUPS, i], book)
    for i in range(st[N_REGION]):  # gaps depend on two rates: now both are known
        f = row_lists[REGION, i]
        if not ri[f, GROUPED]:
            rekey(f, now, book)
            set_key(ri[f, PLACE], f, rf[f, KEY], book)
            g = ri[f, FOLLOWER]
            if g >= 0 and ri[g, STATE] == SHARING and ri[g, MARK] != st[STAMP]:
                rekey(g, now, book)
                set_key(ri[g, PLACE], g, rf[g, KEY], book)


@inner
def commit_single(f, now, book):
    """Give a single its rate; one that is plain joins the group of the link that holds it."""
    rf, ri, el, li = rf_of(book), ri_of(book), el_of(book), li_of(book)
    held, old = ri[f, NEXT_HELD], ri[f, HELD]
    left = max(rf[f, REMAINING] - rf[f, RATE] * (now - rf[f, SINCE]), 0.0)
    plain = rf[f, CAP] == np.inf and ri[f, LEADER] < 0 and ri[f, FOLLOWER] < 0
    rf[f, REMAINING], rf[f, SINCE], rf[f, RATE] = left, now, rf[f, LEVEL] * rf[f, WEIGHT]
    if held == old and not plain:
        return
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l = el[e, LINK]
        unthread(e, li, l, SINGLES if l == old else GUESTS, el)
        li[l, N_SINGLES] += (l == held and not plain) - (l == old)
        if not plain:
            thread(e, li, l, SINGLES if l == held else GUESTS, el)
    ri[f, HELD] = held
    if plain:
        if ri[f, PLACE] >= 0:
            unheap(ri[f, PLACE], book)
        join_group(f, held, now, left, book)
        rekey_group(held, book)
