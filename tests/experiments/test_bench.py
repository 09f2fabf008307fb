"""Benchmarks: what a row says, the loads, SimGrid beside ours, and that everything runs."""

import json
import math

import numpy as np
import pytest

from experiments.bench.__main__ import main, names
from experiments.bench.fleets import figure as fleet_figure
from experiments.bench.network import COST
from experiments.bench.networks import agreement, closed_loop, collectives, figure, loads, speed
from experiments.bench.networks.rival import SimGrid, find
from experiments.bench.row import Row, row

MAKERS = (loads.private_access, loads.regional, loads.one_backbone)
TINY = speed.Case(loads.one_backbone, 20, 50, ">= 3", ">= 6")
simgrid = pytest.mark.skipif(find() is None, reason="no Python here can import simgrid")


def test_machinery_and_parts_are_no_benchmarks():
    assert names() == ["demo_step", "first_light", "fleet", "network", "strategies"]


def test_a_target_bounds_the_ratio_or_without_a_baseline_ours():
    assert Row("speed", "1/s", 30.0, baseline=10.0, target=">= 3").holds
    assert not Row("speed", "1/s", 30.0, baseline=10.0, target=">= 3.1").holds
    assert Row("deviation", "-", 1e-7, target="<= 1e-6").holds
    assert Row("free", "-", 1.0).holds is None


def test_a_deviation_that_is_no_number_misses_its_target():
    assert Row("deviation", "-", math.nan, target="<= 1e-6").holds is False


def test_a_row_of_repeats_has_medians_and_half_the_range_of_ours():
    made = row("speed", "1/s", [8.0, 10.0, 14.0], [1.0, 5.0, 6.0], "theirs")
    assert (made.ours, made.baseline, made.ratio) == (10.0, 5.0, 2.0)
    assert made.spread == pytest.approx(0.3)


@pytest.mark.parametrize("make", MAKERS)
def test_routes_begin_and_end_at_the_hosts_own_links_and_cross_each_link_once(make):
    load = make(200, 30)
    for src, dst, route in zip(load.src, load.dst, load.routes()):
        assert (route[0], route[-1]) == (src, 30 + dst)
        assert src != dst
        assert len(set(route.tolist())) == len(route)
    assert (load.capacity > 0).all()


def test_shared_links_have_their_share_of_what_hosts_can_send():
    up = loads.regional(10, 80).capacity[:80]
    regional = loads.regional(10, 80).capacity[160:]
    assert regional[:8].sum() == pytest.approx(up.sum() / 3)
    assert regional[8:16] == pytest.approx(regional[:8])
    assert regional[16:] == pytest.approx([up.sum() / 6])
    assert loads.one_backbone(10, 80).capacity[160:] == pytest.approx([up.sum() / 20])


def test_the_graph_of_a_load_has_the_capacities_of_its_links():
    load, graph = loads.private_access(10, 12), loads.access_graph(12)
    up = [graph.edges[host, 12]["bandwidth"] for host in range(12)]
    down = [graph.edges[12, host]["bandwidth"] for host in range(12)]
    assert [*up, *down] == load.capacity.tolist()


@simgrid
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("mode", ["Lazy", "Full"])
def test_finish_times_of_a_load_are_those_of_simgrid(make, mode):
    load = make(60, 20)
    theirs = find().run(load, mode, 60.0).finish
    assert speed.deviation(speed.batch(load).finish, theirs) < 1e-9
    assert speed.deviation(speed.by_simpy(load).finish, theirs) < 1e-9


def test_without_simgrid_a_speed_has_no_baseline_and_no_target():
    made = speed.rows(TINY, None, speed.Patience())
    assert [(row.baseline, row.holds) for row in made] == [(None, None)] * 3
    assert all("no SimGrid" in row.name for row in made)


