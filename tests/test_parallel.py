"""Blocks of work over processes: order, errors, memory, and an end at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.parallel import attempt_each, cut, run_blocks


def make_square() -> Callable[[int], tuple[int, int]]:
    """The work of the tests; nested, so that workers need not import this module."""

    def square(block: int) -> tuple[int, int]:
        if block == 13:
            raise KeyError("thirteen")
        time.sleep(0.05 if block == 0 else 0)
        return block**2, os.getpid()

    return square


square = make_square()


def test_cut():
    assert list(cut(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(cut([], 2)) == []


def test_an_item_keeps_its_error():
    results, errors = attempt_each(int, ["1", "x", "3"])
    assert results == {0: 1, 2: 3}
    assert list(errors) == [1]
    assert isinstance(errors[1], ValueError)

    def stop(item: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt_each(stop, [1])


def test_order_is_kept_and_blocks_may_stay_here():
    found = list(run_blocks(square, range(12), num_workers=2, here=lambda block: block % 3 == 0))
    assert [value for value, _ in found] == [block**2 for block in range(12)]
    here = {pid == os.getpid() for _, pid in found[::3]}
    there = {pid == os.getpid() for place, (_, pid) in enumerate(found) if place % 3}
    assert (here, there) == ({True}, {False})
    assert list(run_blocks(square, [], num_workers=2)) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_comes_in_its_place(num_workers):
    found = run_blocks(square, [1, 13, 2], num_workers=num_workers)
    assert next(found)[0] == 1
    with pytest.raises(KeyError, match="thirteen"):
        next(found)
    mended = run_blocks(
        square,
        [1, 13, 2],
        num_workers=num_workers,
        repair=lambda block, error: (-block, str(error)),
    )
    assert [value for value, _ in mended] == [1, -13, 4]


def test_the_source_is_read_a_little_ahead_and_in_this_thread():
    taken: list[int] = []

    def source() -> Iterator[int]:
        for block in range(100, 200):
            taken.append(block)
            yield block
        raise KeyboardInterrupt

    found = run_blocks(square, source(), num_workers=2)
    next(found)
    time.sleep(0.3)  # the workers have nothing to do by now
    assert len(taken) == 5
    with pytest.raises(KeyboardInterrupt):  # not lost in another thread
        list(found)


def test_workers_end_when_the_caller_stops():
    found = run_blocks(square, range(100, 200), num_workers=2)
    _, worker = next(found)
    os.kill(worker, 0)
    found.close()  # just after the last block was handed out
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_no_pool_within_a_pool(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert {pid for _, pid in run_blocks(square, range(4), num_workers=2)} == {os.getpid()}


def test_workers_are_a_whole_number():
    for wrong in (-1, 1.5, True):
        with pytest.raises(SettingsError, match="num_workers must be a whole number of at least 0"):
            run_blocks(square, [], num_workers=wrong)


STOPPED = """
import os, sys, time
from crysxpp_mm.parallel import run_blocks

def work(block):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)

list(run_blocks(work, range(8), num_workers=2))
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no signals of that kind here")
def test_ctrl_c_ends_workers_in_the_middle_of_a_block():
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        workers = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)  # to the parent alone, as a notebook's stop button
        start = time.monotonic()
        process.wait(timeout=30)
        assert time.monotonic() - start < 10
        assert process.stderr is not None
        assert "KeyboardInterrupt" in process.stderr.read()
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
