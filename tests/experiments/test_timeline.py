"""A run as trace events: from records, also those of others, to what a viewer reads."""

import gzip
import json
import math
from collections import defaultdict
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import cells, manifest, records, timeline
from experiments.cli import main
from experiments.records import GROUP, Window
from experiments.run import run
from experiments.spans import activities
from optimizers import ADPSGD
from sim.trace import Trace

NEEDS = {  # the documented fields of each phase, beside name, pid and ts
    "X": {"ts", "dur", "tid", "args"},
    "M": {"args"},
    "C": {"ts", "args"},
    "s": {"ts", "tid", "id", "cat"},
    "f": {"ts", "tid", "id", "cat", "bp"},
    "i": {"ts", "s"},
}


def events_of(run, phase, window=None):
    return [event for event in timeline.events(run, window) if event["ph"] == phase]


def spans_of(found, kind):
    return [(span.node, span.start, span.end) for span in found.spans if span.kind == kind]


def check_format(events):
    """What the format asks of every event, and viewers of spans and arrows."""
    named, drawn, arrows = set(), defaultdict(list), defaultdict(list)
    for event in events:
        assert {"name", "ph", "pid"} | NEEDS[event["ph"]] <= set(event)
        assert event["pid"] > 0
        assert isinstance(event["ts"], int)
        assert event["ts"] >= 0
        if event["name"] == "process_name":
            named.add(event["pid"])
        elif event["name"] == "thread_name":
            named.add((event["pid"], event["tid"]))
        elif event["ph"] == "X":
            assert event["dur"] >= 0
            drawn[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in "sf":
            arrows[event["id"]].append(event)
    assert {event["pid"] for event in events} <= named
    assert set(drawn) <= named
    threads = [tid for _, tid in drawn]
    assert len(set(threads)) == len(threads)
    assert not set(threads) & {event["pid"] for event in events}
    for spans in drawn.values():
        spans.sort()
        assert all(b[0] >= a[1] for a, b in pairwise(spans))
    for start, finish in arrows.values():
        assert (start["ph"], finish["ph"]) == ("s", "f")
        assert start["ts"] < finish["ts"]
        for end in (start, finish):
            assert any(a <= end["ts"] < b for a, b in drawn[end["pid"], end["tid"]])


# -- events ---------------------------------------------------------------------------------------


def test_every_event_has_the_fields_that_the_format_asks_for(two_rounds):
    check_format(list(timeline.events(two_rounds)))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 2, *[st.floats(0, 1e5)] * 2), max_size=20))
def test_any_transfers_make_well_formed_events(transfers):
    trace = Trace()
    for src, dst, start, lasts in transfers:
        trace.record("transfer", time=start + lasts, src=src, dst=dst, start=start, nbytes=1.0)
    check_format(list(timeline.events(trace)))


def test_times_are_in_microseconds(two_rounds):
    step = next(event for event in events_of(two_rounds, "X") if event["cat"] == "compute")
    assert (step["ts"], step["dur"], step["name"]) == (0.0, 4e6, "5 steps")


def test_each_node_has_a_track_for_each_thing_it_does(two_rounds):
    names = {
        (event["pid"], event["args"]["name"])
        for event in events_of(two_rounds, "M")
        if event["name"] in ("process_name", "thread_name")
    }
    assert {(12, "node 2"), (12, "sessions"), (12, "compute"), (12, "receives")} <= names
    assert {(1, "run"), (1, "rounds"), (2, "links")} <= names
    assert (10, "sends 2") in names  # two at once


def test_an_arrow_leads_from_sender_to_receiver(two_rounds):
    starts, finishes = events_of(two_rounds, "s"), events_of(two_rounds, "f")
    assert [(s["pid"], s["ts"]) for s in starts] == [(10, 11e6), (10, 12e6)]
    assert [(f["pid"], f["ts"]) for f in finishes] == [(12, 13e6 - 1), (11, 13e6 - 1)]


