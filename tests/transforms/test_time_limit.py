"""A call returns its result or its own error; a late one raises TimeoutError, and later calls still work."""

import multiprocessing
import threading

import pytest

from torchtune_qwenvl.transforms.time_limit import within


def test_results_and_errors_come_back():
    assert within(5, lambda: 7) == 7
    with pytest.raises(KeyError, match="x"):
        within(5, lambda: {}["x"])


def test_a_late_call_does_not_hold_up_the_next():
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"takes longer than 0\.1 seconds"):
        within(0.1, lambda: over.wait(20))
    assert within(5, lambda: 7) == 7
    over.set()


def test_calls_of_several_threads_and_of_a_forked_process():
    assert within(5, lambda: 7) == 7
    results: list[int] = []
    threads = [threading.Thread(target=lambda i=i: results.append(within(5, lambda: i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 1, 2, 3]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_in_child) == 8


def _in_child() -> int:
    return within(5, lambda: 8)
