"""Files of another simulator: replayed, judged, and refused if they are not of the format."""

import io
import json
import zipfile

import numpy as np
import pytest

from experiments.validate import replay
from experiments.validate.__main__ import main
from experiments.validate.columns import DATA
from experiments.validate.platform import read

SHIPPED = DATA / "network"


@pytest.fixture
def changed(tmp_path):
    """changed(name, array=value or function, ...) -> path of a copy with other arrays."""

    def make(name, drop=(), **arrays):
        data = dict(np.load(SHIPPED / f"{name}.npz"))
        for key, value in arrays.items():
            data[key] = value(data[key].copy()) if callable(value) else value
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{k: v for k, v in data.items() if k not in drop})
        return path

    return make


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.fixture
def small(tmp_path):
    """small(**arrays) -> path of one flow over one link of 10 bytes/s, with what is replaced."""

    def make(**arrays):
        data = {
            "link_bw": np.array([10.0]),
            "link_lat": np.array([1.0]),
            "flow_src": np.array([0]),
            "flow_dst": np.array([1]),
            "flow_bytes": np.array([50]),
            "flow_start": np.array([2.0]),
            "route_ptr": np.array([0, 1]),
            "route_idx": np.array([0]),
            "ev_time": np.zeros(0),
            "ev_kind": np.zeros(0, np.int8),
            "ev_link": np.zeros(0, np.int32),
            "ev_value": np.zeros(0),
            "finish": np.array([8.0]),
            "status": np.zeros(1, np.int8),
            "meta": json.dumps({"note": ""}),
        }
        path = tmp_path / "small.npz"
        np.savez(path, **data | arrays)
        return path

    return make


def events(*rows):
    time, kind, link, value = zip(*rows)
    return {
        "ev_time": np.array(time, float),
        "ev_kind": np.array(kind, np.int8),
        "ev_link": np.array(link, np.int32),
        "ev_value": np.array(value, float),
    }


@pytest.mark.parametrize("name", [path.stem for path in sorted(SHIPPED.glob("*.npz"))])
def test_every_shipped_file_holds_in_both_modes(name):
    rows = replay.judge(SHIPPED / f"{name}.npz")
    assert [row.holds for row in rows] == [True] * 4


def test_a_changed_finish_time_fails_and_names_the_flow(changed):
    path = changed("access_100", finish=lambda f: put(17, f[17] * (1 + 1e-5))(f))
    exact, failures, approximate, _ = replay.judge(path)
    assert not exact.holds
    assert "flow 17" in exact.note
    assert failures.holds
    assert approximate.holds


def test_a_flow_that_should_have_failed_is_named(changed):
    path = changed("access_100", finish=put(3, np.nan), status=put(3, 1))
    deviation, failures, *_ = replay.judge(path)
    assert deviation.holds
    assert not failures.holds
    assert failures.note == "flows 3 (ends here)"


def test_a_flow_that_should_have_ended_is_named(small):
    path = small(**events((5.0, 1, 0, 0.0)))
    _, failures, *_ = replay.judge(path)
    assert failures.note == "flows 0 (fails here)"


def test_latency_then_bytes(small):
    begin, finish = replay.replay(read(small()))
    assert (begin.tolist(), finish.tolist()) == ([2.0], [8.0])


def test_events_need_no_order_in_the_file(small):
    path = small(**events((7.0, 0, 0, 10.0), (4.0, 0, 0, 5.0)))
    assert replay.replay(read(path))[1].tolist() == [9.5]


def test_a_link_that_comes_back_in_the_instant_carries_what_begins_then(small):
    path = small(**events((2.5, 1, 0, 0.0), (3.0 + 5e-10, 2, 0, 0.0)))
    assert replay.replay(read(path))[1] == pytest.approx([8.0])


