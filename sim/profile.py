"""Profile: the wall time of a run by cause, each second counted once."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import simpy

CAUSES = ("gradients", "strategy", "network", "records", "evaluation", "events")
"""Forward and backward passes with inner steps; arithmetic of strategies and codecs; sharing of
links; the trace; evaluation of the model; all else, which is the event loop."""


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

    @contextmanager
    def __call__(self, cause: str) -> Iterator[None]:
        """Count the wall time of a `with` block as this cause's."""
        self._switch()
        self._causes.append(cause)
        try:
            yield
        finally:
            self._switch()
            self._causes.pop()

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

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._causes:
            self.seconds[self._causes[-1]] += now - self._since
        self._since = now
