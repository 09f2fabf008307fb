"""Tables: rows that are shared until somebody writes."""

import numpy as np
import pytest
import torch

from sim.compute.table import Table

N, P = 5, 3


def _ids(*ids):
    return np.array(ids, dtype=np.int64)


@pytest.fixture
def table():
    return Table(N, torch.arange(float(P)))


def test_rows_begin_at_the_default_and_are_one_vector(table):
    assert table.get(_ids(*range(N))).tolist() == [[0.0, 1.0, 2.0]] * N
    assert table.distinct == 1


def test_a_private_row_leaves_the_others_as_they_are(table):
    table.put(_ids(2), torch.full((1, P), 7.0))
    assert table.get(_ids(1, 2, 3)).tolist() == [[0.0, 1.0, 2.0], [7.0] * 3, [0.0, 1.0, 2.0]]
    assert table.distinct == 2


def test_what_was_read_does_not_change_when_the_row_does(table):
    table.put(_ids(0, 1), torch.ones(2, P))
    before = table.get(_ids(0, 1))
    table.put(_ids(0), torch.full((1, P), 9.0))
    assert before.tolist() == [[1.0] * P] * 2


def test_what_was_written_does_not_change_with_the_argument(table):
    rows = torch.ones(2, P)
    table.put(_ids(0, 1), rows)
    rows.zero_()
    assert table.get(_ids(0, 1)).tolist() == [[1.0] * P] * 2


def test_sharers_hold_one_vector_without_a_copy(table):
    vector = torch.full((P,), 4.0)
    table.share(_ids(0, 1, 4), vector)
    assert table.get(_ids(0, 1, 4)).stride() == (0, 1)
    assert table.get(_ids(4)).data_ptr() == vector.data_ptr()
    assert table.shared_by_all(_ids(0, 1, 4)) is vector
    assert table.distinct == 2


def test_nodes_of_different_vectors_share_none(table):
    table.share(_ids(0), torch.ones(P))
    table.put(_ids(1), torch.ones(1, P))
    assert table.shared_by_all(_ids(0, 2)) is None
    assert table.shared_by_all(_ids(1)) is None
    assert table.shared_by_all(_ids()) is None


def test_rows_come_in_the_order_asked_for(table):
    table.put(_ids(*range(N)), torch.arange(float(N))[:, None].expand(N, P))
    table.share(_ids(3), torch.full((P,), -1.0))
    assert table.get(_ids(4, 3, 0))[:, 0].tolist() == [4.0, -1.0, 0.0]


def test_a_reset_row_is_the_default_again(table):
    table.put(_ids(0, 1), torch.ones(2, P))
    table.reset(_ids(1))
    assert table.get(_ids(0, 1)).tolist() == [[1.0] * P, [0.0, 1.0, 2.0]]


def test_vectors_that_nobody_holds_any_more_are_dropped(table):
    for value in range(100):
        table.share(_ids(0, 1), torch.full((P,), float(value)))
    assert len(table._common) == 2


def test_vectors_that_many_nodes_held_are_few_beside_those_that_they_hold(table):
    for value in range(100):
        table.share(_ids(value % N), torch.full((P,), float(value)))
        assert len(table._common) <= (N + 1) * 5 // 4
    assert table.get(_ids(*range(N))).tolist() == [[95.0 + i] * P for i in range(N)]


def test_rows_of_several_vectors_and_private_ones_are_read_together(table):
    table.put(_ids(0, 3), torch.tensor([[5.0] * P, [6.0] * P]))
    table.share(_ids(1, 4), torch.full((P,), 7.0))
    rows = table.get(_ids(4, 0, 2, 1, 3))
    assert rows.tolist() == [[7.0] * P, [5.0] * P, [0.0, 1.0, 2.0], [7.0] * P, [6.0] * P]
    assert torch.equal(torch.stack([table.row(i) for i in (4, 0, 2, 1, 3)]), rows)


def test_no_nodes_have_no_rows(table):
    assert table.get(_ids()).shape == (0, P)


def test_each_write_of_a_row_is_counted(table):
    table.put(_ids(1, 2), torch.zeros(2, P))
    table.share(_ids(2, 3), torch.ones(P))
    table.reset(_ids(4))
    assert table.writes.tolist() == [0, 1, 2, 1, 0]
