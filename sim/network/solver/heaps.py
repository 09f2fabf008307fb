"""Heaps: of events, of the rows of a group, and of the offers of a filling; lists of elements."""

from __future__ import annotations

from sim.network.solver.layout import (
    AFTER,
    BEFORE,
    CHILD,
    GROUP_PLACE,
    IS_TOUCHED,
    KEY,
    N_HEAP,
    N_TOUCHED,
    PLACE,
    PREVIOUS,
    SIBLING,
    TOUCHED,
    heap_item_of,
    heap_key_of,
    inner,
    li_of,
    ri_of,
    row_lists_of,
    st_of,
)


@inner
def set_key(place, item, key, book):
    ri, li, heap_key, heap_item = ri_of(book), li_of(book), heap_key_of(book), heap_item_of(book)
    st = st_of(book)
    if place < 0:
        place = st[N_HEAP]
        st[N_HEAP] += 1
        up(place, key, item, heap_key, heap_item, ri, li)
    elif key < heap_key[place]:
        up(place, key, item, heap_key, heap_item, ri, li)
    else:
        down(place, key, item, heap_key, heap_item, ri, li, st[N_HEAP])


@inner
def unheap(place, book):
    ri, li, heap_key, heap_item = ri_of(book), li_of(book), heap_key_of(book), heap_item_of(book)
    st = st_of(book)
    hk, hi = heap_key, heap_item
    put(place, -1, hi[place], ri, li)
    st[N_HEAP] -= 1
    last = st[N_HEAP]
    if place == last:
        return
    key, item = hk[last], hi[last]
    if place > 0 and key < hk[(place - 1) >> 1]:
        up(place, key, item, hk, hi, ri, li)
    else:
        down(place, key, item, hk, hi, ri, li, last)


@inner
def put(place, where, item, ri, li):
    """Note the place of an item, which now is `where`."""
    if item >= 0:
        ri[item, PLACE] = where
    else:
        li[-1 - item, GROUP_PLACE] = where


@inner
def up(i, key, item, hk, hi, ri, li):
    while i > 0:
        parent = (i - 1) >> 1
        if hk[parent] <= key:
            break
        hk[i], hi[i] = hk[parent], hi[parent]
        put(i, i, hi[i], ri, li)
        i = parent
    hk[i], hi[i] = key, item
    put(i, i, item, ri, li)


@inner
def down(i, key, item, hk, hi, ri, li, size):
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and hk[child + 1] < hk[child]:
            child += 1
        if hk[child] >= key:
            break
        hk[i], hi[i] = hk[child], hi[child]
        put(i, i, hi[i], ri, li)
        i = child
    hk[i], hi[i] = key, item
    put(i, i, item, ri, li)


@inner
def meld(f, g, rf, ri):
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


@inner
def heap_without(root, f, rf, ri):
    """The root of the heap once row f is taken out."""
    below = meld_all(ri[f, CHILD], rf, ri)
    if root != f:
        before, after = ri[f, PREVIOUS], ri[f, SIBLING]
        if ri[before, CHILD] == f:
            ri[before, CHILD] = after
        else:
            ri[before, SIBLING] = after
        if after >= 0:
            ri[after, PREVIOUS] = before
        below = meld(root, below, rf, ri)
    ri[f, CHILD] = ri[f, SIBLING] = ri[f, PREVIOUS] = -1
    return below


@inner
def meld_all(f, rf, ri):
    """One heap of a list of siblings: in pairs from the left, then together from the right."""
    pairs = -1
    while f >= 0:
        g = ri[f, SIBLING]
        after = ri[g, SIBLING] if g >= 0 else -1
        ri[f, SIBLING] = ri[f, PREVIOUS] = -1
        if g >= 0:
            ri[g, SIBLING] = ri[g, PREVIOUS] = -1
        both = meld(f, g, rf, ri)
        ri[both, SIBLING] = pairs
        pairs = both
        f = after
    root = -1
    while pairs >= 0:
        after = ri[pairs, SIBLING]
        ri[pairs, SIBLING] = ri[pairs, PREVIOUS] = -1
        root = meld(root, pairs, rf, ri)
        pairs = after
    return root


@inner
def pop(fk, fi, size):
    size -= 1
    fk[0], fi[0] = fk[size], fi[size]
    sink(fk, fi, 0, size)
    return size


@inner
def sink(fk, fi, i, size):
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


@inner
def float(fk, fi, i):
    key, item = fk[i], fi[i]
    while i > 0:
        parent = (i - 1) >> 1
        if fk[parent] <= key:
            break
        fk[i], fi[i] = fk[parent], fi[parent]
        i = parent
    fk[i], fi[i] = key, item


@inner
def thread(e, owners, at, which, el):
    """Put an element into a list: GUESTS or SINGLES of a link, or the elements of a pair."""
    head = owners[at, which]
    el[e, AFTER], el[e, BEFORE] = head, -1
    if head >= 0:
        el[head, BEFORE] = e
    owners[at, which] = e


@inner
def unthread(e, owners, at, which, el):
    before, after = el[e, BEFORE], el[e, AFTER]
    if before >= 0:
        el[before, AFTER] = after
    else:
        owners[at, which] = after
    if after >= 0:
        el[after, BEFORE] = before


@inner
def touch(f, book):
    """Have a single solved again at the end of this instant."""
    ri, row_lists, st = ri_of(book), row_lists_of(book), st_of(book)
    if not ri[f, IS_TOUCHED]:
        ri[f, IS_TOUCHED] = 1
        row_lists[TOUCHED, st[N_TOUCHED]] = f
        st[N_TOUCHED] += 1
