"""What is known of each built-in strategy: paper, collective, bytes, state, what checked it.

`python -m experiments.algorithms` prints the table of `docs/algorithms.md`; `archipelago list
strategies` the same as text, without the example. That is measured: bytes of simulated runs of a
model of 10^9 parameters without values. State is what a strategy says to the estimate of memory.

Legend: n nodes, b bytes of a payload, H inner steps, P parameters of w bytes, d neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.assemble import assemble
from experiments.cells import CONF, read
from experiments.experiment import Experiment
from experiments.table import size
from sim.testing import LAYOUT

NODES = 16
"""Of the example that bytes are measured for: fully connected, so that nothing is late."""
_LINE = [
    "workload=1b",
    "compute=meta",
    "topology=complete",
    f"topology.n={NODES}",
    "topology.bandwidth=100Gbps",
    "overlay=ring",
    "evaluations=1",
    "budget.seconds=1000d",
]
_STEPS = 4
RING, RING_H = "2 (n-1)/n b", "2 (n-1)/n b / H"
GATHER, GATHER_H = "(n-1) b", "(n-1) b / H"


@dataclass(frozen=True)
class Facts:
    """A strategy as `conf/strategy` has it.

    Args:
        name: of the algorithm.
        paper: number at arXiv.
        collective: what it waits for.
        sent: bytes that a node sends per local step, on average over the nodes.
        checked: golden files, or what else it is compared with.
        notebook: that shows it, the number of a file of `notebooks/`.
    """

    name: str
    paper: str
    collective: str
    sent: str
    checked: str = "-"
    notebook: str = "-"


FACTS: dict[str, Facts] = {
    "adpsgd": Facts(
        "AD-PSGD", "1710.06952", "atomic exchange of two", "w P", "the mean of the fleet"
    ),
    "all_reduce": Facts(
        "all-reduce data parallelism", "-", "ring all-reduce", RING, "DiLoCo, H = 1", "00"
    ),
    "all_reduce_hierarchical": Facts(
        "the same, by sites", "-", "rings inside and across sites", "by sites", "the flat mean"
    ),
    "all_reduce_int8_ring": Facts(
        "PRIME's ring",
        "2412.01152",
        "ring, coded anew at each hop",
        "2 (n-1)/n P + 4 (n-1) 1024",
        "`int8_ring_prime_f32`",
    ),
    "all_reduce_subset": Facts("the fastest m nodes", "-", "ring of m", RING, "all-reduce of m"),
    "async_diloco": Facts(
        "asynchronous DiLoCo",
        "2401.09135",
        "messages to and from a server",
        "(b + w P) / H",
        "`async_diloco_vanilla_f32`",
    ),
    "async_diloco_delayed": Facts(
        "the same, delayed Nesterov, DyLU",
        "2401.09135",
        "messages to and from a server",
        "(b + w P) / H",
        "one Nesterov step on the mean",
    ),
    "choco": Facts(
        "CHOCO-SGD", "1902.00340", "neighbour exchange", "d b", "`choco_sgd_ring_top`; D-PSGD"
    ),
    "decoupled_diloco": Facts(
        "Decoupled DiLoCo", "2604.21428", "quorum at a syncer", "8 P / H", "closed forms"
    ),
    "delayed_diloco": Facts(
        "DiLoCo, one round late", "2506.21263", "ring all-reduce", RING_H, "DiLoCo, no delay"
    ),
    "demo": Facts(
        "DeMo",
        "2411.19870",
        "all-gather",
        GATHER,
        "`demo_small_f64`, `demo_default_f32`, `demo_prime_wd_sched_f64`",
    ),
    "diloco": Facts(
        "DiLoCo",
        "2311.08105",
        "ring all-reduce",
        RING_H,
        "`diloco_torchft_sgd`, `diloco_exogym_sgd`",
        "00 01 10",
    ),
    "diloco_hierarchical": Facts(
        "DiLoCo, by sites", "2311.08105", "rings inside and across sites", "by sites", "DiLoCo"
    ),
    "diloco_int8_ring": Facts(
        "DiLoCo on PRIME's ring",
        "2412.01152",
        "ring, coded anew at each hop",
        "(2 (n-1)/n P + 4 (n-1) 1024) / H",
        "`int8_ring_prime_f32`",
    ),
    "diloco_subset": Facts(
        "DiLoCo of the fastest m nodes", "2311.08105", "ring of m", RING_H, "DiLoCo of m"
    ),
    "dilocox": Facts(
        "DiLoCoX: one round late, low rank, int4", "2506.21263", "all-gather", GATHER_H, "its parts"
    ),
    "dpsgd": Facts(
        "D-PSGD",
        "1705.09056",
        "neighbour exchange",
        "d w P",
        "`dpsgd_ring_plain`; the mean, on a complete graph",
        "02",
    ),
    "eager_diloco": Facts(
        "eager updates", "2502.12996", "ring all-reduce", RING_H, "DiLoCo, of one node"
    ),
    "ef21": Facts("EF21", "2106.05203", "all-gather", GATHER, "its equations"),
    "ef_sgd": Facts("EF-SGD", "1901.09847", "all-gather", GATHER, "SGD, with every value"),
    "ef_signsgd": Facts("EF-signSGD", "1901.09847", "all-gather", GATHER, "its equations"),
    "fedavg": Facts(
        "FedAvg",
        "1602.05629",
        "ring of a part C",
        "(2 (m-1)/m b + w P) / H, of m clients",
        "local SGD, C = 1",
    ),
    "local_sgd": Facts(
        "local SGD", "1805.09767", "ring all-reduce", RING_H, "the mean of nodes alone"
    ),
    "moshpit": Facts(
        "Moshpit SGD",
        "2103.03239",
        "rings of M, an axis of a grid",
        "2 (M-1)/M w P / H",
        "`moshpit_averaging`",
        "11",
    ),
    "muloco": Facts("MuLoCo", "2505.23725", "ring all-reduce", RING_H, "`muon_f32`; DiLoCo"),
    "noloco": Facts("NoLoCo", "2506.10911", "random pairs", "(4 P + b) / H", "`noloco_gensyn`"),
    "one_bit_adam": Facts(
        "1-bit Adam",
        "2102.02888",
        "reduction by shards, both ways coded",
        "2 (n-1)/n b",
        "Adam",
    ),
    "parameter_server": Facts(
        "asynchronous parameter server",
        "-",
        "messages to and from a server",
        "b + w P",
        "one at a time",
    ),
    "power_sgd": Facts(
        "PowerSGD",
        "1905.13727",
        "two ring all-reduces",
        "2 (n-1)/n w r (rows + columns)",
        "its equations",
    ),
    "power_sgd_half": Facts(
        "PowerSGD, one side in turn",
        "1905.13727",
        "ring all-reduce",
        "half of that",
        "`powersgd_epfml_r2`",
    ),
    "psyche_demo": Facts(
        "DeMo as in Psyche: 1 bit, one round late",
        "2411.19870",
        "all-gather",
        GATHER,
        "its equations",
    ),
    "sgp": Facts(
        "SGP, push-sum",
        "1811.10792",
        "directed exchange",
        "peers (w P + 4)",
        "`pushsum_exponential`",
    ),
    "signsgd": Facts(
        "signSGD, majority vote",
        "1802.04434",
        "votes at a server",
        "2 (n-1)/n P / 8",
        "its equations",
    ),
    "signum": Facts(
        "Signum", "1802.04434", "votes at a server", "2 (n-1)/n P / 8", "its equations"
    ),
    "single": Facts("the fastest node alone", "-", "none", "0"),
    "sparse_loco": Facts(
        "SparseLoCo",
        "2508.15706",
        "all-gather",
        GATHER_H,
        "`sparseloco_ccloco_f64`, `sparseloco_ccloco_q8_f32`",
    ),
    "sparta": Facts(
        "SPARTA", "-", "ring all-reduce of a share p", "2 (n-1)/n p 4 P", "`sparta_exogym`"
    ),
    "sparta_diloco": Facts(
        "SPARTA and DiLoCo",
        "-",
        "ring all-reduces",
        "2 (n-1)/n (p 4 P + b / H)",
        "`sparta_exogym`; DiLoCo",
    ),
    "streaming_diloco": Facts(
        "Streaming DiLoCo",
        "2501.18512",
        "ring all-reduce of a fragment, in the background",
        RING_H,
        "`diloco_streaming_torchft_adamw`",
    ),
}
"""By choice of `conf/strategy`."""


def choices() -> list[str]:
    """The strategies of `conf/strategy`."""
    return sorted(path.stem for path in Path(CONF, "strategy").glob("*.yaml"))


def example(strategy: str, rounds: int = 2) -> Experiment:
    """A strategy on a model of 10^9 parameters and `NODES` nodes, without values."""
    cfg = read([f"strategy={strategy}", *_LINE]).cells[0].cfg
    if "warmup" in cfg.strategy:
        cfg.strategy.warmup = 1
    OmegaConf.update(cfg, "budget.steps", rounds * cfg.strategy.get("inner_steps", 4))
    return assemble(cfg)


def sent(strategy: str) -> float:
    """Bytes that a node sends per local step, on average, once all have begun."""
    (b1, n1), (b2, n2) = (_counted(example(strategy, rounds)) for rounds in (2, 4))
    return (b2 - b1) / (n2 - n1)


def state(strategy: str) -> str:
    """The rows that a node has for itself; what all hold alike is one row for all of them."""
    cfg = read([f"strategy={strategy}"]).cells[0].cfg
    known = instantiate(cfg.strategy).node_state
    names = [*(["parameters"] if known.params else []), *(["inner state"] if known.local else [])]
    codec = known.sends
    feeds_back = codec is not None and codec.init(LAYOUT, 1) is not None
    return ", ".join([*names, *known.named, *(["codec's"] if feeds_back else [])]) or "none"


def rows(measured: bool = True) -> dict[str, dict[str, str]]:
    """The table, by strategy.

    Args:
        measured: with the bytes of the example, which takes two minutes.
    """
    made = {}
    for strategy in choices():
        facts = FACTS[strategy]
        example_bytes = {f"1B, {NODES} nodes": size(sent(strategy))} if measured else {}
        made[strategy] = {
            "strategy": strategy,
            "algorithm": facts.name,
            "paper": "-" if facts.paper == "-" else f"arXiv {facts.paper}",
            "collective": facts.collective,
            "bytes per node and step": facts.sent,
            **example_bytes,
            "state per node": state(strategy),
            "checked with": facts.checked.replace("`", ""),
            "notebook": facts.notebook,
        }
    return made


def _counted(experiment: Experiment) -> tuple[float, int]:
    """Bytes that were sent, and local steps that were made."""
    last = experiment.run().rows("metric")[-1]
    return last["nbytes"], last["node_steps"]


def markdown() -> str:
    """The table for the docs."""
    lines: list[dict[str, Any]] = list(rows().values())
    for line in lines:
        line["checked with"] = FACTS[line["strategy"]].checked
        line["strategy"] = f"`{line['strategy']}`"
        number = line["paper"].removeprefix("arXiv ")
        line["paper"] = "-" if number == "-" else f"[{number}](https://arxiv.org/abs/{number})"
    head = list(lines[0])
    cells = [head, ["---"] * len(head), *([line[key] for key in head] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


if __name__ == "__main__":
    print(markdown())
