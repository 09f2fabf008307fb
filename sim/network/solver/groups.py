"""Groups: the rows that one link holds; pairs (link, group); the next events of both.

Legend: f, g rows; l, b links (b: of a group); e elements (row, link); p pairs (link, group).
"""

from __future__ import annotations

import numpy as np

from sim.network.solver.heaps import heap_without, meld, set_key, thread, touch, unheap, unthread
from sim.network.solver.layout import (
    AMOUNT,
    CHILD,
    CLOCK,
    CLOCK_SINCE,
    COUNT,
    FINISH,
    FIRST,
    FREE_PAIR,
    GROUP_LEVEL,
    GROUP_PLACE,
    GROUPED,
    GUESTS,
    HELD,
    KEY,
    LEADER,
    LINK,
    N_GROUP,
    N_SINGLES,
    NBYTES,
    OF_LINK_AFTER,
    OF_LINK_BEFORE,
    P_AFTER,
    P_BEFORE,
    P_CHAIN,
    P_COUNT,
    P_ELEMENTS,
    P_GROUP,
    P_LINK,
    PAIR,
    PAIRS,
    PAIRS_HERE,
    PREVIOUS,
    RATE,
    REMAINING,
    ROOT,
    SHARING,
    SIBLING,
    SINCE,
    SINGLES,
    SLACK,
    STATE,
    TIGHT,
    TOP_PAIR,
    WEIGHT,
    buckets_of,
    el_of,
    inner,
    lf_of,
    li_of,
    load_of,
    pf_of,
    pi_of,
    rf_of,
    ri_of,
    st_of,
)


@inner
def left_in_group(f, now, book):
    rf, ri, lf = rf_of(book), ri_of(book), lf_of(book)
    b = ri[f, HELD]
    clock = lf[b, CLOCK] + lf[b, GROUP_LEVEL] * (now - lf[b, CLOCK_SINCE])
    return max((rf[f, KEY] - clock) * rf[f, WEIGHT], 0.0)


@inner
def join_group(f, b, now, left, book):
    """Row f, which has `left` bytes to move and is in no list, is held by link b, in its group."""
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    lf, li, pf, pi = lf_of(book), li_of(book), pf_of(book), pi_of(book)
    buckets = buckets_of(book)
    if li[b, N_GROUP] == 0:
        lf[b, CLOCK] = 0.0
        lf[b, CLOCK_SINCE] = now
    clock = lf[b, CLOCK] + lf[b, GROUP_LEVEL] * (now - lf[b, CLOCK_SINCE])
    rf[f, KEY] = clock + left / rf[f, WEIGHT]
    ri[f, HELD], ri[f, GROUPED] = b, 1
    ri[f, CHILD] = ri[f, SIBLING] = ri[f, PREVIOUS] = -1
    li[b, ROOT] = meld(li[b, ROOT], f, rf, ri)
    li[b, N_GROUP] += 1
    mask = len(buckets) - 1
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l = el[e, LINK]
        h = (l * 40503 + b * 69069) & mask
        p = buckets[h]
        while p >= 0 and not (pi[p, P_LINK] == l and pi[p, P_GROUP] == b):
            p = pi[p, P_CHAIN]
        if p < 0:
            p = new_pair(l, b, h, book)
        pf[p, AMOUNT] += load[e] * rf[f, WEIGHT]
        pi[p, P_COUNT] += 1
        el[e, PAIR] = p
        thread(e, pi, p, P_ELEMENTS, el)


@inner
def new_pair(l, b, h, book):
    li, pf, pi, buckets = li_of(book), pf_of(book), pi_of(book), buckets_of(book)
    st = st_of(book)
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


@inner
def leave_group(f, book):
    """Take a row out of its group; its elements are in no list then."""
    rf, ri, el, load = rf_of(book), ri_of(book), el_of(book), load_of(book)
    li, pf, pi = li_of(book), pf_of(book), pi_of(book)
    b = ri[f, HELD]
    li[b, ROOT] = heap_without(li[b, ROOT], f, rf, ri)
    li[b, N_GROUP] -= 1
    ri[f, GROUPED] = 0
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        p = el[e, PAIR]
        pf[p, AMOUNT] -= load[e] * rf[f, WEIGHT]
        pi[p, P_COUNT] -= 1
        unthread(e, pi, p, P_ELEMENTS, el)
        if pi[p, P_COUNT] == 0:
            drop_pair(p, book)
    rekey_group(b, book)


@inner
def drop_pair(p, book):
    li, pi, buckets, st = li_of(book), pi_of(book), buckets_of(book), st_of(book)
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


@inner
def make_single(f, now, book):
    """A row of a group gets a rate and an event of its own."""
    rf, ri, el, lf = rf_of(book), ri_of(book), el_of(book), lf_of(book)
    li = li_of(book)
    if ri[f, STATE] != SHARING or not ri[f, GROUPED]:
        return
    b, rate = ri[f, HELD], lf[ri[f, HELD], GROUP_LEVEL] * rf[f, WEIGHT]
    rf[f, REMAINING], rf[f, SINCE], rf[f, RATE] = left_in_group(f, now, book), now, rate
    leave_group(f, book)
    for e in range(ri[f, FIRST], ri[f, FIRST] + ri[f, COUNT]):
        l = el[e, LINK]
        thread(e, li, l, SINGLES if l == b else GUESTS, el)
    li[b, N_SINGLES] += 1
    touch(f, book)


@inner
def moved_row(f, now, rf, ri):
    left = rf[f, REMAINING] - rf[f, RATE] * (now - rf[f, SINCE])
    return rf[f, NBYTES] - max(left, 0.0)


@inner
def gap(f, now, rf, ri):
    return moved_row(ri[f, LEADER], now, rf, ri) + rf[f, SLACK] - moved_row(f, now, rf, ri)


@inner
def rekey(f, now, book):
    """When a single has its last byte, and its next event."""
    rf, ri = rf_of(book), ri_of(book)
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
        rf[f, KEY] = min(finish, now + max(gap(f, now, rf, ri), 0.0) / faster)


@inner
def rekey_group(b, book):
    """Move the next event of a group to where its first row ends; none without rows."""
    rf, lf, li = rf_of(book), lf_of(book), li_of(book)
    f = li[b, ROOT]
    place = li[b, GROUP_PLACE]
    if f < 0:
        if place >= 0:
            unheap(place, book)
        return
    level, key = lf[b, GROUP_LEVEL], np.inf
    if level > 0.0:
        left = max(rf[f, KEY] - lf[b, CLOCK], 0.0)
        key = lf[b, CLOCK_SINCE] + left / level
    set_key(place, -1 - b, key, book)
