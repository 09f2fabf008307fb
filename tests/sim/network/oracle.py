"""Flows on links, solved anew at every event in plain Python: slow and, one hopes, obviously right.

It shares nothing with `sim.network` but the names of the methods. At every instant all rates are
computed again by raising one level for everybody until a link is full or a row reaches its cap
(progressive filling: Bertsekas and Gallager, Data Networks, 2nd edition, section 6.5.2); then time
goes on to the next thing that can happen. No heap of ends, no regions, no remembered rates.

Rules: latency first, then sharing. A row at rate r takes a * r of each link it crosses with
coefficient a; r / weight is what is equalised; r <= cap. A link that goes down fails what moves
bytes over it; a row whose latency ends while a link of its is down fails then. In one instant
ends come first, then what the script does, then starts. A row that follows a leader with a slack
has never moved more than the leader has, plus the slack, until the leader has ended: when it has
moved as much as it may (it is *tight*) it goes no faster than the leader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

LATENT, MOVING, ENDED = "latent", "moving", "ended"
_SAME = 1e-12
"""Levels this close, relatively, are one; so are times, absolutely and relatively."""


@dataclass(eq=False)
class Row:
    """Bytes in motion; `use` is the coefficient of each link."""

    use: dict[int, float]
    nbytes: float
    begins: float
    cap: float
    weight: float
    on_end: Callable[[Row, bool], None] | None
    tag: object
    moved: float = 0.0
    phase: str = LATENT
    leader: Row | None = None
    slack: float = math.inf
    tight: bool = field(default=False)


class Oracle:
    """Links and a script; the methods that `sim.network.fluid.Links` has mean the same here."""

    def __init__(self, capacity: Sequence[float]) -> None:
        self.now = 0.0
        self.capacity = [float(c) for c in capacity]
        self.instants: list[float] = []
        """Every time at which something happened, in order."""
        self._cut: set[int] = set()
        self._rows: list[Row] = []
        self._script: list[tuple[float, int, Callable, tuple]] = []
        self._order = count()

    def at(self, time: float, act: Callable, *args: object) -> None:
        """Call `act(*args)` at a time."""
        self._script.append((time, next(self._order), act, args))

    def activity(
        self,
        links,
        nbytes,
        latency=0.0,
        loads=None,
        cap=math.inf,
        on_end=None,
        tag=None,
        weight=1.0,
    ) -> Row:
        loads = [1.0] * len(links) if loads is None else loads
        use = {int(link): float(a) for link, a in zip(links, loads)}
        row = Row(use, float(nbytes), self.now + latency, cap, weight, on_end, tag)
        self._rows.append(row)
        return row

    def follow(self, row: Row, leader: Row, slack: float) -> None:
        assert row.weight == leader.weight, "what unequal weights would mean is not defined"
        row.leader, row.slack = leader, slack
        row.tight = row.moved >= leader.moved + slack

    def extend(self, row: Row, nbytes: float) -> None:
        assert row.phase != ENDED
        row.nbytes += nbytes

    def cancel(self, row: Row) -> float:
        row.phase = ENDED
        return row.moved

    def moved(self, row: Row) -> float:
        return row.moved

    def set_capacity(self, link: int, capacity: float) -> None:
        self.capacity[link] = capacity

    def down(self, link: int) -> None:
        self._cut.add(link)
        for row in list(self._rows):
            if row.phase == MOVING and link in row.use:
                self._end(row, ok=False)

    def up(self, link: int) -> None:
        self._cut.discard(link)

    def run(self, until: float = math.inf) -> None:
        """Go on until nothing can happen any more, or until a time."""
        while True:
            rates = self.rates()
            ends = {row: self._end_of(row, rates) for row in self._rows}
            closes = {row: self._closing_of(row, rates) for row in self._rows}
            starts = [row.begins for row in self._rows if row.phase == LATENT]
            acts = [time for time, *_ in self._script]
            time = min([*ends.values(), *closes.values(), *starts, *acts], default=math.inf)
            if time > until or time == math.inf:
                self._advance(until, rates)
                return
            self._advance(time, rates)
            self.instants.append(time)
            for row, closing in closes.items():
                row.tight = row.tight or closing <= self._soon()
            for row in [row for row, end in ends.items() if end <= self._soon()]:
                self._end(row, ok=True)
            self._act()
            self._start()

    def rates(self) -> dict[Row, float]:
        """Of every row that moves bytes, in bytes/s."""
        moving = [row for row in self._rows if row.phase == MOVING]
        rates: dict[Row, float] = {}
        # Whoever is tight on a row that does not move bytes yet cannot move either.
        open_ = _with_followers([r for r in moving if self._held(r)], moving)
        rates.update(dict.fromkeys(open_, 0.0))
        open_ = [row for row in moving if row not in rates]
        while open_:
            level, full = self._fill(open_, rates)
            frozen = [
                row
                for row in open_
                if row.cap <= level * row.weight * (1 + _SAME) or not full.isdisjoint(row.use)
            ]
            for row in _with_followers(frozen, open_):
                rates[row] = min(level * row.weight, row.cap)
            open_ = [row for row in open_ if row not in rates]
        return rates

    def _fill(self, open_: list[Row], rates: dict[Row, float]) -> tuple[float, set[int]]:
        """The level at which the first link is full, or the first row at its cap; full links."""
        taken: dict[int, float] = {}
        demand: dict[int, float] = {}
        for row, rate in rates.items():
            for link, a in row.use.items():
                taken[link] = taken.get(link, 0.0) + a * rate
        for row in open_:
            for link, a in row.use.items():
                demand[link] = demand.get(link, 0.0) + a * row.weight
        levels = {
            link: max(self.capacity[link] - taken.get(link, 0.0), 0.0) / total
            for link, total in demand.items()
        }
        level = min([*levels.values(), *(row.cap / row.weight for row in open_)])
        return level, {link for link, own in levels.items() if own <= level * (1 + _SAME)}

    def _held(self, row: Row) -> bool:
        return row.tight and row.leader is not None and row.leader.phase == LATENT

    def _end_of(self, row: Row, rates: dict[Row, float]) -> float:
        if row.phase != MOVING or rates[row] <= 0.0:
            return math.inf
        return self.now + max(row.nbytes - row.moved, 0.0) / rates[row]

    def _closing_of(self, row: Row, rates: dict[Row, float]) -> float:
        """When a row that follows will have moved as much as it may."""
        leader = row.leader
        if row.tight or leader is None or row.phase != MOVING or leader.phase == ENDED:
            return math.inf
        faster = rates[row] - rates.get(leader, 0.0)
        if faster <= _SAME * rates[row]:
            return math.inf
        return self.now + max(leader.moved + row.slack - row.moved, 0.0) / faster

    def _advance(self, time: float, rates: dict[Row, float]) -> None:
        if time == math.inf:
            return
        for row, rate in rates.items():
            row.moved = min(row.moved + rate * (time - self.now), row.nbytes)
            if row.tight and row.leader is not None and row.leader.phase != ENDED:
                row.tight = rate >= rates.get(row.leader, 0.0) * (1 - _SAME)
        self.now = time

    def _act(self) -> None:
        due = sorted(entry for entry in self._script if entry[0] <= self._soon())
        self._script = [entry for entry in self._script if entry not in due]
        for _, _, act, args in due:
            act(*args)

    def _start(self) -> None:
        """Begin to move bytes; who has none to move, or no link, is done."""
        while due := [r for r in self._rows if r.phase == LATENT and r.begins <= self._soon()]:
            for row in due:
                row.phase = MOVING
            for row in due:
                if row.phase == MOVING and not self._cut.isdisjoint(row.use):
                    self._end(row, ok=False)
                elif row.phase == MOVING and (row.nbytes <= 0.0 or not row.use):
                    self._end(row, ok=True)
        self._rows = [row for row in self._rows if row.phase != ENDED]

    def _end(self, row: Row, ok: bool) -> None:
        row.phase = ENDED
        row.moved = row.nbytes if ok else row.moved
        if row.on_end is not None:
            row.on_end(row, ok)

    def _soon(self) -> float:
        return self.now + _SAME * (1.0 + self.now)


def _with_followers(rows: list[Row], among: list[Row]) -> list[Row]:
    """These rows and, again and again, those among others that are tight on one of them."""
    found = list(dict.fromkeys(rows))
    for row in found:  # grows while it is read
        found += [
            other
            for other in among
            if other.tight and other.leader is row and row.phase != ENDED and other not in found
        ]
    return found
