"""Progressive filling of a region: its groups and singles get their levels, tightest link first.

Legend: f, g rows; l, b links (b: of a group); e elements (row, link); p pairs (link, group).
"""

from __future__ import annotations

import numpy as np

from sim.network.solver.heaps import float, pop, sink
from sim.network.solver.layout import (
    AFTER,
    AMOUNT,
    BINDS,
    BOUND_LEVEL,
    CAP,
    CAPACITY,
    COUNT,
    FIRST,
    FOLLOWER,
    FREE,
    FREE_BASE,
    GROUP_MARK,
    GUESTS,
    INSIDE,
    ITS_CAP,
    ITS_LEADER,
    LEADER,
    LEVEL,
    LINK,
    MARK,
    N_GROUP,
    N_GROUPS,
    N_LINKS,
    N_REGION,
    N_SWITCHED,
    NEXT_HELD,
    NOT_YET,
    OF_LINK_AFTER,
    OPEN,
    OPEN_AMOUNT,
    OPEN_GROUP,
    OPEN_WEIGHT,
    P_AFTER,
    P_COUNT,
    P_ELEMENTS,
    P_GROUP,
    P_LINK,
    P_OPEN,
    PAIR,
    PAIRS,
    PAIRS_HERE,
    RATE,
    REGION,
    REGION_GROUPS,
    REGION_LINKS,
    ROUND,
    ROW,
    ROWS,
    SINGLES,
    STAMP,
    SWITCHED,
    TIGHT,
    TOP,
    WEIGHT,
    WEIGHT_BASE,
    el_of,
    fill_item_of,
    fill_key_of,
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

_TIE = 1.0 + 1e-12
"""Shares this close are one: rounding must not split a tie into two rounds."""


@inner
def offers(book):
    """Reset the region, and heap what each link and each cap would give: (heap size, open rows)."""
    rf, ri, lf, li = rf_of(book), ri_of(book), lf_of(book), li_of(book)
    pf, pi, fill_key, fill_item = pf_of(book), pi_of(book), fill_key_of(book), fill_item_of(book)
    row_lists, link_lists, st = row_lists_of(book), link_lists_of(book), st_of(book)
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
        sink(fk, fi, i, size)
    return size, open_rows


@inner
def fill(book):
    """Give the groups and singles of the region their levels: the tightest link first."""
    rf, ri, lf, li = rf_of(book), ri_of(book), lf_of(book), li_of(book)
    fill_key, fill_item = fill_key_of(book), fill_item_of(book)
    fk, fi = fill_key, fill_item
    size, open_rows = offers(book)
    n_links = len(lf)
    while open_rows > 0:
        key, item = fk[0], fi[0]
        if item >= n_links:
            f = item - n_links
            size = pop(fk, fi, size)
            if ri[f, NEXT_HELD] == NOT_YET:
                own = rf[f, CAP] <= key * rf[f, WEIGHT] or ri[f, LEADER] < 0
                size = freeze(f, key, ITS_CAP if own else ITS_LEADER, size, book)
                open_rows -= 1
            continue
        if li[item, OPEN] == 0:
            size = pop(fk, fi, size)
            continue
        share = max(lf[item, FREE], 0.0) / lf[item, OPEN_WEIGHT]
        if share > key * _TIE:
            fk[0] = share
            sink(fk, fi, 0, size)
            continue
        size = pop(fk, fi, size)
        li[item, BINDS], lf[item, BOUND_LEVEL] = 1, share
        size, closed = bind(item, share, size, book)
        open_rows -= closed


@inner
def bind(l, level, size, book):
    """All that is open on a link gets this level: (heap size, rows that got theirs)."""
    ri, el, li, pi = ri_of(book), el_of(book), li_of(book), pi_of(book)
    st = st_of(book)
    closed = 0
    if li[l, GROUP_MARK] == st[STAMP] and li[l, OPEN_GROUP] > 0:
        closed += li[l, OPEN_GROUP]
        freeze_group(l, level, book)
    e = li[l, SINGLES]
    while e >= 0:
        f = el[e, ROW]
        if ri[f, MARK] == st[STAMP] and ri[f, NEXT_HELD] == NOT_YET:
            size = freeze(f, level, l, size, book)
            closed += 1
        e = el[e, AFTER]
    e = li[l, GUESTS]
    while e >= 0 and li[l, OPEN] > 0:
        f = el[e, ROW]
        if ri[f, MARK] == st[STAMP] and ri[f, NEXT_HELD] == NOT_YET:
            size = freeze(f, level, l, size, book)
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
                    switch(f, b, l, level, book)
                    closed += 1
                e = el[e, AFTER]
        p = pi[p, OF_LINK_AFTER]
    return size, closed


@inner
def freeze_group(b, level, book):
    """Fix the level of what is left of a group on its own link."""
    lf, li, pf, pi = lf_of(book), li_of(book), pf_of(book), pi_of(book)
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


@inner
def switch(f, b, l, level, book):
    """Row f of the open group b is held by link l from now on."""
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    lf, li, pf, pi = lf_of(book), li_of(book), pf_of(book), pi_of(book)
    row_lists, st = row_lists_of(book), st_of(book)
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


@inner
def freeze(f, level, held, size, book):
    """Fix a single's level; who has caught up with it gets no more. Returns the heap's size."""
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    lf, li, fill_key, fill_item = lf_of(book), li_of(book), fill_key_of(book), fill_item_of(book)
    st = st_of(book)
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
        float(fill_key, fill_item, size)
        size += 1
    return size