def test_weights_are_one_over_the_latency_of_the_route_if_the_note_says_so(small):
    arrays = {
        "link_bw": np.array([30.0, 1e9]),
        "link_lat": np.array([1.0, 1.0]),
        "flow_src": np.array([0, 0]),
        "flow_dst": np.array([1, 2]),
        "flow_bytes": np.array([40, 20]),
        "flow_start": np.array([1.0, 0.0]),
        "route_ptr": np.array([0, 1, 3]),
        "route_idx": np.array([0, 0, 1]),
        "finish": np.array([4.0, 4.0]),
        "status": np.zeros(2, np.int8),
    }
    weighted = read(small(meta=json.dumps({"note": "RTT-weighted"}), **arrays))
    assert weighted.weight.tolist() == [1.0, 0.5]
    assert replay.replay(weighted)[1] == pytest.approx([4.0, 4.0])
    assert read(small(**arrays)).weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("array", "value", "said"),
    [
        ("link_bw", np.array([0.0]), r"link_bw\[0\]=0.0: expected bytes/s > 0"),
        ("link_bw", np.array([np.nan]), r"link_bw\[0\]=nan"),
        ("link_lat", np.array([-1.0]), r"link_lat\[0\]=-1.0"),
        ("link_lat", np.zeros(2), "link_lat has 2 values: expected 1"),
        ("flow_bytes", np.array([-5]), r"flow_bytes\[0\]=-5"),
        ("flow_bytes", np.array([5.5]), "flow_bytes: values of type float64"),
        ("flow_start", np.array([np.inf]), r"flow_start\[0\]=inf"),
        ("route_ptr", np.array([0, 2]), r"route_ptr\[1\]=2: expected 1"),
        ("route_ptr", np.array([1, 1]), r"route_ptr\[0\]=1"),
        ("route_idx", np.array([1]), r"route_idx\[0\]=1: expected a link, 0 .. 0"),
        ("route_idx", np.array([[0]]), r"route_idx: shape \(1, 1\)"),
        ("finish", np.array([1.0]), r"finish\[0\]=1.0"),
        ("finish", np.array([np.nan]), r"finish\[0\]=nan"),
        ("status", np.array([7]), r"status\[0\]=7"),
        ("meta", np.array("not json"), "meta: expected a JSON object"),
        ("meta", np.array("[1]"), "meta: list"),
    ],
)
def test_an_impossible_value_is_named_with_its_array_and_index(small, array, value, said):
    with pytest.raises(ValueError, match=said):
        read(small(**{array: value}))


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ((1.0, 3, 0, 0.0), r"ev_kind\[0\]=3"),
        ((1.0, 0, 9, 1.0), r"ev_link\[0\]=9"),
        ((1.0, 0, 0, np.nan), r"ev_value\[0\]=nan"),
        ((-1.0, 1, 0, 0.0), r"ev_time\[0\]=-1.0"),
    ],
)
def test_an_impossible_event_is_named(small, event, said):
    with pytest.raises(ValueError, match=said):
        read(small(**events(event)))


def test_a_link_twice_in_a_route_is_named(small):
    path = small(route_ptr=np.array([0, 2]), route_idx=np.array([0, 0]))
    with pytest.raises(ValueError, match=r"route_idx\[1\]=0: flow 0 has this link already"):
        read(path)


def test_a_circle_of_flows_is_named(changed):
    last = len(read(SHIPPED / "ps_40_het.npz").nbytes) - 1  # which waits for the first, at length
    path = changed(
        "ps_40_het",
        dep_ptr=lambda pointer: np.concatenate([[0], pointer[1:] + 1]),
        dep_idx=lambda needs: np.concatenate([[last], needs]),
    )
    with pytest.raises(ValueError, match="dep_idx: flow 0 waits for itself"):
        read(path)


def test_missing_arrays_are_listed(changed):
    with pytest.raises(ValueError, match=r"lacks the arrays \['link_lat', 'finish'\]"):
        read(changed("access_100", drop=("link_lat", "finish")))


def test_pickled_objects_are_refused(small):
    with pytest.raises(ValueError, match="flow_src: holds Python objects"):
        read(small(flow_src=np.array([{}], dtype=object)))


def test_an_array_that_claims_to_be_huge_is_refused_before_memory_is_taken(small):
    path, header = small(), io.BytesIO()
    with zipfile.ZipFile(path) as archive:
        rest = {name: archive.read(name) for name in archive.namelist() if "link_bw" not in name}
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in rest.items():
            archive.writestr(name, content)
        archive.writestr("link_bw.npy", header.getvalue())
    with pytest.raises(ValueError, match="link_bw: 8000000000000 bytes"):
        read(path)


def test_a_damaged_file_is_one_line_that_names_it(tmp_path):
    whole, rng = (SHIPPED / "ps_40_het.npz").read_bytes(), np.random.default_rng(0)
    path, said = tmp_path / "damaged.npz", []
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read(path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 50
    assert all(text.startswith(str(path)) and "\n" not in text for text in said)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_what_is_no_npz_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    assert main(["network", str(path)]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_the_command_prints_a_table_and_fails_with_the_file(changed, capsys):
    good, bad = str(SHIPPED / "ps_40_het.npz"), changed("access_100", finish=put(0, 1e6))
    assert main(["network", good]) == 0
    assert main(["network", good, str(bad)]) == 1
    out = capsys.readouterr().out
    assert "another simulator: 4 of 4 hold" in out
    assert "another simulator: 6 of 8 hold" in out
