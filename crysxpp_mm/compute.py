"""The device that networks run on, and torch's threads while they do.

Torch gets one thread while a network computes or learns. The networks are small: two threads gain
nothing on an idle machine, and on a busy one they wait for each other. A prediction was measured
to take 20 times as long.

Other packages set torch's default device for a whole process. ``cpu_by_default`` guards code, such
as Lightning's, that makes tensors without naming a device and means the CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from crysxpp_mm.errors import SettingsError

_IMPORTED_IN = os.getpid()


def is_forked() -> bool:
    """Tell whether this process was forked from one that had imported the package."""
    return os.getpid() != _IMPORTED_IN


def default_device() -> str:
    """Name the device for ``"auto"``: CUDA if it is available now, the CPU in a forked child."""
    return "cuda" if torch.cuda.is_available() and not is_forked() else "cpu"


class _Threads:
    """Count of the calls in this process that want one torch thread, and the number before."""

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


@contextmanager
def ready_to_learn() -> Iterator[None]:
    """Give code that trains what it needs: one torch thread, the CPU by default, gradients.

    Gradients are on inside even if the caller has switched them off, with ``torch.no_grad`` or
    ``torch.inference_mode``.
    """
    with one_torch_thread(), cpu_by_default(), torch.inference_mode(False), torch.enable_grad():
        yield


def usable_device(name: object = None) -> torch.device:
    """Find the device of a name, as featurizers (``device``) and estimators (``accelerator``) have.

    Args:
        name: None or ``"auto"`` for CUDA where it is available, else the CPU, and the CPU in a
            forked child; ``"gpu"`` for CUDA; or a name that torch knows.

    Raises:
        SettingsError: the device is unknown, absent, or CUDA in a forked child.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    known = {None: default_device(), "auto": default_device(), "gpu": "cuda"}
    try:
        wanted: Any = known.get(name, name)  # type: ignore[call-overload]
        return torch.empty(0, device=wanted).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SettingsError(
            f"device {name!r} cannot be used here ({reason}); device=None and accelerator='auto' "
            "take what there is."
        ) from error
