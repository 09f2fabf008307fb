"""The page of algorithms names options and golden files that exist."""

import dataclasses
import re
from pathlib import Path

import optimizers

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()
FIELDS = {
    field.name
    for name in optimizers.__all__
    if dataclasses.is_dataclass(getattr(optimizers, name))
    for field in dataclasses.fields(getattr(optimizers, name))
}


def test_every_option_is_an_argument_of_a_strategy():
    options = {key for key in re.findall(r"`(\w+)=", PAGE) if key != "strategy"}
    assert len(options) >= 6
    assert options <= FIELDS


def test_every_golden_file_is_there():
    files = re.findall(r"`((?:demo|diloco|dpsgd)_\w+_\w+)`", PAGE)
    assert len(files) == 7
    for name in files:
        assert (ROOT / "tests" / "golden" / f"{name}.npz").exists(), name