def test_the_load_of_a_link_is_a_counter(two_rounds):
    counters = [event for event in events_of(two_rounds, "C") if event["pid"] == 2]
    assert [(c["name"], c["ts"], c["args"]) for c in counters] == [
        ("0 → 1", 4e6, {"percent": 50.0}),
        ("0 → 1", 9e6, {"percent": 0.0}),
    ]


def test_a_group_without_known_members_is_on_the_track_of_the_run():
    trace = Trace()
    trace.record("collective", time=2.0, op="all_gather", n=9, start=1.0, end=2.0)
    assert [event["pid"] for event in events_of(trace, "X")] == [1]


def test_members_of_a_group_compute_until_each_is_done():
    trace = Trace()
    trace.record("compute", start=1.0, end=3.0, node=-1, members=[4, 6], ends=[2.5, 3.0])
    assert spans_of(activities(trace), "compute") == [(4, 1.0, 2.5), (6, 1.0, 3.0)]


def test_events_of_a_real_run_are_well_formed_and_carry_its_messages(tiny):
    trace = tiny(ADPSGD(lr=0.1), away={2: (3.0, 9.0)}).run()
    found = list(timeline.events(trace))
    check_format(found)
    sent = [event for event in found if event.get("cat") == "send"]
    assert len(sent) == len(trace.rows("transfer")) > 0


# -- files ----------------------------------------------------------------------------------------


def test_a_file_holds_the_same_events_from_tables_lines_and_memory(two_rounds, tmp_path):
    two_rounds.save(tmp_path / "tables")
    lines = Trace(tmp_path / "lines" / "events.jsonl")
    for kind in two_rounds.kinds:
        for row in two_rounds.rows(kind):
            lines.record(kind, **row)
    lines.close()
    texts = []
    for name, source in (("a", two_rounds), ("b", tmp_path / "tables"), ("c", tmp_path / "lines")):
        texts.append(timeline.write(source, tmp_path / f"{name}.json").read_text())
    assert texts[0] == texts[1] == texts[2]
    check_format(json.loads(texts[0])["traceEvents"])


