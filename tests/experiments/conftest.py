"""Records of a run that are easy to do by hand."""

import pytest

from sim.trace import Trace


@pytest.fixture
def two_rounds():
    """Two rounds of three nodes: compute, a collective, a transfer, node 2 away for a while."""
    trace = Trace()
    trace.record("metric", time=0.0, step=0, loss=2.0, online=3)
    for r in range(2):
        at = 10.0 * r
        trace.record("round", time=at, number=r, members=3)
        for node in range(3):
            trace.record("compute", start=at, end=at + 4 + node, node=node, n=1, steps=5)
        span = {"start": at + 4, "end": at + 9, "time": at + 9}
        trace.record("collective", **span, op="all_reduce", n=3, members=[0, 1, 2])
    trace.record("transfer", time=13.0, src=0, dst=2, nbytes=8.0, start=11.0, status="delivered")
    trace.record("transfer", time=13.0, src=0, dst=1, nbytes=8.0, start=12.0, status="lost")
    trace.record("session", time=3.0, node=2, event="left")
    trace.record("session", time=11.0, node=2, event="joined")
    trace.record("session", time=13.0, node=2, event="admitted")
    link = {"u": "0", "v": "1", "capacity": 10.0}
    trace.record("link", time=4.0, link=0, load=5.0, **link)
    trace.record("link", time=9.0, link=0, load=0.0, **link)
    trace.record("metric", time=20.0, step=10, loss=1.0, online=3)
    return trace
