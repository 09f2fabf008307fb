"""Notebooks run from a fresh kernel, and are saved with their figures."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 150_000


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    """A notebook as it is saved."""
    return nbformat.read(request.param, as_version=4)


def outputs(notebook) -> list:
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def images(notebook) -> list[str]:
    return [o.data["image/png"] for o in outputs(notebook) if "image/png" in o.get("data", {})]


def test_there_are_seven_notebooks():
    names = ["00_first_run", "01_new_compressor", "02_sweep_of_topologies"]
    names += ["10_bandwidth_needed", "11_averaging_under_failures"]
    names += ["12_topology_consensus", "13_why_trust_the_clock"]
    assert [path.stem for path in NOTEBOOKS] == names


def test_a_notebook_is_saved_with_a_figure_and_without_errors(notebook):
    assert images(notebook)
    assert all(o.output_type != "error" for o in outputs(notebook))
    assert all(o.get("name") != "stderr" for o in outputs(notebook))


def test_outputs_of_a_notebook_are_small(notebook):
    assert sum(len(str(o)) for o in outputs(notebook)) < MAX_BYTES


def test_functions_of_a_notebook_are_at_most_five_lines_long(notebook):
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    bodies = re.findall(r"^( *)def .*\n((?:\1 +.*\n?)+)", source, re.MULTILINE)
    assert all(len(body.splitlines()) <= 5 for _, body in bodies)


@pytest.mark.slow
def test_a_notebook_runs_from_a_fresh_kernel(notebook):
    shown = len(images(notebook))
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    assert len(images(notebook)) == shown
