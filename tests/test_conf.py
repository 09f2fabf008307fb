"""Every choice of every slot composes, and what it composes can be built."""

from pathlib import Path

import numpy as np
import pytest

from experiments import cells
from experiments.assemble import assemble, check
from experiments.cli import main
from experiments.errors import ConfigError
from optimizers import Krum

CONF = Path(cells.CONF)
SMALL = {
    "torus": ["topology.rows=2", "topology.cols=2"],
    "mix": [],
    "graphml": ["topology.path=GRAPHML", "topology.default_bandwidth=1Gbps"],
    "latency_csv": ["topology.path=CSV"],
    "matrices": ["topology.latency=CSV", "topology.bandwidth=CSV"],
    "small_world": ["topology.n=6"],
    "random_regular": ["topology.n=6"],
}
TRACES = {
    "links": ["bandwidth_trace.table=LINKS"],
    "access": ["bandwidth_trace.table=FACTORS"],
    "packets": ["bandwidth_trace.path=PACKETS"],
}
NEEDS = {
    ("task", "hf"): "reads from the network",
    ("experiment", "first_light"): "is a grid: a test of its own",
}


def choices():
    for path in sorted(CONF.glob("*/*.yaml")):
        slot, choice = path.parent.name, path.stem
        yield pytest.param(slot, choice, id=f"{slot}={choice}")


@pytest.mark.parametrize(("slot", "choice"), choices())
def test_every_choice_composes_and_builds(slot, choice, tmp_path):
    if (slot, choice) in NEEDS:
        pytest.skip(NEEDS[slot, choice])
    check(assemble(_cell(tmp_path, f"{slot}={choice}", *_arguments(slot, choice)).cfg))


@pytest.mark.parametrize("strategy", [p.stem for p in sorted((CONF / "strategy").glob("*.yaml"))])
def test_every_strategy_runs_on_one_node_alone(strategy, tmp_path):
    line = [f"strategy={strategy}", "task=markov_small", "topology=complete", "topology.n=1"]
    cell = _cell(tmp_path, *line, "budget.steps=2")
    metric = assemble(cell.cfg).run()["metric"]
    assert metric["step"].max() >= 2
    assert metric["nbytes"].max() == 0


def test_the_command_line_wins_over_the_codec_of_a_strategy(tmp_path):
    cfg = _cell(tmp_path, "strategy=demo", "compressor=sign").cfg
    assert cfg.strategy.compressor._target_ == "optimizers.compression.Sign"


def test_a_strategy_brings_its_own_codec(tmp_path):
    cfg = _cell(tmp_path, "strategy=demo").cfg
    assert cfg.strategy.compressor._target_ == "optimizers.compression.PerTensor"


RULED = ["all_reduce", "diloco", "local_sgd", "fedavg", "streaming_diloco", "delayed_diloco"]
RULED += ["eager_diloco", "dilocox", "sparse_loco", "muloco", "demo", "psyche_demo", "ef_sgd"]
RULED += ["ef21", "ef_signsgd", "power_sgd_half", "sparta", "sparta_diloco", "moshpit"]


def test_a_rule_of_aggregation_reaches_the_strategies_that_average(tmp_path):
    for strategy in RULED:
        cell = _cell(tmp_path, f"strategy={strategy}", "aggregation=krum", "task=markov_small")
        assert assemble(cell.cfg).strategy.aggregation == Krum()


@pytest.mark.parametrize("strategy", ["dpsgd", "noloco", "signsgd", "async_diloco"])
def test_a_rule_of_aggregation_that_would_not_be_used_is_refused(strategy, tmp_path):
    cfg = _cell(tmp_path, f"strategy={strategy}", "aggregation=median", "task=quadratic").cfg
    with pytest.raises(ConfigError, match=r"aggregation=CoordinateMedian: .* has no rule"):
        assemble(cfg)


@pytest.mark.parametrize("strategy", ["dpsgd", "sgp", "signsgd", "moshpit", "decoupled_diloco"])
def test_a_codec_that_would_not_be_used_is_refused(strategy, tmp_path):
    line = [f"strategy={strategy}", "task=quadratic"]
    assemble(_cell(tmp_path, *line).cfg)
    with pytest.raises(ConfigError, match=r"compressor=Quantize: .* has no codec to choose"):
        assemble(_cell(tmp_path, *line, "compressor=int8").cfg)


def test_more_liars_than_the_nodes_allow_are_refused_before_the_run(tmp_path):
    line = ["aggregation=krum", "aggregation.byzantine=2", "topology=complete", "task=quadratic"]
    with pytest.raises(ConfigError, match=r"aggregation: Krum.*: 2 that lie need 7 members"):
        assemble(_cell(tmp_path, *line, "topology.n=6").cfg)
    assert assemble(_cell(tmp_path, *line, "topology.n=7").cfg).strategy.aggregation == Krum(2)


