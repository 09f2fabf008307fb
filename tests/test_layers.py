"""Who imports whom: the order of the layers, as the source says it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sim", "topologies", "optimizers", "experiments")
ONLY_EXPERIMENTS = {"hydra", "omegaconf", "matplotlib"}

LAYERS = [
    {"sim.units", "sim.compiled"},
    {"sim.streams"},
    {
        "sim.trace",
        "sim.profile",
        "sim.churn",
        "sim.budget",
        "sim.packing",
        "sim.network",
        "sim.compute.layout",
        "sim.compute.options",
        "sim.compute.placed",
        "sim.compute.recycled",
        "sim.compute.room",
    },
    {
        "sim.compute.task",
        "sim.compute.stacked",
        "sim.compute.kernels",
        "sim.compute.workers",
        "sim.compute.parcel",
        "sim.compute.processes",
        "sim.compute.table",
        "sim.compute.device",
        "sim.compute.layers",
        "sim.compute.local_optimizer",
    },
    {"sim.wire", "sim.context", "sim.workload", "sim.strategy"},
    {"sim.payload", "sim.encoded"},
    {
        "sim.testing",
        "sim.overlap",
        "sim.compute.block",
        "sim.compute.request",
        "sim.compute.shard",
        "sim.compute.crew",
        "sim.compute.engines",
        "sim.compute.choice",
        "sim.compute.parts",
        "sim.compute.worker",
        "sim.compute.codec_state",
        "sim.compute.fleet",
    },
    {"sim.compute.gates", "sim.compute.memory", "sim.compute.work", "sim.compute.joint"},
    {"sim.rows", "sim.delivery"},
    {"sim.aggregation", "sim.cargo", "sim.dense_rows", "sim.hops", "sim.mixing", "sim.round"},
    {"sim.reduction"},
    {"sim.node", "sim.group", "sim.members", "sim.progress"},
    {"sim.coordinators"},
    {"sim.simulation"},
]
"""Modules of `sim`, lowest first; one may import from its own layer and from those below."""


def _modules() -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in paths
    }


MODULES = _modules()


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports at run time, inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else str(node.module) for name in names)
        yield from _imports(node)


def _layer(module: str) -> int:
    """The layer of a module of `sim`, by its name or by that of its package."""
    for number, layer in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in layer):
            return number
    raise AssertionError(f"{module} has no layer: add it to LAYERS")


def _of(package: str) -> list[str]:
    return [m for m in MODULES if m.split(".")[0] == package and not m.endswith("__init__")]


@pytest.mark.parametrize("module", _of("sim"))
def test_sim_imports_its_own_and_lower_layers_only(module):
    for name in _imports(MODULES[module]):
        top = name.split(".")[0]
        assert top not in ("topologies", "optimizers", "experiments", "conf"), name
        if top == "sim" and name != "sim":
            assert _layer(name) <= _layer(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", _of("topologies"))
def test_topologies_import_only_units_of_sim(module):
    for name in _imports(MODULES[module]):
        assert name.split(".")[0] not in ("optimizers", "experiments", "torch", "simpy"), name
        assert not name.startswith("sim.") or name == "sim.units", name


@pytest.mark.parametrize("module", _of("optimizers"))
def test_optimizers_know_neither_links_nor_files(module):
    for name in _imports(MODULES[module]):
        assert name.split(".")[0] != "experiments"
        graphs = ("topologies.weights", "topologies.peers")  # who exchanges with whom
        assert not name.startswith("topologies") or name in graphs, name
        assert not name.startswith(("sim.network", "sim.trace", "sim.churn")), name


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("experiments")])
def test_only_experiments_import_hydra_omegaconf_or_matplotlib(module):
    assert not ONLY_EXPERIMENTS & {name.split(".")[0] for name in _imports(MODULES[module])}


def test_only_experiments_import_these_and_they_do():
    used = {n.split(".")[0] for m in _of("experiments") for n in _imports(MODULES[m])}
    assert used >= ONLY_EXPERIMENTS


def _classes(package: str, base: str) -> set[str]:
    """Names of the classes of a package that have this base, directly or not."""
    bases = {
        node.name: {b.id for b in node.bases if isinstance(b, ast.Name)}
        for module in MODULES
        if module.startswith(package)
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.ClassDef)
    }
    found = {base}
    while True:
        more = {name for name, over in bases.items() if over & found} - found
        if not more:
            return found - {base}
        found |= more


def test_sim_names_no_strategy_and_no_codec_but_dense():
    forbidden = _classes("optimizers", "Strategy") | _classes("optimizers", "Compressor")
    forbidden |= _classes("optimizers", "GroupStrategy") | _classes("optimizers", "NodeStrategy")
    assert {"DiLoCo", "ADPSGD", "TopK"} <= forbidden
    for module in _of("sim"):
        for node in ast.walk(MODULES[module]):
            name = getattr(node, "id", getattr(node, "attr", None))
            assert name not in forbidden, f"{module} names {name}"
