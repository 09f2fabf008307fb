"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _with_examples() -> list[str]:
    paths = [p for d in ("sim", "topologies", "optimizers", "experiments") for p in ROOT.glob(d)]
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in paths
        for path in sorted(folder.rglob("*.py"))
        if ">>>" in path.read_text()
    ]


@pytest.mark.parametrize("name", _with_examples())
def test_examples_hold(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
