"""Choices of other packages: YAML folders that entry points of one group name.

    [project.entry-points."archipelago.configs"]
    mylab = "mylab.conf"

`mylab.conf` is a package (it has an `__init__.py`) that holds, say, `compressor/ternary.yaml`.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from importlib.metadata import EntryPoint, entry_points

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

GROUP = "archipelago.configs"


class EntryPointSearchPath(SearchPathPlugin):
    """Adds the YAML folders of installed packages to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in config_packages():
            search_path.append(provider=f"ep-{point.name}", path=f"pkg://{point.value}")


def config_packages() -> list[EntryPoint]:
    """Entry points whose package can be imported; a broken one is named in a warning."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            importlib.import_module(point.value)
        except ImportError as error:
            text = f"plug-in {point.name!r} ({point.value}) is left out: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        else:
            found.append(point)
    return found


def register() -> None:
    """Tell Hydra of them, once; and let `_target_` name modules of the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that a user's files shadow nothing
    Plugins.instance().register(EntryPointSearchPath)
