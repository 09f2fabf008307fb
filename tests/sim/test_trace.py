"""Traces: what is recorded can be read again, even if the run was killed."""

import json
import os

import pandas as pd
import pytest

from sim import trace as module
from sim.trace import Trace


def _trace(events=None):
    trace = Trace(events)
    trace.record("metric", time=0.0, loss=2.5)
    trace.record("session", time=1.0, node=3, event="left")
    trace.record("metric", time=2.0, loss=1.5, excess=0.5)
    return trace


def test_each_kind_is_a_table_with_gaps_where_a_field_is_missing():
    table = _trace()["metric"]
    assert table["loss"].tolist() == [2.5, 1.5]
    assert table["excess"].isna().tolist() == [True, False]


def test_a_kind_without_records_is_an_empty_table():
    assert len(_trace()["transfer"]) == 0
    assert _trace().kinds == ["metric", "session"]


def test_every_record_is_a_line_of_json(tmp_path):
    trace = _trace(tmp_path / "run" / "events.jsonl")
    trace.close()
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    first = {"kind": "metric", "time": 0.0, "loss": 2.5}
    assert [json.loads(line)["kind"] for line in lines] == ["metric", "session", "metric"]
    assert json.loads(lines[0]) == first


def test_metrics_reach_the_disk_while_the_run_lasts(tmp_path):
    trace = _trace(tmp_path / "events.jsonl")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 3
    trace.close()


def test_a_run_that_was_killed_in_the_middle_of_a_line_is_read_up_to_there(tmp_path):
    path = tmp_path / "events.jsonl"
    _trace(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    trace = Trace.load(tmp_path)
    assert trace.rows("metric") == [{"time": 0.0, "loss": 2.5}]
    assert trace.rows("session") == [{"time": 1.0, "node": 3, "event": "left"}]


def test_saved_tables_are_read_again(tmp_path):
    _trace().save(tmp_path)
    trace = Trace.load(tmp_path)
    for kind in ("metric", "session"):
        pd.testing.assert_frame_equal(trace[kind], _trace()[kind])


def test_tables_come_before_lines_if_both_are_there(tmp_path):
    _trace(tmp_path / "events.jsonl").save(tmp_path)
    (tmp_path / "events.jsonl").write_text("garbage\n")
    assert Trace.load(tmp_path)["metric"]["loss"].tolist() == [2.5, 1.5]


def test_a_table_appears_under_its_name_only_when_it_is_complete(tmp_path, monkeypatch):
    renamed = []

    def replace(source, target):
        assert len(pd.read_parquet(source)) > 0
        assert not target.exists()
        renamed.append(target.name)

    monkeypatch.setattr(os, "replace", replace)
    _trace().save(tmp_path)
    assert renamed == ["metric.parquet", "session.parquet"]
    assert list(tmp_path.glob("[!.]*")) == []


def test_tables_that_were_never_renamed_are_not_read(tmp_path):
    _trace(tmp_path / "events.jsonl").close()
    (tmp_path / ".tmp-metric.parquet").write_bytes(b"half")
    assert len(Trace.load(tmp_path)["metric"]) == 2


@pytest.mark.parametrize("line", ["junk", "[1, 2]", "7", '"metric"', "{}", '{"kind": 3}', "null"])
def test_a_line_that_is_no_record_is_refused_with_its_place(tmp_path, line):
    (tmp_path / "events.jsonl").write_text(f'{{"kind": "metric", "loss": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"events\.jsonl:2: not a record"):
        Trace.load(tmp_path)


@pytest.mark.parametrize("name", ["metric.parquet", "events.jsonl"])
def test_a_file_of_unreasonable_size_is_refused_unread(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"x" * 11)
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 10)
    with pytest.raises(ValueError, match="11 bytes; at most 10"):
        Trace.load(tmp_path)
