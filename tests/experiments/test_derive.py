"""Cells whose configuration is derived from another's have what Hydra composes for them."""

import pytest
from omegaconf import OmegaConf

from experiments import cells

SWEEPS = {
    "values": ["seed=0", "budget.seconds=null,2h", "target_loss=0.1,${local.lr}"],
    "choices": ["strategy=diloco,demo", "compressor=int8", "~evaluations", "seed=0,1"],
    "parts": ["strategy.outer=null,{_target_:optimizers.SGD,lr:1}", "+strategy.more=1"],
}


@pytest.mark.parametrize("line", SWEEPS.values(), ids=SWEEPS.keys())
def test_a_sweep_is_what_hydra_composes_cell_by_cell(line, monkeypatch):
    derived = cells.read(line, multirun=True).cells
    monkeypatch.setattr(cells, "configurations", lambda lines, compose, _: map(compose, lines))
    for own, cell in zip(derived, cells.read(line, multirun=True).cells, strict=True):
        for part in ("cfg", "hydra"):
            assert OmegaConf.to_container(getattr(own, part)) == OmegaConf.to_container(
                getattr(cell, part)
            )
        assert (own.overrides, own.choices) == (cell.overrides, cell.choices)


def test_cells_that_differ_in_numbers_are_composed_once(monkeypatch):
    composed = []
    whole = cells._composed
    monkeypatch.setattr(cells, "_composed", lambda line: composed.append(line) or whole(line))
    cells.read(["strategy=diloco,demo", "local.lr=0.1,0.2,0.3", "seed=0,1"], multirun=True)
    assert len(composed) == 1 + 2  # what all share, then one per strategy