def test_a_compressed_file_has_the_same_bytes_each_time(two_rounds, tmp_path):
    a, b = (timeline.write(two_rounds, tmp_path / f"{name}.json.gz") for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    plain = timeline.write(two_rounds, tmp_path / "c.json")
    assert gzip.decompress(a.read_bytes()) == plain.read_bytes()


def test_nothing_is_left_behind_when_a_record_is_wrong(two_rounds, tmp_path):
    two_rounds.record("compute", start=5.0, end=4.0, node=0)
    with pytest.raises(ValueError, match="expected start <= end"):
        timeline.write(two_rounds, tmp_path / "t.json")
    assert list(tmp_path.iterdir()) == []


# -- windows --------------------------------------------------------------------------------------


def test_a_window_keeps_its_nodes_and_what_overlaps_its_time(two_rounds):
    found = activities(two_rounds, Window(nodes=(1,), start=4.5, end=9.5))
    assert spans_of(found, "compute") == [(1, 0.0, 5.0)]
    assert spans_of(found, "collective") == [(1, 4.0, 9.0)]
    assert found.nodes == [GROUP, 1]
    assert not found.flows  # an arrow needs both of its ends


def test_more_than_the_limit_is_refused_with_a_way_out(two_rounds):
    with pytest.raises(ValueError, match=r"more than 3 pieces.*--nodes.*--from.*--limit"):
        list(timeline.events(two_rounds, Window(limit=3)))


def test_a_node_is_online_between_its_sessions(two_rounds):
    found = activities(two_rounds)
    assert spans_of(found, "online")[2:] == [(2, 0.0, 3.0), (2, 11.0, 20.0)]
    assert [(m.node, m.time, m.name) for m in found.moments] == [(2, 13.0, "admitted")]


def test_a_node_that_joins_first_was_away_before():
    trace = Trace()
    trace.record("session", time=5.0, node=1, event="joined")
    trace.record("metric", time=9.0, loss=1.0)
    assert spans_of(activities(trace), "online") == [(1, 5.0, 9.0)]


def test_a_round_lasts_until_the_next_one(two_rounds):
    assert spans_of(activities(two_rounds), "round") == [(GROUP, 0.0, 10.0), (GROUP, 10.0, 20.0)]


@pytest.mark.parametrize("values", [{"start": 3.0, "end": 2.0}, {"nodes": (-2,)}, {"limit": 0}])
def test_an_impossible_window_is_refused(values):
    with pytest.raises(ValueError, match=r"expected|must be"):
        Window(**values)


# -- folders that are not trusted -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("compute", {"start": 0.0, "end": "x"}, "compute: end=x: expected a finite number"),
        ("compute", {"start": 0.0}, "compute: end=None"),
        ("compute", {"start": 0.0, "end": math.inf}, "compute: end=inf"),
        ("compute", {"start": -1.0, "end": 1.0}, "compute: start=-1: expected 0 .. 9e.09 s"),
        ("compute", {"start": 0.0, "end": 1e300}, "compute: end=1e.300: expected 0 .. 9e.09 s"),
        ("compute", {"start": 0.0, "end": 1.0, "members": [0, 1], "ends": [1.0]}, "one per member"),
        ("compute", {"start": True, "end": 1.0}, "compute: start=True"),
        ("compute", {"start": 0.0, "end": 1.0, "node": 0.5}, "node=0.5: expected a node"),
        ("compute", {"start": 0.0, "end": 1.0, "node": 10**12}, "node=1e.12: expected a node"),
        ("collective", {"start": 0.0, "end": 1.0, "members": "ab"}, "members=ab: expected a list"),
        ("transfer", {"start": 2.0, "time": 1.0, "src": 0, "dst": 1}, "expected start <= time"),
        ("link", {"time": 0.0, "load": -1.0, "capacity": 1.0}, "load=-1.*must be >= 0"),
        ("link", {"time": 0.0, "load": 1.0, "capacity": math.nan}, "link: capacity=nan"),
    ],
)
def test_a_broken_record_is_named(kind, fields, told):
    trace = Trace()
    trace.record(kind, **fields)
    with pytest.raises(ValueError, match=told):
        list(timeline.events(trace))


def test_a_long_name_is_cut():
    trace = Trace()
    trace.record("collective", time=2.0, op="x" * 10_000, start=1.0, end=2.0)
    assert len(events_of(trace, "X")[0]["name"]) == records.MAX_TEXT


