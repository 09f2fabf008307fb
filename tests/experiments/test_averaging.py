"""Averaging under failures: the published protocol, beside slow obvious versions of it."""

import numpy as np
import pytest

from experiments.averaging import all_reduce_iterations, iterations, variances


def protocol(n, p, seed, cap, average):
    """The experiment as the paper tells it, one node after the other."""
    draws = np.random.RandomState(seed)
    values = draws.normal(0, 1, n)
    path = [np.var(values)]
    for iteration in range(1, cap + 1):
        alive = [node for node, u in enumerate(draws.uniform(0, 1, n)) if u >= p]
        values = average(values.copy(), alive, iteration, draws)
        path.append(np.var(values))
    return path


def groups_of_4(values, alive, _, draws):
    alive = np.array(alive)
    draws.shuffle(alive)
    groups = [list(alive[4 * i : 4 * i + 4]) for i in range(len(alive) // 4)]
    for i, node in enumerate(alive[4 * len(groups) :]):
        groups[i % len(groups)].append(node)
    for group in groups:
        values[group] = np.mean(values[group])
    return values


def everybody_or_nobody(values, alive, _, draws):
    return np.full(len(values), values.mean()) if len(alive) == len(values) else values


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_random_groups_equal_a_loop_over_groups(p):
    expected = [protocol(30, p, seed, 6, groups_of_4) for seed in range(3)]
    found = variances("random_groups", 30, p, range(3), cap=6, group=4)
    assert found == pytest.approx(np.array(expected), abs=1e-15)


def test_all_reduce_equals_a_loop():
    expected = [protocol(8, 0.1, seed, 10, everybody_or_nobody) for seed in range(5)]
    assert variances("all_reduce", 8, 0.1, range(5), cap=10) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_full_grid_without_failures_needs_a_round_per_axis(dims):
    assert iterations("moshpit", 4**dims, 0.0, range(3), group=4, dims=dims).tolist() == [dims] * 3


def test_a_failed_node_keeps_its_value():
    path = variances("moshpit", 64, 1.0, range(1), group=8, cap=3)[0]
    assert path == pytest.approx(path[0])


def test_moshpit_needs_more_rounds_the_more_fail():
    rounds = [iterations("moshpit", 900, p).mean() for p in (0.0, 0.01, 0.1)]
    assert rounds == sorted(rounds)
    assert rounds[1] < 10


def test_the_law_of_all_reduce_is_the_mean_of_a_geometric_number_cut_at_the_cap():
    q = 0.99**100
    expected = sum(k * q * (1 - q) ** (k - 1) for k in range(1, 51)) + 50 * (1 - q) ** 50
    assert all_reduce_iterations(100, 0.01) == pytest.approx(expected)


@pytest.mark.parametrize(("p", "mean"), [(0.0, 1.0), (1.0, 50.0)])
def test_the_law_holds_at_its_ends(p, mean):
    assert all_reduce_iterations(512, p) == mean


def test_the_law_agrees_with_simulation():
    counts = iterations("all_reduce", 100, 0.01, range(2000))
    error = counts.std() / np.sqrt(len(counts))
    assert abs(counts.mean() - all_reduce_iterations(100, 0.01)) < 4 * error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("moshpitt", 10, 0.1), "try 'moshpit'"),
        (("moshpit", 2000, 0.1), "room for 1024"),
        (("all_reduce", 10, 1.5), "p=1.5"),
        (("all_reduce", 1, 0.5), "n=1"),
    ],
)
def test_impossible_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        iterations(*arguments)