def test_a_run_that_takes_too_long_becomes_a_bound(tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    patience = speed.Patience(limit=0.2, pilot=0.5)
    made = speed.rows(TINY, SimGrid(str(slow), "0"), patience)
    assert [row.baseline for row in made] == [50 / 0.2] * 3
    assert {row.baseline_name for row in made} == {"SimGrid 0 Lazy, not done in 0.2 s"}


def test_a_closed_loop_is_measured_beside_as_many_timeouts():
    loop = closed_loop.measure(10, 100, 2)
    assert (loop.nodes, len(loop.flows), len(loop.timeouts)) == (10, 2, 2)
    assert min([*loop.flows, *loop.timeouts, loop.build]) > 0.0
    assert 1e7 < loop.peak < 1e10


def test_a_closed_loop_stops_after_so_many_ends():
    ends = []

    def node(src, ended):
        while True:
            yield env.timeout(1.0 + src)
            ends.append(env.now)
            ended()

    env = closed_loop.simpy.Environment()
    closed_loop._run(env, node, 2, 7)
    assert len(ends) == 7


def test_shipped_files_are_judged_exactly_and_approximately():
    made = agreement.rows(agreement.files()[:1])
    assert [row.target for row in made] == ["<= 1e-6", "<= 1e-3"]
    assert all(row.holds for row in made)


def test_coupled_collectives_take_the_time_of_their_flows():
    assert all(row.holds for row in collectives.agreement((5,)))


def test_the_cost_of_a_collective_is_measured_cold_and_warm():
    made = collectives.costs(8, 2)
    assert [row.unit for row in made] == ["ms"] * 4
    assert [row.target for row in made] == ["<= 5", None] * 2


def test_the_figure_shows_the_costs_of_the_closed_loops(tmp_path):
    rows = [{"name": f"{COST}, {n:,} nodes", "ours": n / 100} for n in (3000, 1000, 10_000)]
    report = {"rows": [*rows, {"name": "closed loop: cost per flow, 5 nodes over 3", "ours": 1.0}]}
    nodes, micro = figure.costs(report)
    assert nodes.tolist() == [1000, 3000, 10_000]
    assert micro == pytest.approx([10.0, 30.0, 100.0])
    (tmp_path / "numbers.json").write_text(json.dumps(report))
    assert figure.main([str(tmp_path / "numbers.json"), str(tmp_path / "growth.png")]) == 0
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_a_figure_without_costs_is_refused():
    with pytest.raises(ValueError, match="expected at least 2"):
        figure.costs({"rows": []})


def test_the_whole_benchmark_runs_in_small(tmp_path, capsys):
    assert main(["network", "--quick", "--json", str(tmp_path / "numbers.json")]) == 0
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report["quick"]
    words = [
        "first flow",
        "exact",
        "all_gather",
        "closed loop",
        "peak memory",
        "one link binds all",
    ]
    printed = capsys.readouterr().out
    assert [word for word in words if word not in printed] == []
    assert all(np.isfinite(row["ours"]) for row in report["rows"])


def test_the_figure_of_the_fleet_shows_the_rows_of_every_number_of_nodes(tmp_path):
    rows = [
        {"name": "MLP: any N, 1,024 nodes", "ours": 20.0, "baseline": 4.0},
        {"name": "MLP: any N, 8 nodes", "ours": 10.0, "baseline": 5.0},
        {"name": "MLP, N = 8: one thread", "ours": 1.0, "baseline": 1.0},
    ]
    report = {"device": "a CPU", "rows": rows}
    assert fleet_figure.rates(report) == {"MLP": [(8, 10.0, 5.0), (1024, 20.0, 4.0)]}
    fleet_figure.draw([report], tmp_path / "fleet.png")
    assert (tmp_path / "fleet.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="any N"):
        fleet_figure.rates({"device": "a CPU", "rows": rows[2:]})


@pytest.mark.slow
def test_the_benchmark_of_the_fleet_runs(tmp_path):
    assert main(["fleet", "--quick", "--json", str(tmp_path / "fleet.json")]) == 0
    report = json.loads((tmp_path / "fleet.json").read_text())
    names_of = [row["name"] for row in report["rows"]]
    assert any("any N" in name for name in names_of)
    assert any("memory" in name for name in names_of)
