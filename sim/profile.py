"""Profile: the wall time of a run by cause, each second counted once."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import simpy

CAUSES = ("gradients", "strategy", "network", "records", "evaluation", "events")
"""Forward and backward passes with inner steps; arithmetic of strategies and codecs; sharing of
links; the trace; evaluation of the model; all else, which is the event loop, what steps take on
devices, and how collectives go about."""


class Profile:
    """Exclusive wall time by cause: what runs inside another cause is not counted there.

    >>> profile = Profile()
    >>> with profile("strategy"), profile("gradients"):
    ...     pass
    >>> sorted(cause for cause, seconds in profile.seconds.items() if seconds > 0)
    ['gradients', 'strategy']
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._causes: list[str] = []
        self._since = 0.0

    def __call__(self, cause: str) -> _Counting:
        """Count the wall time of a `with` block as this cause's."""
        return _Counting(self, cause)

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count seconds of one cause as another's; those of workers are known only afterwards."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def program(self, generator: Generator[simpy.Event, Any, Any]) -> Generator:
        """The same generator; what it does between two of its events is counted as strategy."""
        resume, value = generator.send, None
        while True:
            try:
                with self("strategy"):
                    event = resume(value)
            except StopIteration as end:
                return end.value
            try:
                value, resume = (yield event), generator.send
            except (Exception, GeneratorExit) as error:  # an interrupt or a failed event
                value, resume = error, generator.throw

    def enter(self, cause: str) -> None:
        """From now on time is this cause's, until it is left."""
        self._switch()
        self._causes.append(cause)

    def leave(self) -> None:
        """From now on time is that of the cause before."""
        self._switch()
        self._causes.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._causes:
            self.seconds[self._causes[-1]] += now - self._since
        self._since = now


class _Counting:
    """A `with` block of a profile; a class, for there are several in every event."""

    __slots__ = ("_cause", "_profile")

    def __init__(self, profile: Profile, cause: str) -> None:
        self._profile, self._cause = profile, cause

    def __enter__(self) -> None:
        self._profile.enter(self._cause)

    def __exit__(self, *_: object) -> None:
        self._profile.leave()
