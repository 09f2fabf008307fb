"""The pages of algorithms and codecs are those of the code, and name what exists."""

import dataclasses
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import optimizers
from experiments.algorithms import FACTS, NODES, choices, markdown, sent
from experiments.assemble import assemble
from experiments.cells import read

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()
FIELDS = {
    field.name
    for name in optimizers.__all__
    if dataclasses.is_dataclass(getattr(optimizers, name))
    for field in dataclasses.fields(getattr(optimizers, name))
}
QUICK = {"adpsgd", "all_reduce", "demo", "diloco_int8_ring", "moshpit", "sgp", "sparta_diloco"}


def test_every_option_is_an_argument_of_a_strategy():
    options = {key for key in re.findall(r"`(\w+)=", PAGE) if key != "strategy"}
    assert len(options) >= 6
    assert options <= FIELDS


def test_every_golden_file_is_named_where_it_was_used():
    there = {path.stem for path in (ROOT / "tests" / "golden").glob("*.npz")}
    used = {name for facts in FACTS.values() for name in re.findall(r"`(\w+)`", facts.checked)}
    assert used == there - {"compressors_reference"}
    assert there - {"compressors_reference"} <= set(re.findall(r"`(\w+)`", PAGE))


def test_every_notebook_that_is_named_is_there():
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    named = {number for facts in FACTS.values() for number in facts.notebook.split()}
    assert named <= there | {"-"}


def test_the_table_of_strategies_is_that_of_the_code():
    assert set(FACTS) == set(choices())
    assert f"\n{markdown()}\n" in PAGE


@pytest.mark.parametrize(
    "strategy", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in choices()]
)
def test_a_simulated_run_sends_what_the_formula_says(strategy):
    # One merge per fragment if it waits for everybody; else who is late may be a quorum again.
    line = [f"strategy.quorum={NODES - 1}"] if strategy == "decoupled_diloco" else []
    (b1, n1), (b2, n2) = (counted(strategy, rounds, *line) for rounds in (2, 4))
    random = strategy == "fedavg"  # who is drawn twice downloads once
    measured = (b2 - b1) / (n2 - n1)
    assert sent(strategy) == pytest.approx(measured, rel=0.05 if random else 0.005)


def test_bytes_of_two_levels_follow_the_formula():
    line = ["topology=datacenter", "topology.n=12", "+topology.hosts_per_leaf=4"]
    (b1, n1), (b2, n2) = (counted("all_reduce_hierarchical", i, *line) for i in (2, 4))
    letters = {"s": 3, "m": 4, "b": 2 * 1_055_991_808}
    wanted = eval(FACTS["all_reduce_hierarchical"].sent, {}, letters)
    assert (b2 - b1) / (n2 - n1) == pytest.approx(wanted, rel=1e-6)


def counted(strategy, rounds, *line):
    """Bytes that were sent, and local steps that were made, of a model of 10^9 parameters."""
    links = ["topology=complete", f"topology.n={NODES}", "topology.bandwidth=100Gbps"]
    timed = ["workload=1b", "compute=meta", "evaluations=1", "budget.seconds=1000d"]
    cfg = read([f"strategy={strategy}", *links, *timed, "overlay=ring", *line]).cells[0].cfg
    if "warmup" in cfg.strategy:
        cfg.strategy.warmup = 1
    OmegaConf.update(cfg, "budget.steps", rounds * cfg.strategy.get("inner_steps", 4))
    last = assemble(cfg).run().rows("metric")[-1]
    return last["nbytes"], last["node_steps"]
