"""What the authors' own programs computed, on our public strategies and compressors.

What the files hold and where they come from is in `tests/golden/README.md`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from experiments.validate.golden.judge import judge

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_array_is_that_of_the_authors(path):
    rows = judge(path)
    assert rows
    assert [row.what for row in rows if not row.holds] == []


def _changed(path, folder, meta=None, **arrays):
    """A copy of a file with other values."""
    with np.load(path) as stored:
        found = dict(stored)
    found["meta"] = np.array(json.dumps(json.loads(str(found["meta"])) | (meta or {})))
    target = folder / "case.npz"
    np.savez(target, **(found | arrays))
    return target


def test_a_deviation_is_told_whatever_the_file_is_called(tmp_path, capsys):
    path = GOLDEN / "diloco_torchft_sgd.npz"
    with np.load(path) as stored:
        params = stored["b2_params"].copy()
    params[-1, 0, 0] += 1e-9
    off = _changed(path, tmp_path, b2_params=params)
    assert main(["validate", "golden", str(off)]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "params" in line)
    assert line.endswith("NO")
    assert "+1.0e-09" in line
    assert main(["validate", "golden", str(_changed(path, tmp_path))]) == 0


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"algorithm": "DiLoCO"}, "DiLoCo"),
        ({"workers": 2}, "do not belong together"),
        ({"H": 5}, "FAIL"),
    ],
)
def test_meta_that_does_not_fit_is_told(meta, said, tmp_path, capsys):
    path = _changed(GOLDEN / "diloco_torchft_sgd.npz", tmp_path, meta)
    code = main(["validate", "golden", str(path)])
    out, err = capsys.readouterr()
    assert said in out + err
    assert code == (1 if said == "FAIL" else 2)


def test_an_array_that_is_missing_is_named(tmp_path, capsys):
    path = _changed(GOLDEN / "dpsgd_ring_plain.npz", tmp_path)
    with np.load(path) as stored:
        rest = {name: stored[name] for name in stored if name != "W"}
    np.savez(path, **rest)
    assert main(["validate", "golden", str(path)]) == 2
    assert "lacks the array W" in capsys.readouterr().err


def test_a_file_in_which_nothing_is_compared_is_refused(tmp_path, capsys):
    meta = json.dumps({"algorithm": "compressor primitives"})
    np.savez(tmp_path / "case.npz", meta=np.array(meta), x=np.zeros(3, np.float32))
    assert main(["validate", "golden", str(tmp_path / "case.npz")]) == 2
    assert "no array" in capsys.readouterr().err
