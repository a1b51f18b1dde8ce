"""The device of networks, and the threads that torch may use there.

It may use one thread while a network computes a column or learns from labels. The networks are
small: two torch threads gain nothing on an idle machine, and on a busy one they wait for each
other: a prediction was measured to take 20 times as long.

Other packages set torch's default device for a whole process; ``cpu_by_default`` is for code, such
as Lightning's, that makes tensors where that is and means the CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from crysxpp_mm.errors import SettingsError

_IMPORTED_IN = os.getpid()


def is_forked() -> bool:
    """Tell if this process is the forked child of one in which the package was in use."""
    return os.getpid() != _IMPORTED_IN


def default_device() -> str:
    """The device if nobody names one: CUDA if it is available now; the CPU in a forked child."""
    return "cuda" if torch.cuda.is_available() and not is_forked() else "cpu"


def usable_device(device: str | None) -> torch.device:
    """The device of that name, or :func:`default_device` if it is None.

    Raises:
        SettingsError: the device is unknown, absent, or CUDA in a forked child.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    if device is None:
        return torch.device(default_device())
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SettingsError(f"device {device!r} cannot be used here: {reason}") from error


class _Threads:
    """Number of calls in this process that want one torch thread, and the number to go back to."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.before = 1


_threads: dict[int, _Threads] = {}
_here = threading.local()


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Tensors are made on the CPU inside, unless the code names another device."""
    with torch.device("cpu"):
        yield


@contextmanager
def no_cuda_in_fork() -> Iterator[None]:
    """In a forked child there is no CUDA inside.

    Once the parent has used CUDA no child of it can, and code that only asks for the state of its
    random numbers, as Lightning's does, fails.
    """
    if not is_forked():
        yield
        return
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        yield


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread inside, what was set before outside; calls may be nested.

    A forked child keeps its one thread: the pool of threads that its parent had did not come
    along, and using it would hang.
    """
    if is_forked():
        torch.set_num_threads(1)
        yield
        return
    if getattr(_here, "inside", False):
        yield
        return
    threads = _threads.setdefault(os.getpid(), _Threads())
    with threads.lock:
        if threads.calls == 0:
            threads.before = torch.get_num_threads()
        threads.calls += 1
        torch.set_num_threads(1)
    _here.inside = True
    try:
        yield
    finally:
        _here.inside = False
        with threads.lock:
            threads.calls -= 1
            torch.set_num_threads(threads.before)
