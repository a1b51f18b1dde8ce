"""Run a function on blocks of work in several processes, in order and in little memory."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

from joblib.externals.loky import ProcessPoolExecutor

from crysxpp_mm.settings import whole_number

Item = TypeVar("Item")
Block = TypeVar("Block")
Result = TypeVar("Result")


def cut(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut a stream of items into blocks of ``size``; the last may be shorter.

    Example:
        >>> list(cut("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


def attempt_each(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> tuple[dict[int, Result], dict[int, Exception]]:
    """Apply a function to each item, and let an item that fails keep its error.

    Returns:
        The results and the errors, both by the position of the item. Ctrl-C is no error of an
        item: it ends the call.

    Example:
        >>> attempt_each(float, ["1", "one", "2"])
        ({0: 1.0, 2: 2.0}, {1: ValueError("could not convert string to float: 'one'")})
    """
    results: dict[int, Result] = {}
    errors: dict[int, Exception] = {}
    for position, item in enumerate(items):
        try:
            results[position] = function(item)
        except Exception as error:  # matminer's contract: any error is the error of a row
            errors[position] = error
    return results, errors


def run_blocks(
    work: Callable[[Block], Result],
    blocks: Iterable[Block],
    *,
    num_workers: int,
    here: Callable[[Block], bool] = lambda block: False,
    repair: Callable[[Block, Exception], Result] | None = None,
) -> Generator[Result, None, None]:
    """Run a function on each block, in worker processes or in this one, and keep the order.

    The main thread of this process reads the blocks, at most ``2 * num_workers + 1`` ahead of the
    results taken, so memory stays bounded however slowly they are taken. Workers start as fresh
    interpreters, so the threads of this process do them no harm. They start with the first block
    that needs one; they end with the last result, an error, Ctrl-C, or when the caller closes the
    generator.

    Args:
        work: Function of a block. Workers get it as a pickle; a nested function goes by value.
        blocks: Blocks of work.
        num_workers: Number of worker processes; with 0, this process does the work. So does a
            daemon process, such as a worker of a multiprocessing pool, which may start none.
        here: Tells which blocks this process works on itself.
        repair: Makes a result of a block whose work failed and its error; without it, the error
            is raised.

    Returns:
        The results, one at a time, in the order of the blocks.

    Raises:
        SettingsError: ``num_workers`` is not a whole number of at least 0.

    Example:
        >>> list(run_blocks(sum, [(1, 2), (3, 4)], num_workers=0))
        [3, 7]
    """
    num_workers = whole_number("num_workers", num_workers, at_least=0)
    mine = num_workers == 0 or multiprocessing.current_process().daemon
    return _run(work, blocks, num_workers, (lambda block: True) if mine else here, repair)


# joblib.Parallel(return_as="generator") does not do (measured with 1.6): it hands out new blocks
# as fast as workers finish old ones, whether or not the results are taken, and it reads the blocks
# in a thread of its own, where an error or a Ctrl-C drops all blocks that were to follow, silently.
def _run(
    work: Callable[[Block], Result],
    blocks: Iterable[Block],
    num_workers: int,
    here: Callable[[Block], bool],
    repair: Callable[[Block, Exception], Result] | None,
) -> Generator[Result, None, None]:
    pool = None
    waiting: deque[tuple[Block, Future[Result] | None]] = deque()

    def finish(task: tuple[Block, Future[Result] | None]) -> Result:
        block, future = task
        return work(block) if future is None else future.result()

    def take() -> Result:
        task = waiting.popleft()
        if repair is None:
            return finish(task)
        results, errors = attempt_each(finish, [task])
        return results[0] if results else repair(task[0], errors[0])

    try:
        for block in blocks:
            future = None
            if not here(block):
                pool = pool or ProcessPoolExecutor(num_workers)
                future = pool.submit(work, block)
            waiting.append((block, future))
            if len(waiting) > 2 * num_workers:
                yield take()
        while waiting:
            yield take()
    finally:
        if pool is not None:
            # loky leaves its workers behind if it has to stop while it takes in a block.
            while any(f and not (f.running() or f.done()) for _, f in waiting):
                time.sleep(0.001)
            pool.shutdown(wait=True, kill_workers=True)