@pytest.mark.parametrize("line", ["[" * 100_000, "1", '{"time": 0}', '{"kind": 3}'])
def test_a_line_that_is_no_record_is_named(line, tmp_path):
    (tmp_path / "events.jsonl").write_text(f'{{"kind": "round", "time": 0, "number": 0}}\n{line}\n')
    with pytest.raises(ValueError, match=r"events.jsonl:2: not a record"):
        activities(tmp_path)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"kind": "round", "time": 4, "number": 0}\n{"kind": "r')
    assert spans_of(activities(tmp_path), "round") == [(GROUP, 4.0, 4.0)]


def test_a_line_without_an_end_is_not_read_whole(tmp_path):
    (tmp_path / "events.jsonl").write_text("x" * (1 << 21))
    with pytest.raises(ValueError, match="a line of more than"):
        activities(tmp_path)


def test_what_is_no_table_is_named(tmp_path):
    (tmp_path / "compute.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"compute.parquet: not a table"):
        activities(tmp_path)


def test_a_table_that_is_too_large_is_refused(two_rounds, tmp_path, monkeypatch):
    two_rounds.save(tmp_path)
    monkeypatch.setattr(records, "MAX_TABLE_BYTES", 100)
    with pytest.raises(ValueError, match="bytes; at most 100"):
        activities(tmp_path)


def test_a_sweep_is_not_a_run(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "manifest.json").touch()
    with pytest.raises(ValueError, match=r"holds 1 runs; name one, for example .*0"):
        activities(tmp_path)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_writes_events_into_the_run_folder(two_rounds, tmp_path, capsys):
    two_rounds.save(tmp_path)
    assert main(["timeline", str(tmp_path)]) == 0
    path = tmp_path / timeline.NAME
    assert capsys.readouterr().out == f"{path}\n"
    check_format(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])


def test_the_command_draws_what_is_asked_for(two_rounds, tmp_path, capsys):
    two_rounds.save(tmp_path / "run")
    paths = [str(tmp_path / name) for name in ("a.png", "b.svg")]
    line = ["timeline", str(tmp_path / "run"), "--gantt", paths[0], "--heat", paths[1]]
    assert main([*line, "--nodes", "0,2", "--from", "1s", "--to", "1min"]) == 0
    assert capsys.readouterr().out.split() == paths
    assert not (tmp_path / "run" / timeline.NAME).exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--nodes", "0,x"], "--nodes 0,x: expected ids"),
        (["--from", "2parsec"], "--from='2parsec': unknown unit"),
        (["--from", "5", "--to", "5"], "expected 0 <= from < to"),
        (["--gantt", "a.pdf"], "a.pdf: must end in .png or .svg"),
        (["--json", "a.txt"], "a.txt: must end in .json or .json.gz"),
        (["--heat", "a.png", "--links", "0"], "links=0: must be between"),
    ],
)
def test_a_wrong_option_is_an_error_in_one_line(options, told, two_rounds, tmp_path, capsys):
    two_rounds.save(tmp_path)
    assert main(["timeline", str(tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_table_that_pandas_writes_with_lists_is_read(tmp_path):
    rows = [{"start": 0.0, "end": 1.0, "op": "a", "members": [0, 1]}, {"start": 1.0, "end": 2.0}]
    pd.DataFrame(rows).to_parquet(tmp_path / "collective.parquet")
    assert [s[0] for s in spans_of(activities(tmp_path), "collective")] == [0, 1, GROUP]


# -- the option of a run --------------------------------------------------------------------------

LINE = ["task=quadratic", "topology=ring", "topology.n=3", "budget.steps=3", "timeline=true"]


def test_a_run_that_is_asked_to_leaves_its_timeline(tmp_path):
    cell = cells.read(LINE).cells[0]
    run(cell.cfg, tmp_path, cell.overrides, cell.choices)
    events = json.loads(gzip.decompress((tmp_path / timeline.NAME).read_bytes()))["traceEvents"]
    check_format(events)
    links = {event["name"] for event in events if event["ph"] == "C" and event["pid"] == 2}
    assert links == {"0 → 1", "1 → 2", "2 → 0"}


def test_a_timeline_says_what_each_member_of_a_group_did(tmp_path):
    cell = cells.read(LINE).cells[0]
    run(cell.cfg, tmp_path, cell.overrides, cell.choices)
    found = activities(tmp_path)
    for kind in ("compute", "collective"):
        assert {node for node, *_ in spans_of(found, kind)} == {0, 1, 2}
    assert {node for node, *_ in spans_of(found, "round")} == {GROUP, 0, 1, 2}


def test_a_run_that_is_too_long_for_a_timeline_says_so_and_is_well(tmp_path, monkeypatch):
    monkeypatch.setattr(Window.__init__, "__defaults__", (None, 0.0, math.inf, 2))
    cell = cells.read(LINE).cells[0]
    with pytest.warns(RuntimeWarning, match="was not written: more than 2 pieces"):
        run(cell.cfg, tmp_path, cell.overrides, cell.choices)
    assert manifest.read(tmp_path)["status"] == "ok"
