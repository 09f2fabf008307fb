"""Mistakes in a configuration as one line: the key, its value, what is accepted, what is nearest.

Hydra and OmegaConf spread over many lines what a user needs in one. Anything that is not known to
be a mistake of the user's stays an exception with its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sim.units import nearest

_NAMED = re.compile(r"[A-Za-z_][\w.]*(\[\d+\])?=")
"""A message that begins with its key, such as `n=1: a ring needs n >= 2`."""


class ConfigError(Exception):
    """A mistake in the configuration of a run; its text is one line."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(str(text).split()))


def unknown(what: str, kind: str, name: str, known: Sequence[str]) -> str:
    """The line for a name that is not among those known.

    >>> unknown("strategy=dilco", "choice", "dilco", ["demo", "diloco"])
    "strategy=dilco: no such choice; try 'diloco'; there are demo, diloco"
    """
    if not known:
        return f"{what}: no such {kind}; there are none"
    close = nearest(name, list(known))
    return f"{what}: no such {kind}; try {close!r}; there are {', '.join(known)}"


def from_constructor(error: InstantiationException, slot: str) -> ConfigError:
    """What a constructor said about its arguments, with the path of the slot before the key.

    Raises:
        InstantiationException: the same error, if the constructor failed for another reason.
    """
    key = slot
    cause: BaseException = error
    while isinstance(cause, InstantiationException):
        found = re.search(r"full_key: (\S+)", str(cause))
        key = found[1] if found else key
        if cause.__cause__ is None:
            return ConfigError(f"{key}: {str(cause).splitlines()[0]}")
        cause = cause.__cause__
    if not isinstance(cause, ValueError | TypeError | LookupError | OSError | ImportError):
        raise error
    return under(key, str(cause))


def under(key: str, text: str) -> ConfigError:
    """A message about something below `key`, with the whole path of what it names."""
    if re.match(rf"{key.split('.')[0]}\b[.=:]", text):
        return ConfigError(text)
    return ConfigError(f"{key}.{text}" if _NAMED.match(text) else f"{key}: {text}")


def from_hydra(error: Exception, keys: Sequence[str]) -> ConfigError | None:
    """What Hydra or OmegaConf found wrong; None if it is nothing of the user's doing.

    Args:
        keys: all keys that a run has, for the nearest one.
    """
    if isinstance(error, MissingConfigException) and error.options is not None:
        slot, _, choice = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
        return ConfigError(unknown(f"{slot}={choice}", "choice", choice, sorted(error.options)))
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{error.full_key}: has no default; give it as {error.full_key}=VALUE")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override}: not of the form key=value; quote it if it is")
    if isinstance(error, ConfigCompositionException):
        return _from_composition(error, keys)
    if isinstance(error, OmegaConfBaseException | HydraException):
        return ConfigError(str(error).strip().splitlines()[0])
    return None


def _from_composition(error: ConfigCompositionException, keys: Sequence[str]) -> ConfigError:
    text = str(error)
    wrong = re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text)
    if wrong:
        key = wrong[1].split("@")[0]
        parent, _, name = key.rpartition(".")
        siblings = [k for k in keys if k.rpartition(".")[0] == parent and k != key]
        names = [k.rpartition(".")[2] for k in siblings]
        return ConfigError(unknown(key, "key", name, names))
    swept = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if swept:
        return ConfigError(f"{swept[1]}: several values; give -m to run each, or [..] for a list")
    return ConfigError(text.strip().splitlines()[0])
