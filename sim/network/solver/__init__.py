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

Legend: f, g rows; l, b links (b: of a group); e elements (row, link); p pairs (link, group).
"""
