"""What is known of each built-in strategy: paper, collective, bytes, state, what checked it.

`python -m experiments.algorithms` prints the table of `docs/algorithms.md`, `archipelago list
strategies` the same as text. Formulas of bytes are Python; their values for a model of 10^9
parameters come from them, and tests compare these with what simulated runs send. State is what a
strategy says to the estimate of memory.

Legend: n nodes, m of a subset, of a draw, of a site or on a line of a grid, s sites, d neighbours,
P parameters of w bytes, v of them outside of matrices, r rank, b bytes of a payload, H inner steps,
q merges per fragment that a learner sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from experiments.cells import CONF, read
from experiments.table import linked, markdown_table, size, sourced
from optimizers.compression import SharedMask
from optimizers.compression.low_rank import Matrices, as_matrix
from sim.compute.layout import Layout
from sim.strategy import Strategy
from sim.testing import LAYOUT
from sim.workload import Workload, one_billion

NODES = 16
"""Of the example: all linked with each other, and neighbours in a ring."""
RING, RING_H = "2 * (n-1)/n * b", "2 * (n-1)/n * b/H"
GATHER, GATHER_H = "(n-1) * b", "(n-1) * b/H"
SOME, SITES = "2 * (m-1)/m * b", "(3 * (m-1) + 2 * (s-1)/s)/m * b"
CODED_RING = "2 * (n-1)/n * P + 4 * (n-1) * 1024"


@dataclass(frozen=True)
class Facts:
    """A strategy as `conf/strategy` has it.

    Args:
        name: of the algorithm.
        paper: number at arXiv.
        collective: what it waits for.
        sent: bytes that a node which takes part sends per local step, on average.
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
        "AD-PSGD", "1710.06952", "atomic exchange of two", "w * P", "the mean of the fleet"
    ),
    "all_reduce": Facts(
        "all-reduce data parallelism", "-", "ring all-reduce", RING, "DiLoCo, H = 1", "00"
    ),
    "all_reduce_hierarchical": Facts(
        "the same, by sites", "-", "rings inside and across sites", SITES, "the flat mean"
    ),
    "all_reduce_int8_ring": Facts(
        "PRIME's ring",
        "2412.01152",
        "ring, coded anew at each hop",
        CODED_RING,
        "`int8_ring_prime_f32`",
    ),
    "all_reduce_subset": Facts("the fastest m nodes", "-", "ring of m", SOME, "all-reduce of m"),
    "async_diloco": Facts(
        "asynchronous DiLoCo",
        "2401.09135",
        "messages to and from a server",
        "(b + w * P)/H",
        "`async_diloco_vanilla_f32`",
    ),
    "async_diloco_buffered": Facts(
        "the same, a step on every N-th push",
        "2401.09135",
        "messages to and from a server",
        "(b + w * P)/H",
        "DiLoCo in lock-step",
    ),
    "async_diloco_delayed": Facts(
        "the same, delayed Nesterov, DyLU",
        "2401.09135",
        "messages to and from a server",
        "(b + w * P)/H",
        "one Nesterov step on the mean",
    ),
    "choco": Facts(
        "CHOCO-SGD", "1902.00340", "neighbour exchange", "d * b", "`choco_sgd_ring_top`; D-PSGD"
    ),
    "decoupled_diloco": Facts(
        "Decoupled DiLoCo",
        "2604.21428",
        "quorum at a syncer",
        "(1 + q) * w * P/H",
        "closed forms",
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
        "00 01 10 13",
    ),
    "diloco_hierarchical": Facts(
        "DiLoCo, by sites", "2311.08105", "rings inside and across sites", f"{SITES}/H", "DiLoCo"
    ),
    "diloco_int8_ring": Facts(
        "DiLoCo on PRIME's ring",
        "2412.01152",
        "ring, coded anew at each hop",
        f"({CODED_RING})/H",
        "`int8_ring_prime_f32`",
    ),
    "diloco_subset": Facts(
        "DiLoCo of the fastest m nodes", "2311.08105", "ring of m", f"{SOME}/H", "DiLoCo of m"
    ),
    "dilocox": Facts(
        "DiLoCoX: one round late, low rank, int4", "2506.21263", "all-gather", GATHER_H, "its parts"
    ),
    "dpsgd": Facts(
        "D-PSGD",
        "1705.09056",
        "neighbour exchange",
        "d * w * P",
        "`dpsgd_ring_plain`; the mean, on a complete graph",
        "02 12",
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
        "ring of m, drawn anew",
        "(2 * (m-1)/m * b + (1-m/n) * w * P)/H",
        "local SGD, C = 1",
    ),
    "local_sgd": Facts(
        "local SGD", "1805.09767", "ring all-reduce", RING_H, "the mean of nodes alone"
    ),
    "moshpit": Facts(
        "Moshpit SGD",
        "2103.03239",
        "rings of m, an axis of a grid",
        "2 * (m-1)/m * w * P/H",
        "`moshpit_averaging`",
        "11 13",
    ),
    "muloco": Facts("MuLoCo", "2505.23725", "ring all-reduce", RING_H, "`muon_f32`; DiLoCo"),
    "noloco": Facts("NoLoCo", "2506.10911", "random pairs", "(4 * P + b)/H", "`noloco_gensyn`"),
    "one_bit_adam": Facts(
        "1-bit Adam",
        "2102.02888",
        "reduction by shards, both ways coded",
        RING,
        "Adam",
    ),
    "parameter_server": Facts(
        "asynchronous parameter server",
        "-",
        "messages to and from a server",
        "b + w * P",
        "one at a time",
    ),
    "power_sgd": Facts(
        "PowerSGD",
        "1905.13727",
        "two ring all-reduces",
        "2 * (n-1)/n * 4 * (r * (rows + columns) + v)",
        "its equations",
    ),
    "power_sgd_half": Facts(
        "PowerSGD, one side in turn",
        "1905.13727",
        "ring all-reduce",
        "2 * (n-1)/n * 4 * (r * (rows + columns)/2 + v)",
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
        "peers * (w * P + 4)",
        "`pushsum_exponential`",
    ),
    "signsgd": Facts(
        "signSGD, majority vote",
        "1802.04434",
        "votes at a server",
        "2 * (n-1)/n * P/8",
        "its equations",
    ),
    "signum": Facts(
        "Signum", "1802.04434", "votes at a server", "2 * (n-1)/n * P/8", "its equations"
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
        "SPARTA", "-", "ring all-reduce of a share p", "2 * (n-1)/n * p * 4 * P", "`sparta_exogym`"
    ),
    "sparta_diloco": Facts(
        "SPARTA and DiLoCo",
        "-",
        "ring all-reduces",
        "2 * (n-1)/n * (p * 4 * P + b/H)",
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


def sent(strategy: str) -> float:
    """Bytes that a node sends per local step of the example: the value of the formula."""
    return _value(strategy, _configured(strategy))


def rows() -> dict[str, dict[str, str]]:
    """The table, by strategy."""
    made = {}
    for strategy in choices():
        facts, known = FACTS[strategy], _configured(strategy)
        made[strategy] = {
            "strategy": strategy,
            "algorithm": facts.name,
            "paper": sourced(facts.paper),
            "collective": facts.collective,
            "bytes per node and step": facts.sent.replace(" * ", " "),
            f"1B, {NODES} nodes": size(_value(strategy, known)),
            "state per node": _state(known),
            "checked with": facts.checked.replace("`", ""),
            "notebook": facts.notebook,
        }
    return made


def _configured(strategy: str) -> Strategy:
    known = instantiate(read([f"strategy={strategy}"]).cells[0].cfg.strategy)
    assert isinstance(known, Strategy)
    return known


def _state(known: Strategy) -> str:
    """The rows that a node has for itself; what all hold alike is one row for all of them."""
    needs = known.node_state
    names = [*(["parameters"] if needs.params else []), *(["inner state"] if needs.local else [])]
    feeds_back = needs.sends is not None and needs.sends.init(LAYOUT, 1) is not None
    return ", ".join([*names, *needs.named, *(["codec's"] if feeds_back else [])]) or "none"


def _value(strategy: str, known: Strategy) -> float:
    return eval(FACTS[strategy].sent, {}, _symbols(known, one_billion()))


def _symbols(known: Any, model: Workload) -> dict[str, float]:
    """What the letters of a formula stand for in the example."""
    held = {field.name: getattr(known, field.name) for field in fields(known)}
    n, P = NODES, model.layout.numel
    found: dict[str, float] = {"n": n, "m": _together(held), "s": n, "d": 2, "P": P}
    found |= {"w": model.bytes_per_value, "H": held.get("inner_steps", 1), "q": 1}
    if "compressor" in held:
        found["b"] = model.nbytes(held["compressor"])
    mask = held.get("sparta", known).node_state.sends
    if isinstance(mask, SharedMask):
        found["p"] = mask.p
    if "graph" in held:
        found["peers"] = held["graph"].peers
    if "rank" in held:
        found |= {"r": held["rank"], **_sides(mask.matrices, model.layout)}
    return found


def _together(held: dict[str, Any]) -> int:
    """m."""
    if held.get("nodes") is not None:
        return held["nodes"].fastest
    if "fraction" in held:
        return max(1, round(held["fraction"] * NODES))
    return math.ceil(NODES ** (1 / held["dims"])) if "dims" in held else 1


def _sides(matrices: Matrices, layout: Layout) -> dict[str, float]:
    """Rows and columns of all matrices that are approximated, and the values of what is not."""
    sides = [as_matrix(shape) for shape in layout.shapes.values() if matrices.rank_of(shape)]
    rest = layout.numel - sum(rows * columns for rows, columns in sides)
    return {"rows": sum(r for r, _ in sides), "columns": sum(c for _, c in sides), "v": rest}


def markdown() -> str:
    """The table for the docs."""
    made = rows()
    for strategy, line in made.items():
        line["strategy"], line["checked with"] = f"`{strategy}`", FACTS[strategy].checked
        line["paper"] = linked(FACTS[strategy].paper)
    return markdown_table(list(made.values()))


if __name__ == "__main__":
    print(markdown())
