"""Derive: the configurations of a sweep, of which Hydra composes only one of each shape.

Composing takes a tenth of a second, and the cells of a numeric sweep differ in nothing but numbers.
Those whose command lines have the same shape (the same choices, and values for the same keys) get a
copy of the first one's configuration with their own values, as Hydra would have set them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeAlias

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

Shape: TypeAlias = tuple[str, ...]


def configurations(
    lines: Sequence[list[str]],
    compose: Callable[[list[str]], DictConfig],
    is_slot: Callable[[str], bool],
) -> list[DictConfig]:
    """What `compose` makes of each command line, `hydra` included.

    Args:
        is_slot: whether a key stands for a choice of a file rather than for a value.
    """
    first: dict[Shape, DictConfig] = {}
    made = []
    for line in lines:
        parsed = OverridesParser.create().parse_overrides(line)
        shape = tuple(o.key_or_group if _sets_value(o, is_slot) else _line(o) for o in parsed)
        if shape not in first:
            first[shape] = compose(line)
        made.append(_with_values(first[shape], parsed, is_slot))
    return made


def _sets_value(override: Override, is_slot: Callable[[str], bool]) -> bool:
    """Whether it does nothing but put one number, text or null where another one was."""
    key = override.key_or_group
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    plain = plain and not override.is_hydra_override() and override.package is None
    return plain and not is_slot(key) and not isinstance(override.value(), list | dict)


def _with_values(
    like: DictConfig, parsed: list[Override], is_slot: Callable[[str], bool]
) -> DictConfig:
    cfg = copy.deepcopy(like)
    for override in parsed:
        if _sets_value(override, is_slot):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    own = [o for o in parsed if not o.is_hydra_override()]
    names = cfg.hydra.job.config.override_dirname
    cfg.hydra.overrides.task = [_line(o) for o in own]
    cfg.hydra.job.override_dirname = get_overrides_dirname(
        own, names.exclude_keys, names.item_sep, names.kv_sep
    )
    return cfg


def _line(override: Override) -> str:
    return str(override.input_line)