@pytest.mark.parametrize("rule", [p.stem for p in sorted((CONF / "aggregation").glob("*.yaml"))])
def test_every_rule_of_aggregation_runs_on_one_node_and_on_several(rule, tmp_path):
    line = [f"aggregation={rule}", "strategy=all_reduce", "task=quadratic", "topology=complete"]
    for n in (1, 2, 3, 5):
        cell = _cell(tmp_path, *line, f"topology.n={n}", "budget.steps=2")
        metric = assemble(cell.cfg).run()["metric"]
        assert metric["step"].max() >= 2
        assert np.isfinite(metric["loss"]).all()


def test_first_light_is_nine_cells_of_a_timed_1b():
    sweep = cells.read(["experiment=first_light"])
    assert len(sweep.cells) == 9
    assert {cell.choices["workload"] for cell in sweep.cells} == {"1b"}
    assert sweep.folder == Path("runs/first_light")


def test_tune_small_is_sixteen_rates_of_three_sizes_that_compute_together():
    cells_of_a_seed = cells.read(["experiment=tune_small", "seed=1"]).cells
    found = {(cell.cfg.task.width, cell.cfg.local.lr) for cell in cells_of_a_seed}
    rates = np.logspace(-4, -1, 16)
    assert sorted({rate for _, rate in found}) == pytest.approx(rates, rel=0.02)
    assert len(found) == 3 * 16
    assert {(cell.cfg.topology.n, cell.cfg.together) for cell in cells_of_a_seed} == {(64, True)}


def _arguments(slot, choice):
    """What a choice needs beside its name, and what keeps it small."""
    if slot == "topology":
        return ["task=quadratic", *SMALL.get(choice, ["topology.n=4"])]
    if slot == "overlay":
        return ["task=quadratic", "topology=complete", "topology.n=8"]
    if (slot, choice) == ("task", "text"):
        return ["task.source.paths=TEXT"]
    if slot == "bandwidth_trace":
        return ["task=quadratic", "topology=homes", "topology.n=4", *TRACES.get(choice, [])]
    if (slot, choice) == ("churn", "trace"):
        return ["task=quadratic", "churn.path=SESSIONS"]
    if slot == "workload" and choice != "proxy":
        return ["task=quadratic", "device.memory=20TB"]
    if slot in ("task", "place"):
        return []
    if (slot, choice) == ("experiment", "ten_thousand"):
        return ["topology.n=4"]
    if (slot, choice) == ("experiment", "tune_small"):
        return ["local.lr=0.01", "seed=0"]
    if (slot, choice) == ("budget", "steps"):
        return ["task=quadratic", "churn=always_on"]
    return ["task=markov_small"] if slot == "strategy" else ["task=quadratic"]


def _cell(folder, *line):
    """The one cell of a command line, in which words in capitals stand for files."""
    files = {
        "TEXT": ("a.txt", "To be, or not to be, that is the question. " * 400),
        "SESSIONS": ("sessions.csv", "node,start,end\n" + "".join(f"{i},0,\n" for i in range(8))),
        "LINKS": ("links.csv", "time,u,v,bandwidth\n1,0,4,100kbps\n"),
        "FACTORS": ("factors.csv", "time,factor\n1,0.5\n"),
        "PACKETS": ("up.trace", "1\n2\n5\n"),
        "CSV": ("rtt.csv", "rtt,a,b\na,0,20\nb,20,0\n"),
        "GRAPHML": ("pair.graphml", GRAPHML),
    }
    words = []
    for word in line:
        key, _, value = word.partition("=")
        if value in files:
            name, text = files[value]
            (folder / name).write_text(text)
            word = f"{key}={folder / name}"
        words.append(word)
    return cells.read(words).cells[0]


GRAPHML = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="l" for="edge"
attr.name="latency" attr.type="double"/><graph edgedefault="undirected"><node id="a"/><node id="b"/>
<edge source="a" target="b"><data key="l">0.01</data></edge></graph></graphml>"""


@pytest.mark.slow
def test_first_light_runs_through(tmp_path, capsys):
    line = ["experiment=first_light", "budget.steps=2", "strategy.inner_steps=2"]
    swept = ["strategy=diloco", f"hydra.sweep.dir={tmp_path}", "task=markov_small"]
    assert main(["run", *line, *swept]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"{tmp_path}/figures/loss_against_bytes.svg"
    assert [cells.Path(path).exists() for path in out[-4:]] == [True] * 4
