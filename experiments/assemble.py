"""A composed configuration -> an `Experiment`, with every mistake found before anything runs.

Keys and simple types are compared with the signature of what a slot names, then constructors
check values, then the whole is built once and its parts begin, without running.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from experiments.errors import ConfigError, from_constructor, under, unknown
from experiments.experiment import Experiment
from optimizers.compression import DCT, Blocks, Chain, ErrorFeedback, PerTensor, RandomK, TopK
from sim.aggregation import Aggregation
from sim.payload import Compressor, Dense
from sim.workload import Workload
from topologies.links import n_hosts, validate

SLOTS = (
    "task",
    "topology",
    "network",
    "bandwidth_trace",
    "overlay",
    "device",
    "workload",
    "churn",
    "coordinator",
    "compute",
    "compressor",
    "aggregation",
    "local",
    "strategy",
    "budget",
)
"""Slots that become objects. A compressor and a rule of aggregation are checked
alone, and reach a run by its strategy."""

_OPTIONAL = ("overlay", "bandwidth_trace")
"""Slots that may be empty."""
_PLAIN = {
    "seed": int,
    "collectives": str,
    "evaluations": int,
    "target_loss": float | None,
    "fresh": bool,
    "profile": bool,
    "together": bool,
    "timeline": bool,
}
"""Keys beside the slots, and what they take."""
_SIMPLE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def assemble(cfg: DictConfig) -> Experiment:
    """Construct the parts that a configuration names.

    Raises:
        ConfigError: a key, a type or a value is wrong.
    """
    for key, hint in _PLAIN.items():
        _check_type(key, cfg[key], hint)
    parts = {slot: _part(cfg, slot) for slot in SLOTS}
    codec, workload = parts.pop("compressor"), parts.pop("workload")
    rule = parts.pop("aggregation")
    _check_rule(rule, cfg.strategy)
    _check_codec(codec, cfg.strategy)
    _named("topology", validate, parts["topology"])
    _named("aggregation", rule.tolerates, n_hosts(parts["topology"]))
    _named("compressor", _check_amount, codec, parts["task"].layout.numel)
    if not isinstance(workload, Workload):  # a function of the task
        workload = _named("workload", workload, parts["task"])
    if not parts["compute"].values:
        _named("compressor", workload.nbytes, codec)
    return Experiment(
        **parts,
        workload=workload,
        seed=cfg.seed,
        collectives=cfg.collectives,
        evaluations=cfg.evaluations,
        link_records=cfg.timeline,
    )


def check(experiment: Experiment) -> None:
    """Build the run and let its parts begin, then drop it; no simulated time passes.

    Raises:
        ConfigError: parts do not fit each other.
    """
    _named("run", _rehearse, experiment)


def _rehearse(experiment: Experiment) -> None:
    sim = experiment.build()
    sim.shared.update(sim.strategy.init(sim))
    experiment.coordinator.start(sim)
    sim.strategy.start(sim)


def _named(key: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn`; what it finds wrong is said to be below `key`."""
    try:
        return fn(*args)
    except (ValueError, OSError) as error:
        text = str(error)
        if key == "run":
            raise ConfigError(text) from error
        raise under(key, text) from error


def _part(cfg: DictConfig, slot: str) -> Any:
    try:
        node = cfg.get(slot)
        if not node and slot in _OPTIONAL:
            return None
        if not node:
            raise ConfigError(f"{slot}: needed; `archipelago list {slot}` shows the choices")
        for path, inner in _targets(node, slot):
            _check_arguments(path, inner)
        return instantiate(node)
    except InstantiationException as error:
        raise from_constructor(error, slot) from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{slot}: {str(error).splitlines()[0]}") from error


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """All configurations below `node` that name a class or a function, with their paths."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from _targets(node[key], f"{path}.{key!s}")
    elif isinstance(node, ListConfig):
        for i, item in enumerate(node):
            yield from _targets(item, f"{path}[{i}]")


def _check_arguments(path: str, node: DictConfig) -> None:
    target = _located(path, node["_target_"])
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    hints = _hints(target)
    for key in node:
        name = str(key)
        if name.startswith("_"):
            continue
        if name not in parameters:
            raise ConfigError(unknown(f"{path}.{name}", "key", name, list(parameters)))
        if OmegaConf.is_missing(node, key):
            raise ConfigError(f"{path}.{name}: has no default; give it as {path}.{name}=VALUE")
        _check_type(f"{path}.{name}", node[key], hints.get(name, Any))


def _located(path: str, name: str) -> Any:
    try:
        return get_object(name)
    except (ImportError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(f"{path}._target_={name}: {lines[-1]}") from error


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target)
    except NameError:  # a hint that only type checkers can resolve
        return {}


def _check_type(key: str, value: Any, hint: Any) -> None:
    """Compare with the hint if that consists of numbers, texts, truth values and None only.

    Of other hints only what takes no None is certain.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if value is None and not {Any, object, type(None)} & set(options):
        raise ConfigError(f"{key}=null: needs a value; leave it out for the default")
    if not set(options) <= {*_SIMPLE, type(None)}:
        return
    accepted = {*options, *([int] if float in options else [])}
    if type(value) not in accepted:
        names = [text for kind, text in _SIMPLE.items() if kind in options]
        names += ["null"] if type(None) in options else []
        raise ConfigError(f"{key}={value!r}: must be {' or '.join(names)}")


def _check_rule(rule: Aggregation, strategy: DictConfig) -> None:
    """Refuse a rule that would not be used: what the strategy combines is not a row per member."""
    if "aggregation" in strategy or rule.summable:
        return
    name = str(strategy._target_).rpartition(".")[2]
    raise ConfigError(
        f"aggregation={type(rule).__name__}: {name} has no rule to choose, by how it combines "
        "what members send; leave aggregation=mean, or take a strategy that averages rows, such "
        "as all_reduce, diloco or streaming_diloco"
    )


def _check_codec(codec: Compressor, strategy: DictConfig) -> None:
    """Refuse a codec that would not be used: the strategy sends values as they are, or its own."""
    if "compressor" in strategy or isinstance(codec, Dense):
        return
    name = str(strategy._target_).rpartition(".")[2]
    raise ConfigError(
        f"compressor={type(codec).__name__}: {name} has no codec to choose; leave it out, or take "
        "a strategy that has one, such as diloco, or choco for gossip"
    )


def _check_amount(codec: Compressor, limit: int) -> None:
    """Refuse to keep more coefficients than there are; a codec alone takes what it gets."""
    if isinstance(codec, TopK | RandomK) and codec.k is not None and codec.k > limit:
        raise ValueError(f"k={codec.k}: must be between 1 and {limit}, all that there is to send")
    if isinstance(codec, Chain):
        blocks = [c.chunk**2 for c in codec.codecs if isinstance(c, DCT | Blocks)]
        limit = min([limit, *blocks])
    if isinstance(codec, Chain | PerTensor | ErrorFeedback):
        for inner in codec.codecs:
            _check_amount(inner, limit)
