"""Workers: parts on several threads, each with one thread of the BLAS."""

import pytest

from sim.compute.workers import Workers, _libraries, one_blas_thread


def _threads():
    return [blas.get_num_threads() for blas in _libraries()]


@pytest.fixture
def two_threads():
    before = _threads()
    for blas in _libraries():
        blas.set_num_threads(2)
    yield
    for blas, n in zip(_libraries(), before):
        blas.set_num_threads(n)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("items", [1, 3])
def test_a_part_has_one_thread_of_every_blas(n, items, two_threads):
    seen = Workers(n).map(lambda worker, item: (item, max(_threads())), range(items))
    assert seen == [(item, 1) for item in range(items)]
    assert min(_threads()) == 2


def test_the_outermost_limit_is_the_one_that_ends(two_threads):
    with one_blas_thread():
        with one_blas_thread():
            pass
        assert max(_threads()) == 1
    assert min(_threads()) == 2
