"""Who gets how much: the max-min certificate, and cases done by hand."""

import numpy as np
import pytest

from sim.network.sharing import max_min


def rates(capacity, rows, caps=None, weights=None):
    """Rates of rows given as lists of (link, coefficient)."""
    elements = [element for row in rows for element in row]
    return max_min(
        np.array(capacity, float),
        np.array([len(row) for row in rows]),
        np.array([link for link, _ in elements]),
        np.array([load for _, load in elements], float),
        np.full(len(rows), np.inf) if caps is None else np.array(caps, float),
        None if weights is None else np.array(weights, float),
    )


def random_problem(seed):
    rng = np.random.default_rng(seed)
    n_links, n_rows = rng.integers(2, 30), rng.integers(1, 60)
    capacity = rng.choice([1.0, 5.0, 20.0], n_links) * rng.choice([1.0, rng.uniform(0.5, 2)])
    rows = []
    for _ in range(n_rows):
        used = rng.choice(n_links, rng.integers(1, min(n_links, 8) + 1), replace=False)
        rows.append([(int(link), float(rng.integers(1, 5))) for link in used])
    caps = np.where(rng.random(n_rows) < 0.3, rng.uniform(0.05, 3, n_rows), np.inf)
    return capacity, rows, caps


def test_two_flows_share_a_link_equally():
    assert rates([10.0], [[(0, 1)], [(0, 1)]]) == pytest.approx([5.0, 5.0])


def test_what_one_flow_cannot_use_goes_to_the_other():
    assert rates([10.0, 2.0], [[(0, 1), (1, 1)], [(0, 1)]]) == pytest.approx([2.0, 8.0])


def test_a_cap_frees_capacity_for_others():
    assert rates([10.0], [[(0, 1)], [(0, 1)]], caps=[1.0, np.inf]) == pytest.approx([1.0, 9.0])


def test_a_collective_that_crosses_a_link_three_times_has_three_shares_of_it():
    assert rates([8.0], [[(0, 3)], [(0, 1)]]) == pytest.approx([2.0, 2.0])


def test_a_link_of_no_capacity_stops_its_flows():
    assert rates([0.0, 4.0], [[(0, 1), (1, 1)], [(1, 1)]]) == pytest.approx([0.0, 4.0])


def test_a_chain_of_bottlenecks_is_resolved_one_after_the_other():
    rows = [[(0, 1)], [(0, 1), (1, 1)], [(1, 1), (2, 1)], [(2, 1)]]
    assert rates([2.0, 5.0, 20.0], rows) == pytest.approx([1.0, 1.0, 4.0, 16.0])


@pytest.mark.parametrize("seed", range(40))
def test_rates_satisfy_the_max_min_certificate(seed):
    capacity, rows, caps = random_problem(seed)
    rate = rates(capacity, rows, caps)
    load, fastest = np.zeros(len(capacity)), np.zeros(len(capacity))
    for row, r in zip(rows, rate):
        for link, a in row:
            load[link] += a * r
            fastest[link] = max(fastest[link], r)
    assert (load <= capacity * (1 + 1e-9)).all()
    for row, r, cap in zip(rows, rate, caps):
        full = any(
            load[link] >= capacity[link] * (1 - 1e-9) and r >= fastest[link] * (1 - 1e-9)
            for link, _ in row
        )
        assert r == pytest.approx(cap) or full


@pytest.mark.parametrize("seed", range(5))
def test_rates_equal_textbook_filling_link_by_link(seed):
    capacity, rows, caps = random_problem(100 + seed)
    assert rates(capacity, rows, caps) == pytest.approx(fill(capacity, rows, caps), rel=1e-9)


def fill(capacity, rows, caps):
    """Raise all open rates together; stop those on a link when it fills."""
    level, open_, rate = 0.0, set(range(len(rows))), np.zeros(len(rows))
    left = np.array(capacity, float)
    while open_:
        load = np.zeros(len(capacity))
        for row in open_:
            for link, a in rows[row]:
                load[link] += a
        rise = min(
            [left[i] / load[i] for i in range(len(load)) if load[i] > 0]
            + [caps[row] - level for row in open_]
        )
        level, left = level + rise, left - rise * load
        full = {i for i in range(len(left)) if load[i] > 0 and left[i] <= 1e-9 * capacity[i]}
        for row in list(open_):
            if caps[row] <= level + 1e-12 or any(link in full for link, _ in rows[row]):
                rate[row] = level
                open_.remove(row)
    return rate
